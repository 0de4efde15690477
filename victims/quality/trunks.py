"""Trunks of published quality models in plain torch, with the names of parameters of torchvision and timm.

So ImageNet weights of those libraries load into them. Nothing is downloaded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the shortcut joins before the last ReLU; four times as many outputs.

    Source: He et al., CVPR 2016, with the stride in the 3x3 convolution as torchvision has it; grouped: Xie
    et al., CVPR 2017 (ResNeXt). Differs: none.
    """

    def __init__(self, inputs: int, planes: int, stride: int, groups: int, base: int) -> None:
        super().__init__()
        inner, outputs = planes * base // 64 * groups, 4 * planes
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)))
        h = functional.relu(self.bn2(self.conv2(h)))
        kept = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.bn3(self.conv3(h)) + kept)


def resnet_parts(depths: Sequence[int], *, groups: int = 1, base: int = 64) -> OrderedDict[str, nn.Module]:
    """Return stem and stages of a bottleneck ResNet in their order, by torchvision's names.

    Args:
        depths: blocks of the four stages, which have 256, 512, 1024 and 2048 channels.
        groups, base: of the 3x3 convolutions; 32 and 8 for ResNeXt-101 32x8d.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    channels = 64
    for stage, depth in enumerate(depths):
        planes = 64 * 2**stage
        blocks = []
        for place in range(depth):
            stride = 2 if stage and not place else 1
            blocks.append(Bottleneck(channels, planes, stride, groups, base))
            channels = 4 * planes
        parts[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    return parts


def vgg16_features(widths: Sequence[Sequence[int]]) -> nn.Sequential:
    """Return VGG's convolutions without the last pooling, numbered as torchvision does.

    Source: Simonyan & Zisserman, ICLR 2015. Differs: none.
    """
    layers: list[nn.Module] = []
    channels = 3
    for block in widths:
        for width in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1])


class _Attention(nn.Module):
    """Self-attention of several heads; `bias` and `mask` are added to what the softmax sees."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(n, length, width))
        return mixed


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class VitBlock(nn.Module):
    """Attention and a two-layer network, each on the normalised input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    """A vision transformer that answers with the tokens of some of its blocks, side by side.

    Source: Dosovitskiy et al., ICLR 2021, arXiv:2010.11929. Differs: blocks after the last one that is asked
    for, and the classifier, are left out.

    Args:
        side: of the images in pixels; patch: of the patches.
        taken: numbers of the blocks whose tokens are returned, from 0.

    Shape: [N, 3, side, side] to [N, (side/patch)^2, width * len(taken)].
    """

    def __init__(self, *, side: int, patch: int, width: int, heads: int, taken: Sequence[int]) -> None:
        super().__init__()
        self.taken = tuple(taken)
        self.patch_embed = _PatchEmbedding(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (side // patch) ** 2, width))
        self.blocks = nn.ModuleList(VitBlock(width, heads) for _ in range(max(taken) + 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1)
        tokens = tokens + self.pos_embed
        found = []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if number in self.taken:
                found.append(tokens[:, 1:])
        return torch.cat(found, dim=2)


class WindowBlock(nn.Module):
    """A Swin block: attention inside windows, shifted by half of one in every second block.

    Source: Liu et al., ICCV 2021, arXiv:2103.14030. Differs: no stochastic depth.

    Shape: tokens [N, side^2, width] to the same.
    """

    relative_position_index: Tensor
    attn_mask: Tensor

    def __init__(self, width: int, heads: int, hidden: int, *, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, hidden)
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        apart = place.flatten(1)[:, :, None] - place.flatten(1)[:, None] + window - 1
        self.register_buffer(
            "relative_position_index", apart[0] * (2 * window - 1) + apart[1], persistent=False
        )
        self.register_buffer("attn_mask", self._mask(), persistent=False)

    def _mask(self) -> Tensor:
        """Return [windows, 1, length, length]: -100 between pixels that only the shift made neighbours."""
        edges = torch.zeros(self.side, dtype=torch.long)
        if self.shift:
            edges[-self.window :] = 1
            edges[-self.shift :] = 2
        regions = (3 * edges[:, None] + edges[None]).view(1, self.side**2, 1).float()
        parts = self._windows(regions).squeeze(2)
        return ((parts[:, :, None] != parts[:, None]).float() * -100)[:, None]

    def _windows(self, x: Tensor) -> Tensor:
        """Cut tokens [N, side^2, C] into windows [N * number, window^2, C]."""
        n, _, width = x.shape
        number = self.side // self.window
        cut = x.view(n, number, self.window, number, self.window, width).transpose(2, 3)
        return cut.reshape(n * number**2, self.window**2, width)

    def _joined(self, x: Tensor, n: int) -> Tensor:
        number = self.side // self.window
        back = x.view(n, number, number, self.window, self.window, -1).transpose(2, 3)
        return back.reshape(n, self.side**2, -1)

    def _rolled(self, x: Tensor, by: int) -> Tensor:
        if not by:
            return x
        return x.view(len(x), self.side, self.side, -1).roll((by, by), (1, 2)).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        added = (bias[None] + self.attn_mask).repeat(len(x), 1, 1, 1)
        windows = self._windows(self._rolled(self.norm1(x), -self.shift))
        mixed = self._joined(self.attn(windows, added), len(x))
        x = x + self._rolled(mixed, self.shift)
        return x + self.mlp(self.norm2(x))
