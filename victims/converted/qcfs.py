"""QCFS: an ANN with quantised clip-floor-shift activations, converted to integrate-and-fire neurons."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise


class _Floor(torch.autograd.Function):
    """Floor with the derivative of the identity (straight-through)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


class QcfsActivation(nn.Module):
    """lambda * clip(floor(z L / lambda + 1/2) / L, 0, 1) in the ANN; an IF neuron in the SNN.

    The neuron works in units of lambda: threshold 1, soft reset, initial potential 1/2, and its spikes
    are multiplied by lambda. In spiking mode the input is [T*N, ...] with time outermost.
    """

    def __init__(self, levels: int, scale: float) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate

        self.levels = levels
        self.scale = nn.Parameter(torch.tensor(scale))
        self.neuron = neuron.IFNode(
            v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m", detach_reset=True
        )
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.abs()
        if not self.steps:
            quantised: Tensor = _Floor.apply(x / scale * self.levels + 0.5)  # type: ignore[no-untyped-call]
            return scale * (quantised / self.levels).clamp(0, 1)
        sequence = (x / scale).unflatten(0, (self.steps, -1))
        self.neuron.v = 0.5
        spikes: Tensor = self.neuron(sequence)
        return (spikes * scale).flatten(0, 1)


class ConvertedNet(nn.Module):
    """The spiking view of an ANN built with `QcfsActivation`: constant input, mean output over T steps."""

    def __init__(self, ann: nn.Module, steps: int) -> None:
        super().__init__()
        self.ann = ann
        self.steps = steps

    def sequence(self, x: Tensor) -> Tensor:
        """Return the logits of every time step: [T, N, K]."""
        nodes = [m for m in self.ann.modules() if isinstance(m, QcfsActivation)]
        for node in nodes:
            node.steps = self.steps
        try:
            out: Tensor = self.ann(x.unsqueeze(0).expand(self.steps, *x.shape).flatten(0, 1))
        finally:
            for node in nodes:
                node.steps = 0
        return out.unflatten(0, (self.steps, -1))

    def twin(self, x: Tensor) -> Tensor:
        """Return the logits [N, K] of the ANN, for attacks that differentiate it instead."""
        out: Tensor = self.ann(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x).mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class QcfsCnn(VictimRecipe):
    """A small convolutional ANN with QCFS activations, deployed as an IF network.

    Args:
        steps: time steps T of the spiking network; any T uses the same weights.
        levels: quantisation levels L of the ANN in training.
        scale: initial lambda; the release's 8 ruins low T on small nets, 4 does not.
        widths: channels of the two convolutions.
    """

    dataset: str = "digits"
    steps: int = 4
    levels: int = 4
    scale: float = 4.0
    widths: tuple[int, int] = (16, 32)
    schedule: Schedule = Schedule()

    family: ClassVar[str] = "converted"
    source: ClassVar[str] = (
        "Bu et al., ICLR 2022, arXiv:2303.04347. Differs: lambda starts at 4, AdamW one-cycle training, "
        "checkpoint chosen on validation data; IF neurons carry an ATan surrogate for attacks."
    )

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes, steps=self.steps)

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        channels, height, width = data.shape
        first, second = self.widths
        ann = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            QcfsActivation(self.levels, self.scale),
            nn.AvgPool2d(2),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            QcfsActivation(self.levels, self.scale),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (height // 4) * (width // 4), data.classes),
        )
        initialise(ann, rng)
        return ConvertedNet(ann, self.steps)

    def trainable(self, module: nn.Module) -> nn.Module:
        """Return the ANN: it is what is trained."""
        assert isinstance(module, ConvertedNet)
        return module.ann


QCFS_CNN_DIGITS = QcfsCnn(name="qcfs_cnn.digits")
QCFS_CNN_T8_DIGITS = dataclasses.replace(
    QCFS_CNN_DIGITS, name="qcfs_cnn_t8.digits", steps=8, shares="qcfs_cnn.digits"
)
