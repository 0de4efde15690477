"""MANIQA: a vision transformer's tokens, attention by channels and by windows, a weighted mean of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.api import Schedule
from robustspike.victims.quality.published import SIDE
from robustspike.victims.quality.published import PublishedIqa
from robustspike.victims.quality.trunks import Vit
from robustspike.victims.quality.trunks import WindowBlock

PATCH = 8
_BLOCKS = (6, 7, 8, 9)
"""Blocks of the transformer whose tokens are read, from 0."""

_WINDOW, _SCALE = 4, 0.8


class TransposedAttention(nn.Module):
    """Attention between channels: every channel is one vector over all places. x [N, C, places]."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.c_q, self.c_k, self.c_v = (nn.Linear(places, places) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(self.c_q(x), self.c_k(x), self.c_v(x))
        return x + mixed.transpose(1, 2).reshape(x.shape)  # laid out anew, as the released code does


class _Stage(nn.Module):
    """Two channel attentions, fewer channels, and two pairs of window blocks. x [N, C, places]."""

    def __init__(self, inputs: int, outputs: int, *, side: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(TransposedAttention(side**2), TransposedAttention(side**2))
        self.conv = nn.Conv1d(inputs, outputs, 1)
        self.windows = nn.Sequential(
            *(
                WindowBlock(outputs, heads, hidden, side=side, window=_WINDOW, shift=shift)
                for shift in (0, _WINDOW // 2, 0, _WINDOW // 2)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.channels(x))
        return x + _SCALE * self.windows(x.transpose(1, 2)).transpose(1, 2)


class Maniqa(nn.Module):
    """Scores [N, 1] of normalised images [N, 3, 224, 224]."""

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        side = SIDE // PATCH
        self.vit = Vit(side=SIDE, patch=PATCH, width=width, heads=heads, taken=_BLOCKS)
        self.stages = nn.Sequential(
            _Stage(len(_BLOCKS) * width, width, side=side, heads=4, hidden=width),
            _Stage(width, width // 2, side=side, heads=4, hidden=width),
        )
        self.fc_score, self.fc_weight = (
            nn.Sequential(
                nn.Linear(width // 2, width // 2), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width // 2, 1)
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stages(self.vit(x).transpose(1, 2)).transpose(1, 2)
        weights = torch.sigmoid(self.fc_weight(tokens))
        return (self.fc_score(tokens) * weights).sum(dim=1) / weights.sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class ManiqaRecipe(PublishedIqa):
    """MANIQA on ViT-B/8.

    Args:
        width: of the transformer's tokens.
        heads: of its attention.
    """

    width: int = 768
    heads: int = 12
    schedule: Schedule = Schedule(epochs=30, batch=8, lr=1e-5, keep="last")

    source: ClassVar[str] = (
        "Yang et al., CVPR Workshops 2022, arXiv:2204.08958. Differs: scores of places are not cut off at 0 "
        "and their mean ends in a sigmoid; no convolution after the window blocks and no stochastic depth; "
        "one crop from the middle; parameters are named as timm's in the transformer and in our own way "
        "after it, so that released weights of the whole do not load; drawn weights where none are brought."
    )

    def network(self) -> nn.Module:
        return Maniqa(self.width, self.heads)


MANIQA_KONIQ10K = ManiqaRecipe(name="maniqa.koniq10k")
MANIQA_LIVE_CHALLENGE = ManiqaRecipe(name="maniqa.live_challenge", dataset="live_challenge")
