"""What the published architectures share: layers that process sequences or single steps, and the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.victims.converted.nodes import ConvertedNet
from robustspike.victims.converted.qcfs import QcfsActivation
from robustspike.victims.direct.lif_cnn import DirectCoding
from robustspike.victims.direct.lif_cnn import NeuronKind
from robustspike.victims.direct.lif_cnn import make_neuron
from robustspike.victims.events.event_cnn import EventFrames
from robustspike.victims.layout import CIFAR

Activation = NeuronKind | Literal["qcfs"]

PUBLISHED = dataclasses.replace(CIFAR, epochs=100, smoothing=0.0)
"""A schedule for networks of published size; meant for an accelerator."""


@dataclass(frozen=True)
class Parts:
    """SpikingJelly layers in one step mode, and the activation that goes between them.

    Args:
        mode: "m": sequences, time first [T, N, ...]. "s": one batch [N, ...], as in the ANN of a conversion.
        act: makes one activation (a spiking layer, or its formula in the ANN).
    """

    mode: Literal["m", "s"]
    act: Callable[[], nn.Module]

    def conv(
        self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, bias: bool = False
    ) -> nn.Module:
        """Make a convolution that keeps height and width at stride 1."""
        from spikingjelly.activation_based import layer

        made: nn.Module = layer.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias, step_mode=self.mode
        )
        return made

    def norm(self, channels: int) -> nn.Module:
        """Make a batch normalisation over time, batch and space."""
        from spikingjelly.activation_based import layer

        made: nn.Module = layer.BatchNorm2d(channels, step_mode=self.mode)
        return made

    def unit(
        self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, bias: bool = False
    ) -> list[nn.Module]:
        """Make convolution, batch normalisation and activation."""
        convolution = self.conv(inputs, outputs, kernel=kernel, stride=stride, bias=bias)
        return [convolution, self.norm(outputs), self.act()]

    def pool(self, kernel: int = 2) -> nn.Module:
        """Make an average pooling."""
        from spikingjelly.activation_based import layer

        made: nn.Module = layer.AvgPool2d(kernel, step_mode=self.mode)
        return made

    def pool_all(self) -> nn.Module:
        """Make the average over height and width."""
        from spikingjelly.activation_based import layer

        made: nn.Module = layer.AdaptiveAvgPool2d(1, step_mode=self.mode)
        return made

    def flatten(self) -> nn.Module:
        """Make a flattening of channels, height and width."""
        from spikingjelly.activation_based import layer

        made: nn.Module = layer.Flatten(step_mode=self.mode)
        return made

    def linear(self, inputs: int, outputs: int) -> nn.Module:
        """Make a linear layer."""
        from spikingjelly.activation_based import layer

        made: nn.Module = layer.Linear(inputs, outputs, step_mode=self.mode)
        return made


@dataclass(frozen=True, kw_only=True)
class PublishedNet(VictimRecipe):
    """Base of the published architectures.

    Images are repeated at every step (direct coding) and event frames shown one a step; the answer is the
    mean of the last layer over time. With "qcfs" the ANN with QCFS activations is trained and its IF network
    deployed. Pixels come in [0, 1]: the first batch normalisation takes the place of a fixed one.

    Args:
        steps: time steps T on images; event frames bring their own.
        neuron: "lif", "plif", "if", or "qcfs".
        tau: membrane time constant in steps.
        v_reset: potential after a hard reset; None for a soft reset.
        detach_reset: whether the gradient is cut at the reset in training.
        decay_input: whether the input current is divided by tau.
        levels, scale: of the QCFS activations.
    """

    dataset: str = "cifar10"
    steps: int = 4
    neuron: Activation = "lif"
    tau: float = 2.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    decay_input: bool = False
    levels: int = 4
    scale: float = 4.0
    schedule: Schedule = PUBLISHED

    family: ClassVar[str] = "published"
    converts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known = ("lif", "plif", "if", "qcfs") if self.converts else ("lif", "plif", "if")
        if self.neuron not in known:
            raise ConfigError(f"victim '{self.name}': neuron must be one of {known}, got '{self.neuron}'.")
        if self.neuron == "qcfs" and self.data().domain is not Domain.STATIC:
            raise ConfigError(f"victim '{self.name}': a converted network takes images, not event frames.")

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(
            name=self.name,
            shape=data.shape,
            classes=data.classes,
            domain=data.domain,
            bounds=data.bounds,
            steps=self.steps if data.domain is Domain.STATIC else data.shape[0],
        )

    def network(self, parts: Parts, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Build the network of one input (channels, height, width) without drawing its weights."""
        raise TypeError(f"{type(self).__name__} does not define network().")

    def node(self) -> nn.Module:
        """Make one spiking layer."""
        assert self.neuron != "qcfs"
        return make_neuron(
            self.neuron,
            tau=self.tau,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            decay_input=self.decay_input,
        )

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        converted = self.neuron == "qcfs"
        parts = (
            Parts("s", lambda: QcfsActivation(self.levels, self.scale))
            if converted
            else Parts("m", self.node)
        )
        net = self.network(parts, data.shape[-3:], data.classes)
        initialise(net, rng)
        if converted:
            return ConvertedNet(net, self.steps)
        return DirectCoding(net, self.steps) if data.domain is Domain.STATIC else EventFrames(net)

    def trainable(self, module: nn.Module) -> nn.Module:
        """Return what is trained: of a converted network its ANN."""
        return module.ann if isinstance(module, ConvertedNet) else module


def halved(shape: tuple[int, ...], times: int, *, name: str) -> tuple[int, int]:
    """Return height and width after so many halvings. Raises: ConfigError: no pixel is left."""
    height, width = shape[-2] >> times, shape[-1] >> times
    if not height or not width:
        raise ConfigError(
            f"victim '{name}': a {shape[-2]}x{shape[-1]} input leaves no pixel after {times} halvings. "
            "Choose a data set of larger images."
        )
    return height, width
