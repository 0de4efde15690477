"""SNN-RAT: adversarial training with weights drawn towards orthogonality."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Schedule
from robustspike.bench.api import Step
from robustspike.defenses.crafting import Adversarial

WIDE = 200
"""Rows from which a linear layer is retracted on a random part of its rows only."""

SHARE = 0.3
"""That part."""


def retracted(weight: Tensor, beta: float) -> Tensor:
    """Return (1 + beta) W - beta W W^T W: a gradient step on (beta / 4) ||W W^T - I||^2.

    A singular value s becomes s + beta s (1 - s^2): 1 is the fixed point, reached from every
    0 < s < sqrt((1 + beta) / beta).

    Shape: [out, in] -> [out, in].
    """
    return (1 + beta) * weight - beta * weight @ weight.T @ weight


@torch.no_grad()
def retract(module: nn.Module, beta: float, *, rng: torch.Generator) -> None:
    """Retract every convolution (kernel flattened) and linear layer in place."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            weight = child.weight.flatten(1)
            child.weight.copy_(retracted(weight, beta).view_as(child.weight))
        elif isinstance(child, nn.Linear):
            rows = len(child.weight)
            if rows < WIDE:
                child.weight.copy_(retracted(child.weight, beta))
                continue
            chosen = torch.randperm(rows, generator=rng)[: round(SHARE * rows)].to(child.weight.device)
            child.weight[chosen] = retracted(child.weight[chosen], beta)


@dataclass(frozen=True)
class RegularisedAdversarialTraining(Adversarial):
    """Adversarial training on several radii, with a weight retraction after every step.

    Args:
        beta: strength of the retraction; 0 with eps=0 is plain training without weight decay.
        radii: shares of eps; one is drawn for each step ("several neighbourhoods").

    Cost: as adversarial training with as many steps, and one matrix product per layer.
    """

    steps: int = 2
    beta: float = 0.004
    radii: tuple[float, ...] = (1.0,)
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="snn_rat",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Ding et al., NeurIPS 2022, 35:24780-24793. Differs: PGD-2 with step eps/2 at the suite's eps; "
            "no simplex constraint, because no victim here has learned residual weights; beta of "
            "WRN-16 (0.004)."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0 or not self.radii or min(self.radii) < 0:
            raise ConfigError(
                f"snn_rat: beta must be 0 or more, radii one or more shares of 0 or more; got {self.beta} "
                f"and {self.radii}."
            )

    def schedule(self, schedule: Schedule) -> Schedule:
        return dataclasses.replace(schedule, weight_decay=0.0)

    def points(self, step: Step) -> Tensor:
        if len(self.radii) == 1:
            scale = self.radii[0]
        else:
            scale = self.radii[int(torch.randint(len(self.radii), (), generator=step.rng))]
        radius = scale * self.eps
        return dataclasses.replace(self, eps=radius, radii=(1.0,)).attack(step) if radius else step.x

    def after_step(self, step: Step) -> None:
        if self.beta:
            retract(step.module, self.beta, rng=step.rng)
