"""PGD in the L2 ball: steps of a fixed Euclidean length along the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.attacks.pixels.climbing import ascend
from robustspike.attacks.pixels.climbing import check
from robustspike.attacks.pixels.climbing import from_starts
from robustspike.attacks.pixels.climbing import start
from robustspike.attacks.pixels.climbing import unit
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class PgdL2:
    """Steps along gradient / |gradient|_2, projected on the L2 ball.

    Args:
        steps: gradient steps.
        step: step length as a share of eps.
        random_start: whether to start at a uniform point of the ball (else at x0; further starts are
            always random).
        restarts: starts, each run on the samples still standing.
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.
        draws: noise draws averaged into one gradient (EOT); 0: 10 for stochastic victims, else 1.

    Cost: per start `steps` gradients, and 1 forward for the last iterate; less where iterates repeat.
    """

    steps: int = 20
    step: float = 0.25
    random_start: bool = True
    restarts: int = 1
    estimator: str = "native"
    loss: str = "ce"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="pgd.l2",
        geometries=("l2",),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=(
            "Madry et al. 2018, arXiv:1706.06083, section 2.1, in the L2 norm. Differs: step is eps/4; the "
            "iterate with the largest loss is returned, and a sample stops at its first hit."
        ),
        cost="21 forwards + 20 backwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, steps=self.steps, step=self.step, restarts=self.restarts)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        size = self.step * oracle.radius

        def climb(number: int) -> tuple[Tensor, Tensor]:
            return ascend(
                oracle,
                start(oracle, x0, random=self.random_start or number > 0, rng=rng),
                steps=self.steps,
                step=lambda x, gradient, rows: x + size * unit(gradient, power=2),
                loss=self.loss,
                estimator=self.estimator,
                draws=self.draws,
                repeats=True,
            )

        return from_starts(oracle, x0, climb, restarts=self.restarts)
