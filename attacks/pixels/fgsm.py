"""FGSM: one signed gradient step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.attacks.pixels.climbing import ascend
from robustspike.attacks.pixels.climbing import settle
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class Fgsm:
    """x + eps * sign(gradient of the loss), projected.

    Args:
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.
        draws: noise draws averaged into the gradient (EOT); 0: 10 for stochastic victims, else 1.

    Cost: 1 gradient, and 1 forward to see the answer.
    """

    estimator: str = "native"
    loss: str = "ce"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="fgsm.linf",
        geometries=("linf",),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        source=(
            "Goodfellow et al. 2015, arXiv:1412.6572. Differs: x0 is returned where the step lowers the loss."
        ),
        cost="2 forwards + 1 backward",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        size = oracle.radius
        best, _ = ascend(
            oracle,
            x0.clone(),
            steps=1,
            step=lambda x, gradient, rows: x + size * gradient.sign(),
            loss=self.loss,
            estimator=self.estimator,
            draws=self.draws,
        )
        return settle(oracle, best)
