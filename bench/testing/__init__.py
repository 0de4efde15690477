"""Contract tests that plugin authors inherit; `robustspike validate` runs the same checks.

from robustspike.bench.testing import AttackContract

class TestMyAttack(AttackContract):
    @pytest.fixture
    def attack(self):
        return MyAttack()
"""

from robustspike.bench.testing.contracts import AttackContract
from robustspike.bench.testing.contracts import DefenseContract
from robustspike.bench.testing.contracts import EstimatorContract
from robustspike.bench.testing.contracts import GeometryContract
from robustspike.bench.testing.contracts import VictimContract

__all__ = ["AttackContract", "DefenseContract", "EstimatorContract", "GeometryContract", "VictimContract"]
