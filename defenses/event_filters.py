"""Noise filters of event cameras in front of a victim: background activity, and over-active pixels.

Each exists on raw recordings (a plain function, for one's own pipeline) and on frames (a defense, part of
the victim). A filter keeps or drops spikes, which has no gradient; the frame versions come with one, exact
for the effect of a single flip on what other spikes are kept, and straight through for the spike itself, so
that attacks can see past them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Domain
from robustspike.bench.api import Recording
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec

_PAPER = "Marchisio et al., R-SNN, IROS 2021, and DVS-Attacks, IJCNN 2021, arXiv:2107.00415"


def keep_supported(events: Recording, *, radius: int, window: int, size: tuple[int, int]) -> Recording:
    """Drop background activity: keep events that a neighbour preceded by less than a time window.

    Args:
        events: a recording in order of time.
        radius: neighbours are pixels at Chebyshev distance 1..radius; polarity does not matter.
        window: microseconds; an event is kept if a neighbour fired less than this before it.
        size: the sensor's (height, width).

    Source: Marchisio et al., IJCNN 2021, arXiv:2107.00415, background-activity filter. Differs: nothing has
    fired before the first event (the release starts its memory at time 0, so that early events pass), and
    row and column 0 are filtered too.
    """
    seen = np.full((size[0] + 2 * radius, size[1] + 2 * radius), -np.inf)
    keep = np.zeros(len(events), dtype=bool)
    for place, event in enumerate(events):
        x, y, t = int(event["x"]), int(event["y"]), int(event["t"])
        own = seen[y + radius, x + radius]
        keep[place] = t - own < window
        seen[y : y + 2 * radius + 1, x : x + 2 * radius + 1] = t
        seen[y + radius, x + radius] = own
    return events[keep]


def drop_overactive(events: Recording, *, limit: int, size: tuple[int, int]) -> Recording:
    """Drop all events of every pixel that has more than `limit` of them, both polarities together."""
    pixel = events["y"].astype(np.int64) * size[1] + events["x"]
    counts = np.bincount(pixel, minlength=size[0] * size[1])
    kept: Recording = events[counts[pixel] <= limit]
    return kept


class Filtered(nn.Module):
    """A filter on frames [N, T, C, H, W] in front of a network.

    Args:
        network: the victim.
        keep: frames -> (which spikes are kept, 0 or 1; the same with a slope), both broadcastable.
        adaptive: whether the filter passes a gradient; without, a dropped spike has none.
    """

    def __init__(
        self, network: nn.Module, keep: Callable[[Tensor], tuple[Tensor, Tensor]], *, adaptive: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.keep = keep
        self.adaptive = adaptive

    def filtered(self, x: Tensor) -> Tensor:
        """Return the frames that the network sees."""
        hard, soft = self.keep(x)
        if not self.adaptive:
            return x * hard
        through = (x - x.detach()) * (1 - hard)
        return x * hard + through + x.detach() * (soft - soft.detach())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(self.filtered(x))
        return out


class _EventFilter(DefenseBase):
    """What the two filters share: they fit event frames, and change nothing in training."""

    adaptive: bool

    def fits(self, recipe: VictimRecipe) -> str | None:
        if recipe.spec().domain is not Domain.SPIKES:
            return "filters events; the victim sees still images"
        return None

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        del spec
        return Filtered(module, self.keep, adaptive=self.adaptive)

    def keep(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Say which spikes of frames are kept: 0 or 1, and the same with a slope."""
        raise TypeError(f"{type(self).__name__} does not define keep().")


def _by_flip(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x with a gradient for cells that are off only, and for cells that are on only."""
    on = x > 0.5
    return torch.where(on, x.detach(), x), torch.where(on, x, x.detach())


@dataclass(frozen=True)
class BackgroundFilter(_EventFilter):
    """Keep a spike only if a neighbouring pixel fired in the same or one of the last frames.

    Args:
        radius: neighbours are pixels at Chebyshev distance 1..radius; polarity does not matter.
        window: frames that count, the present one included.
        adaptive: whether attacks get the straight-through gradient.

    Shape: frames [N, T, C, H, W].
    """

    radius: int = 1
    window: int = 1
    adaptive: bool = True
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="background_filter",
        trains=False,
        hides_gradient=True,
        adaptive=("straight_through",),
        source=f"{_PAPER}. Differs: on frames, where spikes of one frame support each other.",
    )

    def __post_init__(self) -> None:
        if self.radius < 1 or self.window < 1:
            raise ConfigError(
                "background_filter: radius and window must be at least 1, got "
                f"{self.radius} and {self.window}."
            )

    def keep(self, x: Tensor) -> tuple[Tensor, Tensor]:
        adding, removing = (self._support(part) for part in _by_flip(x))
        support = adding.detach()
        hard = (support > 0.5).to(x.dtype)
        slope = torch.where(support < 0.5, adding - support, 0.0)  # one more supports it
        slope = slope + torch.where((support - 1).abs() < 0.5, removing - support, 0.0)  # the only one goes
        return hard, hard + slope

    def _support(self, x: Tensor) -> Tensor:
        """Count the neighbouring spikes of every pixel in its window: [N, T, 1, H, W]."""
        active = x.sum(dim=2, keepdim=True)
        n, steps, _, height, width = active.shape
        ring = torch.ones(1, 1, 2 * self.radius + 1, 2 * self.radius + 1, dtype=x.dtype, device=x.device)
        ring[..., self.radius, self.radius] = 0
        near = nn.functional.conv2d(active.view(n * steps, 1, height, width), ring, padding=self.radius)
        near = near.view(n, steps, 1, height, width)
        support = near
        for lag in range(1, min(self.window, steps)):
            support = support + torch.cat([torch.zeros_like(near[:, :lag]), near[:, :-lag]], dim=1)
        return support


@dataclass(frozen=True)
class MaskFilter(_EventFilter):
    """Silence every pixel that fires more often than a limit, both polarities and all times together.

    Args:
        limit: most spikes of a pixel in a sample; a pixel with more loses them all.
        adaptive: whether attacks get the straight-through gradient.

    Shape: frames [N, T, C, H, W].
    """

    limit: int = 4
    adaptive: bool = True
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="mask_filter",
        trains=False,
        hides_gradient=True,
        adaptive=("straight_through", "dvs_mask_dash.l0"),
        source=f"{_PAPER}. Differs: none.",
    )

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError(f"mask_filter: limit must be 0 or more, got {self.limit}.")

    def keep(self, x: Tensor) -> tuple[Tensor, Tensor]:
        adding, removing = (part.sum(dim=(1, 2), keepdim=True) for part in _by_flip(x))
        count = adding.detach()
        hard = (count < self.limit + 0.5).to(x.dtype)
        slope = torch.where((count - self.limit).abs() < 0.5, count - adding, 0.0)  # one more drops all
        slope = slope + torch.where((count - self.limit - 1).abs() < 0.5, count - removing, 0.0)
        return hard, hard + slope
