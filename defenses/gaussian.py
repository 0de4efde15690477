"""Training on Gaussian noise: the baseline of every claim that noise is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Domain
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import VictimRecipe
from robustspike.defenses.crafting import normal


@dataclass(frozen=True)
class GaussianNoise(DefenseBase):
    """Train on x + sigma N(0, 1).

    Args:
        sigma: standard deviation in pixel units; 0 gives plain training bit for bit.
        clean: share of the loss taken on clean points: 0 (noise only) to 1 (plain training).
        clamp: whether noisy points are clamped to [0, 1].

    Cost: as plain training; one forward more if 0 < clean < 1.
    """

    sigma: float = 0.1
    clean: float = 0.0
    clamp: bool = False
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="gaussian",
        trains=True,
        source=(
            "Gaussian setting of Ding et al., ICML 2024, arXiv:2405.20694, without its regulariser. "
            "Differs: sigma is the suite's eps (theirs: 8/255 at test eps 8/255)."
        ),
    )

    def __post_init__(self) -> None:
        if self.sigma < 0 or not 0 <= self.clean <= 1:
            raise ConfigError(
                f"gaussian: sigma must be 0 or more, clean in [0, 1]; got {self.sigma} and {self.clean}."
            )

    def fits(self, recipe: VictimRecipe) -> str | None:
        if recipe.spec().domain is not Domain.STATIC:
            return "it adds real-valued noise; this victim takes binary event frames"
        return None

    def points(self, step: Step) -> Tensor:
        if not self.sigma or self.clean == 1:
            return step.x
        noisy = step.x + normal(step, self.sigma)
        return noisy.clamp(0, 1) if self.clamp else noisy

    def terms(self, step: Step) -> Terms:
        if not self.sigma or not 0 < self.clean < 1:
            return super().terms(step)
        noisy = (1 - self.clean) * step.loss(self.points(step), step.y)[0]
        return {"loss": self.clean * step.loss(step.x, step.y)[0], "noisy": noisy}
