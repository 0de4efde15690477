"""BIM: iterated signed gradient steps from the clean input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.attacks.pixels.climbing import ascend
from robustspike.attacks.pixels.climbing import check
from robustspike.attacks.pixels.climbing import from_starts
from robustspike.attacks.pixels.climbing import start
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class Bim:
    """PGD without a random start, with a fixed step in input units.

    Args:
        steps: gradient steps; 0: min(255 eps + 4, 1.25 * 255 eps), rounded down, at least 1
            (eps as a share of the range of the inputs).
        step: step size as a share of the range of the inputs.
        restarts: starts, each run on the samples still standing: the clean input, then random points.
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.
        draws: noise draws averaged into one gradient (EOT); 0: 10 for stochastic victims, else 1.

    Cost: per start `steps` gradients, and 1 forward for the last iterate; less where iterates repeat.
    """

    steps: int = 0
    step: float = 1 / 255
    restarts: int = 1
    estimator: str = "native"
    loss: str = "ce"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="bim.linf",
        geometries=("linf",),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        source=(
            "Kurakin et al. 2017, arXiv:1607.02533. Differs: the iterate with the largest loss is "
            "returned, and a sample stops at its first hit."
        ),
        cost="10 gradients at eps 8/255, 29 at 1/10, and 1 forward",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, step=self.step, restarts=self.restarts)
        if self.steps < 0:
            raise ConfigError(f"{self.spec.name}: steps must be 0 (the rule) or more, got {self.steps}.")

    def iterations(self, eps: float) -> int:
        """Return the number of steps for an eps given as a share of the inputs' range."""
        levels = 255 * eps
        return self.steps or max(1, math.floor(min(levels + 4, 1.25 * levels) + 1e-6))

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        span = oracle.threat.bounds[1] - oracle.threat.bounds[0]
        size = self.step * span

        def climb(number: int) -> tuple[Tensor, Tensor]:
            return ascend(
                oracle,
                start(oracle, x0, random=number > 0, rng=rng),
                steps=self.iterations(oracle.radius / span),
                step=lambda x, gradient, rows: x + size * gradient.sign(),
                loss=self.loss,
                estimator=self.estimator,
                draws=self.draws,
                repeats=True,
            )

        return from_starts(oracle, x0, climb, restarts=self.restarts)
