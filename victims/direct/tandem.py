"""Tandem learning and the spike-count rule: spikes forward, the gradient of an ANN on spike counts."""

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


class TandemLayer(nn.Module):
    """Convolution (and BatchNorm) into IF neurons with soft reset and threshold 1.

    Spiking: per step the current W~ s[t] + b~/T, with BatchNorm's running statistics folded into W~
    and b~. Twin: ReLU of the same layer on the spike counts of the layer before, which gives the
    derivative, while the value stays the true spike count.

    Args:
        convolution: with bias.
        norm: BatchNorm, or None for the spike-count rule.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate

        self.convolution = convolution
        self.norm = norm
        self.neuron = neuron.IFNode(
            v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m", detach_reset=True
        )

    def draw_parameters(self, rng: torch.Generator) -> None:
        """Draw BatchNorm's gain from N(0, 2^2), as released."""
        if self.norm is not None:
            with torch.no_grad():
                self.norm.weight.normal_(0.0, 2.0, generator=rng)

    def spikes(self, s: Tensor) -> Tensor:
        """Return the spike train of the layer: s [T, N, ...] spikes or currents -> [T, N, ...]."""
        bias = self.convolution.bias
        assert bias is not None
        current = self.convolution(s.flatten(0, 1)) - bias[:, None, None]
        if self.norm is not None:
            assert self.norm.running_var is not None and self.norm.running_mean is not None
            gain = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
            current = current * gain[:, None, None]
            bias = (bias - self.norm.running_mean) * gain + self.norm.bias
        current = current + bias[:, None, None] / len(s)
        self.neuron.reset()
        out: Tensor = self.neuron(current.unflatten(0, (len(s), -1)))
        self.neuron.reset()
        return out

    def twin(self, s: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return (spike train, spike counts); only the counts carry a gradient, the twin's.

        Args:
            s: spike train of the layer before [T, N, ...].
            counts: its counts [N, ...] with their graph.
        """
        if self.norm is not None:
            pre = self.norm(self.convolution(counts))
        else:
            bias = self.convolution.bias
            assert bias is not None
            pre = self.convolution(counts) + (len(s) - 1) * bias[:, None, None]
        activation = pre.relu()
        with torch.no_grad():
            out = self.spikes(s)
        return out, (activation - activation.detach()) + out.sum(dim=0)


class TandemNet(nn.Module):
    """Three tandem layers and a linear layer on spike counts; [N, C, H, W] -> [N, K]."""

    def __init__(self, layers: list[TandemLayer], classifier: nn.Linear, steps: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.classifier = classifier
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """Answer by the spiking network; its gradient goes through the neurons' surrogates."""
        s = x.unsqueeze(0).expand(self.steps, *x.shape)
        for layer in self.layers:
            s = layer.spikes(s)  # type: ignore[operator]
        out: Tensor = self.classifier(s.sum(dim=0).flatten(1))
        return out

    def twin(self, x: Tensor) -> Tensor:
        """Return the same logits with the gradient of the ANN twin, the one it is trained by."""
        s, counts = x.unsqueeze(0).expand(self.steps, *x.shape), x * self.steps
        for layer in self.layers:
            s, counts = layer.twin(s, counts)  # type: ignore[operator]
        out: Tensor = self.classifier(counts.flatten(1))
        return out


@dataclass(frozen=True, kw_only=True)
class TandemCnn(VictimRecipe):
    """Three convolutions (strides 1, 2, 2) of IF neurons, trained through their ANN twin.

    Args:
        steps: time steps T.
        widths: channels of the first and of the later convolutions.
        normalised: BatchNorm in the twin (tandem learning); False is the spike-count rule.
    """

    dataset: str = "digits"
    steps: int = 8
    widths: tuple[int, int] = (16, 32)
    normalised: bool = True
    schedule: Schedule = Schedule()

    family: ClassVar[str] = "direct"
    source: ClassVar[str] = (
        "Tandem learning: Wu et al., TNNLS 2021, arXiv:1907.01167; spike-count rule: Wu et al., IJCNN 2019, "
        "arXiv:1902.05705 (normalised=False). Differs: no dropout, AdamW one-cycle, small net; the two "
        "coupled networks are one graph with the twin's derivative."
    )

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes, steps=self.steps)

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        channels, height, width = data.shape
        first, second = self.widths

        def layer(inputs: int, outputs: int, stride: int) -> TandemLayer:
            norm = nn.BatchNorm2d(outputs, eps=1e-4, momentum=0.9) if self.normalised else None
            return TandemLayer(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), norm)

        layers = [layer(channels, first, 1), layer(first, second, 2), layer(second, second, 2)]
        net = TandemNet(
            layers, nn.Linear(second * -(-height // 4) * -(-width // 4), data.classes), self.steps
        )
        initialise(net, rng)
        return net

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the twin's logits."""
        logits = module.twin(x)  # type: ignore[operator]
        return nn.functional.cross_entropy(logits, y), logits


TANDEM_CNN_DIGITS = TandemCnn(name="tandem_cnn.digits")
COUNT_CNN_DIGITS = dataclasses.replace(
    TANDEM_CNN_DIGITS, name="count_cnn.digits", normalised=False, schedule=Schedule(lr=2e-3)
)
