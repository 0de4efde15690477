"""MI-FGSM: signed steps along an accumulated, normalised gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
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
class MiFgsm:
    """m <- decay * m + gradient / mean|gradient| of the sample; x <- project(x + step * sign(m)).

    Args:
        steps: gradient steps.
        step: step size as a share of eps.
        decay: weight of the past.
        restarts: starts, each run on the samples still standing: the clean input, then random points.
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.
        draws: noise draws averaged into one gradient (EOT); 0: 10 for stochastic victims, else 1.

    Cost: per start `steps` gradients, and 1 forward for the last iterate.
    """

    steps: int = 10
    step: float = 0.25
    decay: float = 1.0
    restarts: int = 1
    estimator: str = "native"
    loss: str = "ce"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="mifgsm.linf",
        geometries=("linf",),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        source=(
            "Dong et al. 2018, arXiv:1710.06081, algorithm 1. Differs: 10 steps of eps/4; the mean runs over "
            "all axes of a sample, so time and polarity of event frames are included and batch mates are "
            "not; a zero gradient adds nothing, where the released code divides 0 by 0."
        ),
        cost="11 forwards + 10 backwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, steps=self.steps, step=self.step, restarts=self.restarts)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        size = self.step * oracle.radius

        def climb(number: int) -> tuple[Tensor, Tensor]:
            momentum = torch.zeros_like(x0)

            def step(x: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
                momentum[rows] = self.decay * momentum[rows] + unit(gradient, power=1)
                return x + size * momentum[rows].sign()

            return ascend(
                oracle,
                start(oracle, x0, random=number > 0, rng=rng),
                steps=self.steps,
                step=step,
                loss=self.loss,
                estimator=self.estimator,
                draws=self.draws,
            )

        return from_starts(oracle, x0, climb, restarts=self.restarts)
