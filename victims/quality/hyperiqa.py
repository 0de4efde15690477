"""HyperIQA: a network that makes the weights of another one from the image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.victims.quality.published import PublishedIqa
from robustspike.victims.quality.regressors import SCORE_RANGE
from robustspike.victims.quality.trunks import resnet_parts

_CHANNELS, _LOCAL, _FIELD = 112, 16, 7
"""Of the features that make the weights; local features of a stage; their side."""

_TARGET = (224, 112, 56, 28, 14)
"""Widths of the network whose weights are made, from its input."""


class _LocalTrunk(nn.Module):
    """ResNet-50 with a small linear read-out, over windows of 7x7, after each stage."""

    def __init__(self, depths: Sequence[int]) -> None:
        super().__init__()
        for name, part in resnet_parts(depths).items():
            self.add_module(name, part)
        for stage, (channels, few, cells) in enumerate(
            [(256, 16, 64), (512, 32, 16), (1024, 64, 4)], start=1
        ):
            pool = nn.Sequential(nn.Conv2d(channels, few, 1, bias=False), nn.AvgPool2d(_FIELD))
            self.add_module(f"lda{stage}_pool", pool)
            self.add_module(f"lda{stage}_fc", nn.Linear(few * cells, _LOCAL))
        self.lda4_pool = nn.AvgPool2d(_FIELD)
        self.lda4_fc = nn.Linear(2048, _TARGET[0] - 3 * _LOCAL)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        local = []
        for name in ("conv1", "bn1", "relu", "maxpool"):
            x = self.get_submodule(name)(x)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
            pooled = self.get_submodule(f"lda{stage}_pool")(x).flatten(1)
            local.append(self.get_submodule(f"lda{stage}_fc")(pooled))
        return x, torch.cat(local, dim=1)


class HyperIqa(nn.Module):
    """Scores [N, 1] of normalised images [N, 3, 224, 224]; parameters are named as in the released code."""

    def __init__(self, depths: Sequence[int] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.res = _LocalTrunk(depths)
        self.conv1 = nn.Sequential(
            nn.Conv2d(2048, 1024, 1), nn.ReLU(), nn.Conv2d(1024, 512, 1), nn.ReLU(),
            nn.Conv2d(512, _CHANNELS, 1), nn.ReLU(),
        )  # fmt: skip
        for number, (inputs, outputs) in enumerate(itertools.pairwise(_TARGET), start=1):
            makes = nn.Conv2d(_CHANNELS, inputs * outputs // _FIELD**2, 3, padding=1)
            self.add_module(f"fc{number}w_conv", makes)
            self.add_module(f"fc{number}b_fc", nn.Linear(_CHANNELS, outputs))
        self.fc5w_fc = nn.Linear(_CHANNELS, _TARGET[-1])
        self.fc5b_fc = nn.Linear(_CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        deep, q = self.res(x)
        features = self.conv1(deep)
        mean = features.mean(dim=(2, 3))
        for number, width in enumerate(_TARGET[1:], start=1):
            weight = self.get_submodule(f"fc{number}w_conv")(features).view(len(x), width, -1)
            bias = self.get_submodule(f"fc{number}b_fc")(mean)
            q = torch.sigmoid(torch.bmm(weight, q.unsqueeze(2)).squeeze(2) + bias)
        return (self.fc5w_fc(mean) * q).sum(dim=1, keepdim=True) + self.fc5b_fc(mean)


@dataclass(frozen=True, kw_only=True)
class HyperIqaRecipe(PublishedIqa):
    """HyperIQA on ResNet-50.

    Args:
        depths: blocks of the trunk's stages.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)

    source: ClassVar[str] = (
        "Su et al., CVPR 2020, and github.com/SSL92/hyperIQA. Differs: one crop from the middle in place of "
        "25 random ones; scores end in a sigmoid; one rate of learning, and drawn weights where no ImageNet "
        "weights are brought."
    )

    def network(self) -> nn.Module:
        return HyperIqa(self.depths)

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        scores = module(x)
        return functional.l1_loss(scores.squeeze(1), y.to(scores)) / SCORE_RANGE[1], scores


HYPERIQA_KONIQ10K = HyperIqaRecipe(name="hyperiqa.koniq10k")
HYPERIQA_LIVE_CHALLENGE = HyperIqaRecipe(name="hyperiqa.live_challenge", dataset="live_challenge")
