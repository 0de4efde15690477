"""Inside a Euclidean ball: normalised gradient steps, and noise of the same size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.attacks.quality.iterated import GOALS
from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import climb
from robustspike.attacks.quality.iterated import per_image
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class QualityPgdL2:
    """Gradient steps of one Euclidean length, projected into the ball, from the clean image.

    Args:
        steps: gradient steps.
        step: length of a step as a share of eps, times steps.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards.
    """

    steps: int = 10
    step: float = 2.5
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.pgd_l2",
        geometries=("rmse", "l2"),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Madry et al. 2018, arXiv:1706.06083, in l2 and on the score. Differs: no random start; the best "
            "iterate is returned."
        ),
        cost="11 forwards + 10 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step > 0:
            raise ConfigError(
                "quality.pgd_l2: steps must be at least 1 and step above 0, got "
                f"{self.steps} and {self.step}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        del y, rng
        size = oracle.radius * self.step / self.steps

        def update(x: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
            del rows
            length = oracle.geometry.distance(0 * gradient, gradient).to(x)  # in the ball's own units
            return x + size * gradient / per_image(length.clamp(min=1e-20), x)

        return climb(oracle, x0, steps=self.steps, estimator=self.estimator, update=update)


@dataclass(frozen=True)
class RandomGauss:
    """x + Gaussian noise of length eps: the control in Euclidean balls, as quality.random_sign in L-inf.

    Cost: 1 forward.
    """

    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.random_gauss",
        geometries=("rmse", "l2"),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source="Control. Differs: none.",
        cost="1 forward",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        del y
        x = x0.clone()
        rows = oracle.active(forwards=1)
        if len(rows):
            noise = rng.normal(x0.shape[1:], rows=rows, dtype=x0.dtype)
            length = oracle.geometry.distance(0 * noise, noise).to(x0)
            x[rows] = oracle.project(x0[rows] + oracle.radius * noise / per_image(length, x0), rows)
            oracle.logits(x[rows], rows)
        return x
