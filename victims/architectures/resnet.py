"""Residual spiking networks: ResNet-18, -19 and -20, SEW-ResNet-18 and WRN-16-4."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.victims.architectures.base import Parts
from robustspike.victims.architectures.base import PublishedNet
from robustspike.victims.architectures.base import halved
from robustspike.victims.direct.sew import Merge
from robustspike.victims.direct.sew import SewBlock

BlockKind = Literal["basic", "sew", "pre"]


class BasicBlock(nn.Module):
    """Two convolutions; the shortcut joins before the last activation."""

    def __init__(self, parts: Parts, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *parts.unit(inputs, outputs, stride=stride), parts.conv(outputs, outputs), parts.norm(outputs)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(parts.conv(inputs, outputs, kernel=1, stride=stride), parts.norm(outputs))
        )
        self.act = parts.act()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.path(x) + self.shortcut(x))
        return out


class PreActivationBlock(nn.Module):
    """Batch normalisation and activation before each convolution; the shortcut joins after the last.

    Where the shape changes, the shortcut's 1x1 convolution sees the first activation.
    """

    def __init__(self, parts: Parts, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(parts.norm(inputs), parts.act())
        self.path = nn.Sequential(
            parts.conv(inputs, outputs, stride=stride),
            parts.norm(outputs),
            parts.act(),
            parts.conv(outputs, outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else parts.conv(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        active: Tensor = self.first(x)
        kept: Tensor = x if self.shortcut is None else self.shortcut(active)
        return self.path(active) + kept


@dataclass(frozen=True, kw_only=True)
class ResNet(PublishedNet):
    """A 3x3 stem, stages of residual blocks, average over space, linear layers.

    Each stage but the first halves height and width in its first block.

    Args:
        stem: channels of the first convolution.
        widths: channels of each stage.
        depths: blocks of each stage.
        hidden: widths of spiking linear layers before the read-out.
        block: "basic", "sew" (spike-element-wise) or "pre" (pre-activation).
        merge: how a "sew" block joins its shortcut: "add", "and" or "iand".
    """

    stem: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    hidden: tuple[int, ...] = ()
    block: BlockKind = "basic"
    merge: Merge = "add"

    source: ClassVar[str] = (
        "ResNet-18 and -20: He et al., CVPR 2016, with the 3x3 stem of CIFAR; ResNet-19: Zheng et al., AAAI "
        "2021, arXiv:2011.05280, as released with TET; SEW: Fang et al., NeurIPS 2021, arXiv:2102.04159; "
        "WRN-16-4: Zagoruyko & Komodakis 2016, arXiv:1605.07146, as SNN-RAT uses it. Differs: projections "
        "where a shape changes; mean of the last layer over time; default initial weights of PyTorch; ATan "
        "surrogate; one schedule for all."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block not in ("basic", "sew", "pre") or len(self.widths) != len(self.depths):
            raise ConfigError(
                f"victim '{self.name}': block must be 'basic', 'sew' or 'pre', and widths and depths as many "
                f"as each other; got '{self.block}', {self.widths} and {self.depths}."
            )
        if self.block == "sew" and self.neuron == "qcfs":
            raise ConfigError(
                f"victim '{self.name}': a SEW block joins spikes and has no ANN to convert from. Use another "
                "neuron or block."
            )

    def _block(self, parts: Parts, inputs: int, outputs: int, stride: int) -> nn.Module:
        if self.block == "sew":
            return SewBlock(inputs, outputs, stride, self.merge, parts.act)
        kind = BasicBlock if self.block == "basic" else PreActivationBlock
        return kind(parts, inputs, outputs, stride)

    def network(self, parts: Parts, shape: tuple[int, ...], classes: int) -> nn.Module:
        halved(shape, len(self.widths) - 1, name=self.name)
        late = self.block == "pre"  # the stem's activation is the first block's
        layers = [parts.conv(shape[0], self.stem)] if late else parts.unit(shape[0], self.stem)
        channels = self.stem
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for place in range(depth):
                stride = 2 if stage and not place else 1
                layers.append(self._block(parts, channels, width, stride))
                channels = width
        if late:
            layers += [parts.norm(channels), parts.act()]
        layers += [parts.pool_all(), parts.flatten()]
        for outputs in self.hidden:
            layers += [parts.linear(channels, outputs), parts.act()]
            channels = outputs
        return nn.Sequential(*layers, parts.linear(channels, classes))


RESNET18_CIFAR10 = ResNet(name="resnet18.cifar10")
RESNET18_CIFAR100 = dataclasses.replace(RESNET18_CIFAR10, name="resnet18.cifar100", dataset="cifar100")
QCFS_RESNET18_CIFAR10 = dataclasses.replace(RESNET18_CIFAR10, name="qcfs_resnet18.cifar10", neuron="qcfs")
RESNET19_CIFAR10 = ResNet(name="resnet19.cifar10", widths=(128, 256, 512), depths=(3, 3, 2), hidden=(256,))
RESNET20_CIFAR10 = ResNet(name="resnet20.cifar10", stem=16, widths=(16, 32, 64), depths=(3, 3, 3))
SEW_RESNET18_CIFAR10 = ResNet(name="sew_resnet18.cifar10", block="sew", neuron="if")
WRN16_4_CIFAR10 = ResNet(
    name="wrn16_4.cifar10", block="pre", stem=16, widths=(64, 128, 256), depths=(2, 2, 2)
)
WRN16_4_TINY_IMAGENET = dataclasses.replace(
    WRN16_4_CIFAR10, name="wrn16_4.tiny_imagenet", dataset="tiny_imagenet"
)
