"""LinearityIQA: a ResNeXt read out at two depths, trained by a loss that only sees standardised scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Schedule
from robustspike.victims.quality.published import OnImageNet
from robustspike.victims.quality.published import PublishedIqa
from robustspike.victims.quality.trunks import resnet_parts

_HEADS = (0.1, 0.1, 1.0)
"""Weights of the losses of the two single read-outs and of the joint one."""


class Linearity(nn.Module):
    """Scores [N, 1] of normalised images [N, 3, H, W]; parameters are named as in the released code."""

    def __init__(self, depths: Sequence[int] = (3, 4, 23, 3), *, groups: int = 32, base: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(*resnet_parts(depths, groups=groups, base=base).values())
        self.dr6, self.dr7 = _reduction(1024), _reduction(2048)
        self.regr6, self.regr7 = nn.Linear(64, 1), nn.Linear(64, 1)
        self.regression = nn.Linear(128, 1)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores of the third stage, of the fourth, and of both together: [N, 1] each."""
        third = self.features[:-1](x)
        a, b = (self.dr6(third.mean(dim=(2, 3))), self.dr7(self.features[-1](third).mean(dim=(2, 3))))
        return self.regr6(a), self.regr7(b), self.regression(torch.cat([a, b], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x)[2]


def _reduction(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 1024), (1024, 256), (256, 64)):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)]
    return nn.Sequential(*layers, nn.ReLU())


def norm_in_norm(scores: Tensor, y: Tensor) -> Tensor:
    """Return the l1 distance of scores and labels [N], each centred, over its l2 norm: from 0 to 1."""
    a, b = (values - values.mean() for values in (scores, y))
    a, b = (values / (values.norm() + 1e-8) for values in (a, b))
    return (a - b).abs().sum() / (2 * len(y) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class LinearityRecipe(PublishedIqa):
    """LinearityIQA on ResNeXt-101 32x8d.

    Args:
        depths: blocks of the trunk's stages.
        groups, base: of its 3x3 convolutions.
    """

    depths: tuple[int, ...] = (3, 4, 23, 3)
    groups: int = 32
    base: int = 8
    schedule: Schedule = Schedule(epochs=30, batch=8, lr=1e-4, keep="last")

    source: ClassVar[str] = (
        "Li, Jiang & Jiang, ACM MM 2020, arXiv:2008.03889, and github.com/lidq92/LinearityIQA; p = 1, q = 2. "
        "Differs: 224x224 in place of 498x664; scores end in a sigmoid, and only their order is trained: no "
        "line is fitted to the labels' scale; drawn weights where no ImageNet weights are brought."
    )

    def network(self) -> nn.Module:
        return Linearity(self.depths, groups=self.groups, base=self.base)

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(module, OnImageNet) and isinstance(module.net, Linearity)
        found = [torch.sigmoid(head) for head in module.net.heads(module.normalised(x))]
        losses = [w * norm_in_norm(s.squeeze(1), y.to(s)) for w, s in zip(_HEADS, found, strict=True)]
        return torch.stack(losses).sum(), 100 * found[2]


LINEARITYIQA_KONIQ10K = LinearityRecipe(name="linearityiqa.koniq10k")
LINEARITYIQA_LIVE_CHALLENGE = LinearityRecipe(name="linearityiqa.live_challenge", dataset="live_challenge")
