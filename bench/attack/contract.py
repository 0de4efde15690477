"""What an attack is: the protocol that a plugin follows."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import ClassVar
from typing import Protocol
from typing import runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from robustspike.bench.attack.oracle import Oracle
    from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.contract.specs import AttackSpec


@runtime_checkable
class Attack(Protocol):
    """A search for adversarial examples; a frozen dataclass of plain parameters.

    `run` is called once per shard with the samples that the victim classifies correctly. What it
    returns is one more candidate beside the best that the oracle has seen; success is decided by
    the harness in an independent pass. An attack may define `fits(spec: VictimSpec) -> str | None`, which
    says why it cannot run on a victim that its spec alone would admit; suites then leave the pair out. One
    that looks up other components by name may define `uses() -> {kind: names}`: then its records hang on
    the code of those alone, not on that of every component of the kind. One that uses other gradient
    estimators than its `estimator` may define `needs() -> estimators or their names`: on a victim to which
    one of them does not apply the attack is n/a. `own_losses` lists names that its `loss` may have beside
    the harness's own.
    """

    spec: ClassVar[AttackSpec]

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        """Return x_adv of the shape of x0, inside the threat model; x0 and y are not modified."""
        ...
