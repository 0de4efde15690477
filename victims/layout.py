"""What the convolutional networks of the zoo share: one block per width, each halving height and width."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from robustspike.bench.api import ConfigError


def flat_features(shape: tuple[int, ...], widths: tuple[int, ...], *, name: str) -> int:
    """Return the inputs of the linear layer after len(widths) blocks that each pool by 2.

    Args:
        shape: (channels, height, width) of the input.
        widths: channels of each block; their number is the depth.
        name: the victim, for the message.
    Raises: ConfigError: no block, or so many that no pixel is left.
    """
    shrink = 1 << len(widths)
    left = (shape[-2] // shrink) * (shape[-1] // shrink)
    if not widths or min(widths) < 1 or not left:
        raise ConfigError(
            f"victim '{name}': widths must be one or more positive numbers that leave pixels of a "
            f"{shape[-2]}x{shape[-1]} input after as many halvings, got {widths}."
        )
    return widths[-1] * left


def relu_network(
    shape: tuple[int, ...],
    classes: int,
    widths: tuple[int, ...],
    *,
    name: str,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build conv-BN-activation-pool for each width, then linear, without drawing its weights."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in widths:
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            activation(),
            nn.AvgPool2d(2),
        ]
        channels = width
    layers += [nn.Flatten(), nn.Linear(flat_features(shape, widths, name=name), classes)]
    return nn.Sequential(*layers)
