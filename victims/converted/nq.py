"""NQ: quantised activations trained with noise of the size of the conversion's residual error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import RowStreams
from robustspike.bench.api import Split
from robustspike.victims.converted.base import ConvertedRecipe
from robustspike.victims.converted.nodes import ConvertedNet
from robustspike.victims.converted.nodes import SpikingActivation
from robustspike.victims.converted.nodes import activations
from robustspike.victims.converted.nodes import floor_through


class NoisyQuantised(SpikingActivation):
    """lambda * floor(L clip(z / lambda, 0, 1) + 1/2) / L, plus sigma * normal noise while training.

    Clipping comes first, so the straight-through gradient is zero outside [0, lambda].
    """

    sigma: Tensor
    draws_noise = True

    def __init__(self, levels: int, scale: float) -> None:
        super().__init__(scale)
        self.levels = levels
        self.noise: RowStreams | None = None
        self.register_buffer("sigma", torch.zeros(()))

    def activate(self, x: Tensor, scale: Tensor) -> Tensor:
        out = scale * floor_through((x / scale).clamp(0, 1) * self.levels + 0.5) / self.levels
        if self.training and self.noise is not None and float(self.sigma) > 0:
            out = out + self.sigma * self.noise.normal(x.shape[1:], dtype=x.dtype)
        return out


@dataclass(frozen=True, kw_only=True)
class NqCnn(ConvertedRecipe):
    """A small convolutional ANN whose activations carry the residual error of conversion as noise.

    Args:
        levels: quantisation levels L.
        scale: initial lambda.
        noise_steps: time steps of the SNN that the residual error is measured with.
    """

    levels: int = 4
    scale: float = 4.0
    noise_steps: int = 4

    source: ClassVar[str] = (
        "Huang et al., TNNLS 2025, arXiv:2404.17456. Differs: lambda starts at 4 (release: 8), AdamW "
        "one-cycle; the residual is measured once an epoch over the whole validation split."
    )

    def build(self, rng: torch.Generator) -> nn.Module:
        return ConvertedNet(
            self.source_network(lambda: NoisyQuantised(self.levels, self.scale), rng), self.steps
        )

    def after_epoch(self, module: nn.Module, epoch: int, validation: Split) -> None:
        """Set each layer's sigma to the deviation of the SNN's mean output from the ANN's activation."""
        module.eval()
        net = ConvertedNet(module, self.noise_steps)
        x = validation.x[:1024].to(next(module.parameters()).device)
        ann, snn = activations(net, x, spiking=False), activations(net, x, spiking=True)
        for node, a, s in zip(net.nodes, ann, snn, strict=True):
            assert isinstance(node, NoisyQuantised)
            node.sigma.copy_((a - s).std())
        module.train()


NQ_CNN_DIGITS = NqCnn(name="nq_cnn.digits")
