"""Finlay-Oberman: the l2 norm of the loss's input gradient, penalised by a finite difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import VictimRecipe
from robustspike.defenses.crafting import classes_only
from robustspike.defenses.slopes import score_of
from robustspike.defenses.slopes import slope


@dataclass(frozen=True)
class GradientPenalty(DefenseBase):
    """Penalise the squared l2 norm of the input gradient of the cross-entropy.

    Args:
        weight: 0 gives plain training bit for bit.
        h: length of the finite difference along the normalised gradient, in pixel units (l2).

    Cost: as SR.
    """

    weight: float = 0.3
    h: float = 0.1
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="gradient_penalty",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Finlay & Oberman 2019, arXiv:1905.11468 (scaleable input gradient regularization). Differs: "
            "h = 0.1, an l2 step over all pixels, suits spiking forwards; weight chosen here."
        ),
    )

    def __post_init__(self) -> None:
        if self.weight < 0 or not self.h > 0:
            raise ConfigError(
                f"gradient_penalty: weight must be 0 or more and h above 0, got {self.weight} and {self.h}."
            )

    def fits(self, recipe: VictimRecipe) -> str | None:
        return classes_only(recipe)

    def penalties(self, step: Step, x: Tensor, logits: Tensor) -> Terms:
        if not self.weight:
            return {}
        score = score_of(logits, step.y, "loss")
        slopes = slope(step, x, logits, score, h=self.h, direction="l2")
        return {"gradient": self.weight * slopes.square().mean()}
