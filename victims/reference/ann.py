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
from robustspike.victims.layout import CIFAR
from robustspike.victims.layout import VGG6
from robustspike.victims.layout import Widths
from robustspike.victims.layout import relu_network


@dataclass(frozen=True, kw_only=True)
class AnnCnn(VictimRecipe):
    """conv-BN-ReLU for each width, a pool after each block, then linear: `LifCnn` without time.

    Args:
        widths: channels of the convolutions; a tuple among them is a block of several before one pool.
    """

    dataset: str = "digits"
    widths: Widths = (16, 32)
    schedule: Schedule = Schedule(epochs=25)

    family: ClassVar[str] = "reference"
    source: ClassVar[str] = "Plain convolutional network, cross-entropy; the shape of lif_cnn. Differs: none."

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes)

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        net = relu_network(data.shape, data.classes, self.widths, name=self.name)
        initialise(net, rng)
        return net


ANN_CNN_DIGITS = AnnCnn(name="ann_cnn.digits")
ANN_CNN_MNIST = AnnCnn(
    name="ann_cnn.mnist", dataset="mnist", widths=(8, 16), schedule=Schedule(epochs=3, batch=128)
)
ANN_CNN_CIFAR10 = AnnCnn(name="ann_cnn.cifar10", dataset="cifar10", widths=VGG6, schedule=CIFAR)
