"""DBCNN: two trunks, one for what was done to an image and one for what it shows, multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.api import Schedule
from robustspike.victims.quality.published import PublishedIqa
from robustspike.victims.quality.trunks import vgg16_features

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

_DISTORTIONS = ((48, 1), (48, 2), (64, 1), (64, 2), (64, 1), (64, 2), (128, 1), (128, 1), (128, 2))
"""Channels and stride of the trunk that its authors train to tell synthetic distortions apart."""


class Dbcnn(nn.Module):
    """Scores [N, 1] of normalised images [N, 3, H, W]; parameters are named as in the released code."""

    def __init__(self, widths: Sequence[Sequence[int]] = VGG16) -> None:
        super().__init__()
        self.features1 = vgg16_features(widths)
        layers: list[nn.Module] = []
        channels = 3
        for width, stride in _DISTORTIONS:
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.features2 = nn.Sequential(*layers)
        self.fc = nn.Linear(widths[-1][-1] * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.features1(x), self.features2(x)
        if a.shape[2:] != b.shape[2:]:
            b = functional.interpolate(b, a.shape[2:], mode="bilinear", align_corners=True)
        a, b = a.flatten(2), b.flatten(2)
        pooled = torch.bmm(a, b.transpose(1, 2)).flatten(1) / a.shape[2]
        out: Tensor = self.fc(functional.normalize((pooled + 1e-8).sqrt()))
        return out


@dataclass(frozen=True, kw_only=True)
class DbcnnRecipe(PublishedIqa):
    """DBCNN on VGG-16.

    Args:
        widths: channels of VGG's convolutions, block by block.
    """

    widths: tuple[tuple[int, ...], ...] = VGG16
    schedule: Schedule = Schedule(epochs=50, batch=8, lr=1e-5, keep="last")

    source: ClassVar[str] = (
        "Zhang et al., IEEE TCSVT 2020, arXiv:1907.02665; github.com/zwx8981/DBCNN-PyTorch. Differs: both "
        "trunks are trained at once from drawn weights, unless weights are brought: neither VGG's ImageNet "
        "weights nor the second's training on synthetic distortions; 224x224; a sigmoid ends it."
    )

    def network(self) -> nn.Module:
        return Dbcnn(self.widths)


DBCNN_KONIQ10K = DbcnnRecipe(name="dbcnn.koniq10k")
DBCNN_LIVE_CHALLENGE = DbcnnRecipe(name="dbcnn.live_challenge", dataset="live_challenge")
