"""The reference ANN: the convolutional network of the zoo with ReLU in place of spikes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise


@dataclass(frozen=True, kw_only=True)
class AnnCnn(VictimRecipe):
    """conv-BN-ReLU-pool, conv-BN-ReLU-pool, linear: the shape and training of `LifCnn` without time.

    Args:
        widths: channels of the two convolutions.
    """

    dataset: str = "digits"
    widths: tuple[int, int] = (16, 32)
    schedule: Schedule = Schedule(epochs=25)

    family: ClassVar[str] = "reference"
    source: ClassVar[str] = "Plain convolutional network, cross-entropy; the shape of lif_cnn. Differs: none."

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes)

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        channels, height, width = data.shape
        first, second = self.widths
        net = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (height // 4) * (width // 4), data.classes),
        )
        initialise(net, rng)
        return net


ANN_CNN_DIGITS = AnnCnn(name="ann_cnn.digits")
ANN_CNN_MNIST = AnnCnn(
    name="ann_cnn.mnist", dataset="mnist", widths=(8, 16), schedule=Schedule(epochs=3, batch=128)
)
ANN_CNN_CIFAR10 = AnnCnn(
    name="ann_cnn.cifar10", dataset="cifar10", widths=(32, 64), schedule=Schedule(epochs=40, batch=128)
)
