"""HoSNN: thresholds that adapt to keep the potential near its clean trajectory (TA-LIF)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Neuron
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.crafting import Start
from robustspike.defenses.structure import SteppedNeuron
from robustspike.defenses.structure import needs_replaceable_neurons
from robustspike.defenses.structure import replace_neurons

MOMENTUM = 0.1
"""Share of a batch in the running mean of the clean trajectory."""


class AdaptiveNeuron(SteppedNeuron):
    """A LIF neuron whose threshold follows the error e = u - u*: Vth[t+1] = Vth[t] + theta e[t].

    While it learns its signature u* (running mean of clean potentials per neuron and step) the threshold
    is constant; once it adapts, the signature is frozen.
    """

    signature: Tensor
    adapts: Tensor

    def __init__(self, neuron: Neuron, steps: int, shape: tuple[int, ...], theta: float) -> None:
        super().__init__(neuron)
        self.decay = neuron.leak
        self.theta = nn.Parameter(torch.full(shape, theta))
        self.register_buffer("signature", torch.zeros(steps, *shape))
        self.register_buffer("adapts", torch.tensor(False))
        self._moved = torch.zeros(())

    @property
    def tau(self) -> float:
        """Time constant, which gradient estimators read."""
        return 1 / max(1 - self.decay, 1e-6)

    def charge(self, v: Tensor, current: Tensor, t: int) -> Tensor:
        return self.decay * v + self.input_gain * current

    def distance(self, u: Tensor, t: int) -> Tensor:
        if not self.adapts:
            if self.training:
                self.signature[t].lerp_(u.detach().mean(dim=0), MOMENTUM)
            return u - self.v_threshold
        moved = torch.zeros_like(u) if t == 0 else self._moved
        self._moved = moved + self.theta.clamp(min=0) * (u - self.signature[t])
        return u - (self.v_threshold + moved)

    def forward(self, x_seq: Tensor) -> Tensor:
        try:
            return super().forward(x_seq)
        finally:
            self._moved = torch.zeros(())


@dataclass(frozen=True)
class Homeostasis(Adversarial):
    """Train plainly and record each neuron's clean trajectory; then adapt thresholds under FGSM training.

    Args:
        theta: initial strength of the adaptation, at least 0; learned per neuron.
        clean: share of the epochs that train plainly and record the signatures.

    Cost: half of the epochs as plain training, half as FGSM training.
    """

    steps: int = 1
    step: float = 1.0
    start: Start = "clean"
    theta: float = 0.1
    clean: float = 0.5
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="hosnn",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Geng & Li, TMLR 2025, arXiv:2308.10373. Differs: discrete threshold rule without the time "
            "constants of the continuous form, which are not published with values; the clean twin is the "
            "same network's first half of training; initial theta chosen here."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.theta < 0 or not 0 < self.clean < 1:
            raise ConfigError(
                f"hosnn: theta must be 0 or more, clean inside (0, 1); got {self.theta} and {self.clean}."
            )

    def fits(self, recipe: VictimRecipe) -> str | None:
        return super().fits(recipe) or needs_replaceable_neurons(recipe)

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        return replace_neurons(
            module, spec, lambda neuron, shape: AdaptiveNeuron(neuron, spec.steps, shape, self.theta)
        )

    def adapting(self, epoch: int, epochs: int) -> bool:
        """Whether an epoch (from 0) is past the recording of signatures."""
        return epoch >= self.clean * epochs

    def points(self, step: Step) -> Tensor:
        return super().points(step) if self.adapting(step.epoch, step.epochs) else step.x

    def terms(self, step: Step) -> Terms:
        for neuron in step.module.modules():
            if isinstance(neuron, AdaptiveNeuron):
                neuron.adapts.fill_(self.adapting(step.epoch, step.epochs))
        return super().terms(step)

    def eligible(self, epoch: int, epochs: int) -> bool:
        return self.adapting(epoch, epochs)
