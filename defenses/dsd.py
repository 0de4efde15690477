"""DSD: take the dominant singular direction out of every weight gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Step
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.crafting import Start


def without_dominant_direction(gradient: Tensor) -> Tensor:
    """Return G - s1 u1 v1^T of a gradient seen as a matrix [out, rest]; vectors and scalars unchanged."""
    if gradient.dim() < 2:
        return gradient
    matrix = gradient.flatten(1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (matrix - s[0] * u[:, :1] @ vh[:1]).view_as(gradient)


@dataclass(frozen=True)
class DominantDirection(Adversarial):
    """FGSM training whose weight gradients lose their largest singular component before each step.

    Args:
        removes: whether the component is removed; False with eps=0 is plain training bit for bit.

    Cost: as FGSM training, and one singular value decomposition per weight matrix.
    """

    steps: int = 1
    step: float = 1.0
    start: Start = "clean"
    removes: bool = True
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="dsd",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Zhang et al., ICLR 2026, and arXiv:2505.11134. Differs: trained by full backpropagation through "
            "time on the victim's own loss at the suite's eps (the release cuts time and weights steps)."
        ),
    )

    def before_step(self, step: Step) -> None:
        if not self.removes:
            return
        for parameter in step.module.parameters():
            if parameter.grad is not None:
                parameter.grad = without_dominant_direction(parameter.grad)
