"""Contract tests that plugin authors inherit; `robustspike validate` runs the same checks.

from robustspike.bench.testing import AttackContract

class TestMyAttack(AttackContract):
    @pytest.fixture
    def attack(self):
        return MyAttack()
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from robustspike.bench.testing.contracts import AttackContract
    from robustspike.bench.testing.contracts import CertifierContract
    from robustspike.bench.testing.contracts import DatasetContract
    from robustspike.bench.testing.contracts import DefenseContract
    from robustspike.bench.testing.contracts import EstimatorContract
    from robustspike.bench.testing.contracts import GeometryContract
    from robustspike.bench.testing.contracts import QualityAttackContract
    from robustspike.bench.testing.contracts import RecipeContract
    from robustspike.bench.testing.contracts import ScoreCertifierContract
    from robustspike.bench.testing.contracts import VictimContract

__all__ = [
    "AttackContract",
    "CertifierContract",
    "DatasetContract",
    "DefenseContract",
    "EstimatorContract",
    "GeometryContract",
    "QualityAttackContract",
    "RecipeContract",
    "ScoreCertifierContract",
    "VictimContract",
]


def __getattr__(name: str) -> Any:
    """Import the pytest classes when one is asked for: `robustspike validate` works without pytest."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robustspike.bench.testing import contracts

    return getattr(contracts, name)
