"""IntegerNet: integer weights, integer activations, shifts in place of BatchNorm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.victims.compressed.rounding import floor_through
from robustspike.victims.compressed.rounding import round_through
from robustspike.victims.layout import flat_features


class _IntegerWeight:
    """Mixin: the weight in use is clip(round(w)) in `bits`; the shadow w starts from 2^(bits-3) N(0, 1)."""

    bits: int
    weight: Tensor

    def draw_parameters(self, rng: torch.Generator) -> None:
        """Draw the shadow weights."""
        with torch.no_grad():
            self.weight.normal_(0.0, 2.0 ** (self.bits - 3), generator=rng).clamp_(-self.top, self.top)

    @property
    def top(self) -> int:
        """The largest weight."""
        return int(2 ** (self.bits - 1) - 1)

    def integers(self) -> Tensor:
        """Return the integer weights, with a straight-through gradient."""
        return round_through(self.weight).clamp(-self.top, self.top)


class IntegerConv(_IntegerWeight, nn.Conv2d):
    """A 3x3 convolution with integer weights and no bias."""

    def __init__(self, inputs: int, outputs: int, *, bits: int) -> None:
        nn.Conv2d.__init__(self, inputs, outputs, 3, padding=1, bias=False)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.integers(), padding=1)


class IntegerLinear(_IntegerWeight, nn.Linear):
    """A linear layer with integer weights and no bias."""

    def __init__(self, inputs: int, outputs: int, *, bits: int) -> None:
        nn.Linear.__init__(self, inputs, outputs, bias=False)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.integers())


class ShiftNorm(nn.Module):
    """Normalise and quantise at once: clip(floor((x - round(m)) / 2^k)), m and k per channel.

    k = round(log2 sigma) + offset maps 4 sigma (unsigned) or +-4 sigma (signed) to the range of `bits`.
    `exact` gives the value before floor and clip.
    """

    mean: Tensor
    deviation: Tensor
    started: Tensor

    def __init__(self, channels: int, *, bits: int, signed: bool, decay: float = 0.9) -> None:
        super().__init__()
        half = 2 ** (bits - 1) - 1
        self.low = -half if signed else 0
        self.high = half if signed else 2**bits - 1
        self.offset = (3 if signed else 2) - bits
        self.decay = decay
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("started", torch.zeros(()))

    def exact(self, x: Tensor) -> Tensor:
        """Return (x - round(m)) / 2^k."""
        mean, deviation = self.mean, self.deviation
        if self.training:
            axes = [0, *range(2, x.dim())]
            mean, deviation = x.mean(dim=axes), x.std(dim=axes)
            with torch.no_grad():
                step = 1 - self.decay if float(self.started) else 1.0
                self.mean.lerp_(mean, step)
                self.deviation.lerp_(deviation, step)
                self.started.fill_(1.0)
        shape = (1, -1) + (1,) * (x.dim() - 2)
        k = round_through(deviation.clamp(min=1e-6).log2()) + self.offset
        return (x - round_through(mean).view(shape)) / (2**k).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        return floor_through(self.exact(x)).clamp(self.low, self.high)


class IntegerNet(nn.Module):
    """Convolutions with max pooling and a linear layer on integers; pixels are rounded to levels."""

    def __init__(self, body: nn.Sequential, last: ShiftNorm, levels: int) -> None:
        super().__init__()
        self.body = body
        self.last = last
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(round_through(x * self.levels)))
        return out

    def twin(self, x: Tensor) -> Tensor:
        """Return the logits before their own rounding and clipping, which saturate and tie."""
        return self.last.exact(self.body(round_through(x * self.levels)))


@dataclass(frozen=True, kw_only=True)
class IntegerCnn(VictimRecipe):
    """A convolutional network that needs integers only.

    Args:
        widths: channels of the convolutions; their number is the depth.
        bits: width of weights and activations.
        levels: integer levels of the input; 16 is exact for digits, 255 for 8-bit images.
    """

    dataset: str = "digits"
    widths: tuple[int, ...] = (16, 32)
    bits: int = 4
    levels: int = 16
    schedule: Schedule = Schedule(epochs=25, lr=0.1)

    family: ClassVar[str] = "compressed"
    source: ClassVar[str] = (
        "IntegerNet, Guo et al., ISCAS 2022, arXiv:2106.00127. Differs: small net, AdamW one-cycle for 25 "
        "epochs (SGD as published reaches less on small data)."
    )

    def __post_init__(self) -> None:
        if self.bits < 2 or self.levels < 1:
            raise ConfigError(
                f"victim '{self.name}': bits must be 2 or more and levels 1 or more, got {self.bits} and "
                f"{self.levels}."
            )

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes)

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        layers: list[nn.Module] = []
        channels = data.shape[0]
        for width in self.widths:
            layers += [
                IntegerConv(channels, width, bits=self.bits),
                ShiftNorm(width, bits=self.bits, signed=False),
                nn.MaxPool2d(2),
            ]
            channels = width
        features = flat_features(data.shape, self.widths, name=self.name)
        body = nn.Sequential(*layers, nn.Flatten(), IntegerLinear(features, data.classes, bits=self.bits))
        net = IntegerNet(body, ShiftNorm(data.classes, bits=self.bits, signed=True), self.levels)
        initialise(net, rng)
        return net

    def notes(self, certificate: Mapping[str, Any]) -> tuple[str, ...]:
        return (
            f"gradients are straight-through; inputs are rounded to {self.levels} levels, so eps acts as "
            f"round({self.levels} eps) / {self.levels}",
        )


INTEGER_CNN_DIGITS = IntegerCnn(name="integer_cnn.digits")
