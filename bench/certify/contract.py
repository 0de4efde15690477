"""What a certifier is: the protocol that a plugin follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import ClassVar
from typing import Protocol
from typing import runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from robustspike.bench.certify.result import Certified
    from robustspike.bench.certify.scores import CertifiedScores
    from robustspike.bench.numbers.rng import RowStreams
    from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.contract.specs import CertifierSpec


@runtime_checkable
class Certifier(Protocol):
    """A proof that no input of a ball changes the answer, or a bound on how far it moves a score.

    A frozen dataclass of plain parameters.

    `confidence` is the probability that the certificate of one sample holds, 1 for a proof.
    """

    spec: ClassVar[CertifierSpec]

    @property
    def confidence(self) -> float: ...

    def fits(self, victim: ModuleVictim) -> str | None:
        """Say why it cannot certify a loaded victim, or None where it can."""
        ...

    def certify(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, *, radii: Sequence[float], streams: RowStreams
    ) -> Certified | CertifiedScores:
        """Certify the answers on a batch at some radii, or find the largest; or bound scores within one."""
        ...
