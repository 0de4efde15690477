"""What the convolutional networks of the zoo share: blocks of convolutions, each halving height and width."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split

Widths: TypeAlias = tuple[int | tuple[int, ...], ...]
"""Channels of a network's convolutions: a number is a block of one, a tuple a block of several."""

VGG6: Widths = (32, (64, 64), (128, 128))
"""The small VGG of the zoo for 32x32 images: five convolutions and a linear layer, 299 k parameters."""

CIFAR = Schedule(
    epochs=16,
    batch=128,
    lr=0.1,
    optimiser="sgd",
    weight_decay=5e-4,
    flips=True,
    shifts=4,
    smoothing=0.1,
)
"""How the zoo's networks are trained on CIFAR-10."""

CIFAR_TUNING = dataclasses.replace(CIFAR, epochs=6, share=0.5, lr=0.01)
"""How they are trained on from a trained network's weights: three times over the data, in six parts."""

START_SAMPLES = 1024
"""Training samples that set scales and thresholds where training starts from a trained network."""


def blocks(widths: Widths) -> list[tuple[int, ...]]:
    """Return the channels of the convolutions of each block."""
    return [(block,) if isinstance(block, int) else tuple(block) for block in widths]


def copy_layers(source: nn.Module, target: nn.Module) -> None:
    """Copy the convolutions, batch normalisations and linear layers of one network into another, in order.

    Raises: ConfigError: the two have other layers, or layers of other shapes.
    """
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    pairs = [[m for m in net.modules() if isinstance(m, kinds)] for net in (source, target)]
    try:
        for mine, theirs in zip(*pairs, strict=True):
            theirs.load_state_dict(mine.state_dict())
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the trained network has other layers than the one that would start from it: {error}. "
            "Start from one of the same widths and data set."
        ) from error


def activation_quantiles(ann: nn.Module, train: Split, share: float) -> list[float]:
    """Return, for each ReLU of a network, the quantile of its positive outputs on training samples."""
    found: list[float] = []

    def note(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
        positive = out[out > 0].flatten().sort().values
        found.append(float(positive[int(share * (len(positive) - 1))]))

    hooks = [m.register_forward_hook(note) for m in ann.modules() if isinstance(m, nn.ReLU)]
    try:
        with torch.no_grad():
            ann.eval()(train.x[:START_SAMPLES])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def flat_features(shape: tuple[int, ...], widths: Widths, *, name: str) -> int:
    """Return the inputs of the linear layer after len(widths) blocks that each pool by 2.

    Args:
        shape: (channels, height, width) of the input.
        widths: channels of each block.
        name: the victim, for the message.
    Raises: ConfigError: no block, one without a convolution, or so many that no pixel is left.
    """
    shrink = 1 << len(widths)
    left = (shape[-2] // shrink) * (shape[-1] // shrink)
    if not widths or not left or not all(block and min(block) >= 1 for block in blocks(widths)):
        raise ConfigError(
            f"victim '{name}': widths must be one or more positive numbers (or tuples of them) that leave "
            f"pixels of a {shape[-2]}x{shape[-1]} input after as many halvings, got {widths}."
        )
    return blocks(widths)[-1][-1] * left


def relu_network(
    shape: tuple[int, ...],
    classes: int,
    widths: Widths,
    *,
    name: str,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build conv-BN-activation for each width, a pool after each block, then linear, weights not drawn."""
    features = flat_features(shape, widths, name=name)
    layers: list[nn.Module] = []
    channels = shape[0]
    for block in blocks(widths):
        for width in block:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                activation(),
            ]
            channels = width
        layers.append(nn.AvgPool2d(2))
    layers += [nn.Flatten(), nn.Linear(features, classes)]
    return nn.Sequential(*layers)
