"""R+FGSM: a random signed half step, then a signed gradient half step."""

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
class Rfgsm:
    """x' = x + (eps/2) sign(noise), then x' + (eps/2) sign(gradient at x').

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
        name="rfgsm.linf",
        geometries=("linf",),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source="Tramer et al. 2018, arXiv:1705.07204, eq. 7, with alpha = eps/2. Differs: none.",
        cost="2 forwards + 1 backward",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        half = oracle.radius / 2
        low, high = oracle.threat.bounds
        x = (x0 + half * rng.sign(x0.shape[1:], dtype=x0.dtype)).clamp(low, high)
        best, _ = ascend(
            oracle,
            x,
            steps=1,
            step=lambda x, gradient, rows: x + half * gradient.sign(),
            loss=self.loss,
            estimator=self.estimator,
            draws=self.draws,
        )
        return settle(oracle, best)
