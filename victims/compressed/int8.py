"""An SNN trained with 8-bit weights and 8-bit errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from torch.nn.utils import parametrize

from robustspike.victims.compressed.rounding import round_through
from robustspike.victims.direct.lif_cnn import LifCnn


class Int8Weight(nn.Module):
    """Round a weight to 127 steps on either side of zero; the step is a power of two."""

    def forward(self, w: Tensor) -> Tensor:
        step = 2.0 ** (w.detach().abs().amax().clamp(min=1e-12).log2().ceil() - 7)
        return (round_through(w / step)).clamp(-127, 127) * step


class _RoundError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        g = grads[0]
        step = 2.0 ** (g.abs().amax().clamp(min=1e-30).log2().ceil() - 7)
        return (g / step).round().clamp(-127, 127) * step


class RoundedError(nn.Module):
    """Pass values unchanged; round the error that flows back to 8 bits, in training only.

    An attack on the trained network sees the exact gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        out: Tensor = _RoundError.apply(x)  # type: ignore[no-untyped-call]
        return out


@dataclass(frozen=True, kw_only=True)
class Int8Cnn(LifCnn):
    """The convolutional SNN of `LifCnn`, trained with 8-bit weights and 8-bit errors.

    Activations between layers are spikes, averaged by pooling, so they need no rounding.
    """

    family: ClassVar[str] = "compressed"
    source: ClassVar[str] = (
        "In the style of WAGEUBN, Yang et al. 2020, arXiv:1909.02384. Differs, simplified: only weights and "
        "errors are rounded to 8 bits (shift scales); BatchNorm, membranes, gradients of weights and the "
        "optimiser stay real-valued; spikes instead of 8-bit activations."
    )

    def body(self, channels: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for child in super().body(channels):
            layers.append(child)
            if isinstance(child, nn.Conv2d | nn.Linear):
                layers.append(RoundedError())
        return nn.Sequential(*layers)

    def build(self, rng: torch.Generator) -> nn.Module:
        net = super().build(rng)
        for child in net.modules():
            if isinstance(child, nn.Conv2d | nn.Linear):
                parametrize.register_parametrization(child, "weight", Int8Weight())
        return net


INT8_CNN_DIGITS = Int8Cnn(name="int8_cnn.digits")
