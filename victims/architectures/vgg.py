"""VGG-11 and VGG-16 as spiking networks, and VGGSNN for event frames."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from robustspike.victims.architectures.base import PUBLISHED
from robustspike.victims.architectures.base import Parts
from robustspike.victims.architectures.base import PublishedNet
from robustspike.victims.architectures.base import halved
from robustspike.victims.layout import Widths
from robustspike.victims.layout import blocks


@dataclass(frozen=True, kw_only=True)
class Vgg(PublishedNet):
    """Blocks of 3x3 convolutions with an average pooling after each, then linear layers.

    Args:
        widths: channels of the convolutions; a tuple is a block of several before one pool.
        tail: channels of convolutions after the last pool.
        hidden: widths of the spiking linear layers before the read-out.
    """

    widths: Widths
    tail: tuple[int, ...] = ()
    hidden: tuple[int, ...] = (4096, 4096)

    source: ClassVar[str] = (
        "VGG-11 of SNN-RAT (Ding et al., NeurIPS 2022), SR, MPPD and their successors: three pools, two "
        "spiking layers of 4096; VGG-16 of QCFS (Bu et al., ICLR 2022). Differs: mean of the last layer over "
        "time; default initial weights of PyTorch; ATan surrogate; no dropout; one schedule for all."
    )

    def network(self, parts: Parts, shape: tuple[int, ...], classes: int) -> nn.Module:
        height, width = halved(shape, len(self.widths), name=self.name)
        layers: list[nn.Module] = []
        channels = shape[0]
        for block in blocks(self.widths):
            for outputs in block:
                layers += parts.unit(channels, outputs, bias=True)
                channels = outputs
            layers.append(parts.pool())
        for outputs in self.tail:
            layers += parts.unit(channels, outputs, bias=True)
            channels = outputs
        layers.append(parts.flatten())
        features = channels * height * width
        for outputs in self.hidden:
            layers += [parts.linear(features, outputs), parts.act()]
            features = outputs
        return nn.Sequential(*layers, parts.linear(features, classes))


VGG11_CIFAR10 = Vgg(name="vgg11.cifar10", steps=8, widths=(64, (128, 256), (512, 512, 512)), tail=(512, 512))
VGG11_CIFAR100 = dataclasses.replace(VGG11_CIFAR10, name="vgg11.cifar100", dataset="cifar100")
VGG16_CIFAR10 = Vgg(
    name="vgg16.cifar10",
    widths=((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
)
VGG16_TINY_IMAGENET = dataclasses.replace(VGG16_CIFAR10, name="vgg16.tiny_imagenet", dataset="tiny_imagenet")
QCFS_VGG16_CIFAR10 = dataclasses.replace(VGG16_CIFAR10, name="qcfs_vgg16.cifar10", neuron="qcfs")


@dataclass(frozen=True, kw_only=True)
class VggSnn(Vgg):
    """VGG for event frames: eight convolutions, four pools, one linear layer."""

    widths: Widths = ((64, 128), (256, 256), (512, 512), (512, 512))
    hidden: tuple[int, ...] = ()

    source: ClassVar[str] = (
        "VGGSNN of TET, Deng et al., ICLR 2022, arXiv:2202.11946. Differs: cross-entropy on time-averaged "
        "logits; default initial weights of PyTorch; ATan surrogate; frames of 64x64, in blocks of the "
        "sensor's pixels, instead of 48x48."
    )


VGGSNN_CIFAR10_DVS = VggSnn(name="vggsnn.cifar10_dvs", dataset="cifar10_dvs(steps=10, side=64)")
VGGSNN_DVS_GESTURE = VggSnn(
    name="vggsnn.dvs_gesture",
    dataset="dvs_gesture(steps=10, side=128)",
    schedule=dataclasses.replace(PUBLISHED, flips=False),  # a mirrored right hand is another class
)
