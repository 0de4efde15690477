"""Robust ANN-to-SNN conversion: train a robust ANN, convert it, fine-tune the SNN robustly."""

from __future__ import annotations

import dataclasses
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
from robustspike.defenses.structure import needs_replaceable_neurons
from robustspike.defenses.structure import replace_neurons
from robustspike.defenses.trades import Trades


class ConvertibleNeuron(nn.Module):
    """A ReLU that becomes an integrate-and-fire neuron with a trainable threshold.

    As a neuron it works in units of the threshold (soft reset, threshold 1) and its spikes weigh as much
    as the threshold, so that its mean output approaches the ReLU's.
    """

    peak: Tensor
    peak_epoch: Tensor
    spikes: Tensor

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate

        self.node = neuron.IFNode(v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m")
        self.threshold = nn.Parameter(torch.ones(()))
        self.register_buffer("peak", torch.zeros(()))
        self.register_buffer("peak_epoch", torch.tensor(-1))
        self.register_buffer("spikes", torch.tensor(False))

    def start_epoch(self, epoch: int) -> None:
        """Forget the largest input of an earlier epoch."""
        if int(self.peak_epoch) != epoch:
            self.peak_epoch.fill_(epoch)
            self.peak.zero_()

    @torch.no_grad()
    def convert(self, scale: float) -> None:
        """Become a neuron with a threshold of scale times the largest input of the last epoch."""
        if not self.spikes:
            self.threshold.fill_(scale * float(self.peak.clamp(min=1e-3)))
            self.spikes.fill_(True)

    def forward(self, x_seq: Tensor) -> Tensor:
        if self.spikes:
            threshold = self.threshold.clamp(min=1e-3)
            fired: Tensor = self.node(x_seq / threshold)
            return fired * threshold
        if self.training:
            self.peak.copy_(torch.maximum(self.peak, x_seq.detach().max()))
        return x_seq.relu()


@dataclass(frozen=True)
class RobustConversion(Adversarial):
    """PGD training of the ANN, conversion with thresholds from its activity, TRADES fine-tuning.

    The hardened victim's neurons are integrate-and-fire with soft reset, whatever the plain victim's are.

    Args:
        share: share of the epochs that train the ANN.
        scale: threshold as a share of the largest pre-activation.
        beta: weight of the divergence term in fine-tuning.

    Cost: as PGD training, T times in the ANN phase too (its input is repeated).
    """

    share: float = 0.5
    scale: float = 0.3
    beta: float = 2.0
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="robust_conversion",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Ozdenizci & Legenstein, TMLR 2024, arXiv:2311.09266. Differs: both phases share one schedule "
            "and the victim's T; largest input taken over the ANN's last epoch; soft reset; fine-tuning by "
            "one step of eps from x + 0.001 N(0, 1) on the divergence."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1 or not self.scale > 0 or self.beta < 0:
            raise ConfigError(
                "robust_conversion: share must be inside (0, 1), scale above 0, beta 0 or more; got "
                f"{self.share}, {self.scale} and {self.beta}."
            )

    def fits(self, recipe: VictimRecipe) -> str | None:
        return super().fits(recipe) or needs_replaceable_neurons(recipe)

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        return replace_neurons(module, spec, lambda neuron, shape: ConvertibleNeuron())

    def converted(self, epoch: int, epochs: int) -> bool:
        """Whether an epoch (from 0) trains the spiking network."""
        return epoch >= self.share * epochs

    def terms(self, step: Step) -> Terms:
        neurons = [m for m in step.module.modules() if isinstance(m, ConvertibleNeuron)]
        if not self.converted(step.epoch, step.epochs):
            for neuron in neurons:
                neuron.start_epoch(step.epoch)
            return super().terms(step)
        if not all(bool(neuron.spikes) for neuron in neurons):
            for neuron in neurons:
                neuron.convert(self.scale)
            for layer in step.module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.reset_running_stats()
        tuning = Trades(eps=self.eps, steps=1, step=1.0, start="normal", beta=self.beta)
        return dataclasses.replace(tuning, training_mode=self.training_mode).terms(step)

    def eligible(self, epoch: int, epochs: int) -> bool:
        return self.converted(epoch, epochs)
