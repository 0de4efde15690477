"""Adversarial training of quality models with lowered labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Step
from robustspike.bench.api import Task
from robustspike.bench.api import Terms
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import ssim


@dataclass(frozen=True)
class QualityAdversarialTraining(DefenseBase):
    """Train on clean images and on one FGSM step of the task loss, whose label is lowered by its visibility.

    The label of an adversarial image is clamp(y - penalty (1 - SSIM) range): it does look a little worse.

    Args:
        eps: size of the perturbation in pixel units; 0 gives plain training bit for bit.
        step: size of the signed step, clipped to eps.
        penalty: how much of the lost similarity is taken off the label.
        span: range of the labels.

    Cost: 2 forwards and 3 backwards per step.
    """

    eps: float = 4 / 255
    step: float = 5 / 255
    penalty: float = 1.0
    span: tuple[float, float] = (0.0, 100.0)
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="iqa_at",
        trains=True,
        source=(
            "Chistyakova et al., Technologies 12(11):220, 2024. Differs: the mean of the clean and the "
            "adversarial loss, in one batch each."
        ),
    )

    def __post_init__(self) -> None:
        if self.eps < 0 or self.step < 0 or self.penalty < 0 or not self.span[0] < self.span[1]:
            raise ConfigError(
                "iqa_at: eps, step and penalty must be 0 or more and span (low, high), got "
                f"{self.eps}, {self.step}, {self.penalty} and {self.span}."
            )

    def fits(self, recipe: VictimRecipe) -> str | None:
        if recipe.spec().task is not Task.QUALITY:
            return "it is for quality models; classifiers have fgsm_at and pgd_at"
        return None

    def terms(self, step: Step) -> Terms:
        if not self.eps:
            return super().terms(step)
        x = step.x.detach().clone().requires_grad_(True)
        loss, _ = step.loss(x, step.y)
        gradient = step.input_gradient(loss, x, keep_graph=True)
        moved = (self.step * gradient.sign()).clamp(-self.eps, self.eps)
        x_adv = (step.x + moved).clamp(0, 1)
        with torch.no_grad():
            lost = (1 - ssim(step.x.double(), x_adv.double())).to(step.y)
        low, high = self.span
        label = (step.y - self.penalty * lost * (high - low)).clamp(low, high)
        adversarial, _ = step.loss(x_adv, label)
        return {"clean": loss / 2, "adversarial": adversarial / 2}
