"""A hybrid: an analog first layer, computed once, in front of a spiking network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import initialise
from robustspike.victims.direct.lif_cnn import DirectCoding
from robustspike.victims.direct.lif_cnn import LifCnn


class HybridNet(nn.Module):
    """ReLU features, computed once per image, drive a spiking network at every step."""

    def __init__(self, stem: nn.Module, spiking: DirectCoding) -> None:
        super().__init__()
        self.stem = stem
        self.spiking = spiking

    def sequence(self, x: Tensor) -> Tensor:
        """Return the logits of every time step: [T, N, K]."""
        return self.spiking.sequence(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x).mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class HybridCnn(LifCnn):
    """conv-BN-ReLU-pool, then conv-BN-neuron-pool and linear over T steps."""

    family: ClassVar[str] = "compressed"
    source: ClassVar[str] = (
        "Hybrid ANN-SNN: the first block of the reference ANN in front of lif_cnn's second. Differs: no "
        "single paper; the spiking part is trained jointly by STBP."
    )

    def build(self, rng: torch.Generator) -> nn.Module:
        spiking = nn.Sequential(*list(self.body(self.data().shape[0]))[4:])
        stem = nn.Sequential(
            nn.Conv2d(self.data().shape[0], self.widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(self.widths[0]),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        net = HybridNet(stem, DirectCoding(spiking, self.steps))
        initialise(net, rng)
        return net


HYBRID_CNN_DIGITS = HybridCnn(name="hybrid_cnn.digits")
