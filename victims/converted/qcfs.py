"""QCFS: an ANN with quantised clip-floor-shift activations, converted to integrate-and-fire neurons."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Schedule
from robustspike.victims.converted.base import ConvertedRecipe
from robustspike.victims.converted.nodes import ConvertedNet
from robustspike.victims.converted.nodes import SpikingActivation
from robustspike.victims.converted.nodes import floor_through
from robustspike.victims.layout import CIFAR_TUNING
from robustspike.victims.layout import VGG6


class QcfsActivation(SpikingActivation):
    """lambda * clip(floor(z L / lambda + 1/2) / L, 0, 1)."""

    def __init__(self, levels: int, scale: float) -> None:
        super().__init__(scale)
        self.levels = levels

    def activate(self, x: Tensor, scale: Tensor) -> Tensor:
        return scale * (floor_through(x / scale * self.levels + 0.5) / self.levels).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class QcfsCnn(ConvertedRecipe):
    """A small convolutional ANN with QCFS activations, deployed as an IF network.

    Args:
        levels: quantisation levels L of the ANN in training; any T uses the same weights.
        scale: initial lambda; the release's 8 ruins low T on small nets, 4 does not.
    """

    levels: int = 4
    scale: float = 4.0

    source: ClassVar[str] = (
        "Bu et al., ICLR 2022, arXiv:2303.04347. Differs: lambda starts at 4, AdamW one-cycle training, "
        "checkpoint chosen on validation data; IF neurons carry an ATan surrogate for attacks."
    )

    def build(self, rng: torch.Generator) -> nn.Module:
        return ConvertedNet(
            self.source_network(lambda: QcfsActivation(self.levels, self.scale), rng), self.steps
        )


QCFS_CNN_DIGITS = QcfsCnn(name="qcfs_cnn.digits")
QCFS_CNN_T8_DIGITS = dataclasses.replace(
    QCFS_CNN_DIGITS, name="qcfs_cnn_t8.digits", steps=8, shares="qcfs_cnn.digits"
)
QCFS_CNN_MNIST = QcfsCnn(
    name="qcfs_cnn.mnist", dataset="mnist", widths=(8, 16), schedule=Schedule(epochs=3, batch=128)
)
QCFS_CNN_CIFAR10 = QcfsCnn(
    name="qcfs_cnn.cifar10",
    dataset="cifar10",
    widths=VGG6,
    starts="ann_cnn.cifar10",
    schedule=CIFAR_TUNING,
)
QCFS_CNN_T8_CIFAR10 = dataclasses.replace(
    QCFS_CNN_CIFAR10, name="qcfs_cnn_t8.cifar10", steps=8, shares="qcfs_cnn.cifar10"
)
