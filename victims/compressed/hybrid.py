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
from robustspike.victims.layout import blocks
from robustspike.victims.layout import relu_network


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
    """One block with ReLU, then blocks with neurons and linear over T steps."""

    family: ClassVar[str] = "compressed"
    source: ClassVar[str] = (
        "Hybrid ANN-SNN: the first block of the reference ANN in front of lif_cnn's second. Differs: no "
        "single paper; the spiking part is trained jointly by STBP."
    )

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        body = list(self.body(data.shape[0]))
        whole = list(relu_network(data.shape, data.classes, self.widths, name=self.name))
        stem = 3 * len(blocks(self.widths)[0]) + 1
        net = HybridNet(nn.Sequential(*whole[:stem]), DirectCoding(nn.Sequential(*body[stem:]), self.steps))
        initialise(net, rng)
        return net


HYBRID_CNN_DIGITS = HybridCnn(name="hybrid_cnn.digits")
