"""TGO: keep potentials away from the threshold, and blur it with noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.structure import SequenceNoise
from robustspike.defenses.structure import active_neurons
from robustspike.defenses.structure import needs_spiking_training
from robustspike.defenses.structure import put_before_neuron
from robustspike.defenses.structure import recorded_membranes


def guard_loss(distance: Tensor, delta: float) -> Tensor:
    """Return the mean of max(0, delta - |u - v_threshold|)."""
    return (delta - distance.abs()).clamp(min=0).mean()


@dataclass(frozen=True)
class ThresholdGuard(Adversarial):
    """A penalty on potentials within delta of the threshold, and membrane noise at test time too.

    Args:
        weight: largest weight of the penalty, reached by a cosine ramp over the first half of the epochs;
            0 with sigma=0 and eps=0 gives plain training bit for bit.
        delta: width of the guarded band in units of the membrane potential.
        sigma: standard deviation of the noise that each step adds to the potential.
        eps: radius of additional adversarial training, 0 for none.

    Cost: as plain training, and one random tensor per layer and step.
    """

    eps: float = 0.0
    weight: float = 0.4
    delta: float = 0.5
    sigma: float = 0.2
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="tgo",
        trains=True,
        stochastic=True,
        adaptive=("eot", "wide_surrogate"),
        source=(
            "Wang et al., ICLR 2026, arXiv:2602.20548. Differs: delta and sigma are not published, chosen "
            "here; the ramp ends half-way, and no checkpoint from the ramp is kept."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.weight, self.sigma) < 0 or not self.delta > 0:
            raise ConfigError(
                f"tgo: weight and sigma must be 0 or more, delta above 0; got {self.weight}, {self.sigma} "
                f"and {self.delta}."
            )

    def fits(self, recipe: VictimRecipe) -> str | None:
        return super().fits(recipe) or needs_spiking_training(recipe)

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        if not self.sigma:
            return module
        for neuron, _ in active_neurons(module, spec):
            put_before_neuron(neuron.module, SequenceNoise(self.sigma / neuron.gain), "membrane_noise")
        return module

    def ramp(self, epoch: int, epochs: int) -> float:
        """Return the weight's share of its largest value in an epoch (from 0)."""
        done = 1.0 if not epochs else min(1.0, 2 * (epoch + 1) / epochs)
        return 0.5 - 0.5 * math.cos(math.pi * done)

    def terms(self, step: Step) -> Terms:
        if not self.weight:
            return super().terms(step)
        x = self.points(step)
        with recorded_membranes(step.module) as layers:
            loss, _ = step.loss(x, step.y)
        guards = [guard_loss(torch.stack(steps), self.delta) for steps in layers if steps]
        weight = self.weight * self.ramp(step.epoch, step.epochs)
        return {"loss": loss, "guard": weight * torch.stack(guards).sum()}

    def eligible(self, epoch: int, epochs: int) -> bool:
        return not self.weight or self.ramp(epoch, epochs) == 1.0
