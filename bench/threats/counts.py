"""Geometries on event counts: frames of whole numbers, whose cells gain and lose events.

The bounds are (0, the most events that a cell may hold).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.threats.geometry import Bounds

_MOST = 2**15
"""More events than this no cell holds (tonic counts in 16 bits); it only says where a search may end."""

_BISECTIONS = 40
"""Steps to the strength from which on events change: found to 2**-40 of the largest change."""


def _whole(x: Tensor, bounds: Bounds) -> Tensor:
    """Return the nearest counts inside the bounds, whatever an attack hands over."""
    return torch.nan_to_num(x, nan=bounds[0]).clamp(*bounds).round()


def _largest(strength: Tensor, limit: Tensor) -> Tensor:
    """Mark the `limit` [N] largest entries of every row [N, P], the lower index first among equals."""
    order = strength.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return rank < limit[:, None]


class _Counts:
    """What both budgets share: whole numbers inside the bounds, cells as elementary changes."""

    domains = ("events",)

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        raise TypeError("distance is defined by the budget")  # pragma: no cover

    def legal(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        low, high = bounds
        whole = ((x == x.round()) & (x >= low) & (x <= high)).flatten(1).all(dim=1)
        return whole & (self.distance(x0, x) <= eps)

    def units(self, x0: Tensor, x: Tensor) -> Tensor:
        """Number the changes that can be undone one by one: each changed cell is one."""
        changed = (x != x0).flatten(1)
        return (changed.cumsum(dim=1) - 1).masked_fill(~changed, -1)


class CountL0(_Counts):
    """The counts of at most eps cells change, to anything inside the bounds."""

    name = "count_l0"
    unit = "changed cells"

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        return (x != x0).flatten(1).sum(dim=1).double()

    def largest(self, shape: tuple[int, ...]) -> int:
        """Return the number of cells."""
        return math.prod(shape)

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Round to counts; keep the floor(eps) largest changes (ties: the lower index)."""
        counts = _whole(x, bounds)
        strength = (counts - x0).abs().flatten(1)
        limit = torch.full((len(x0),), int(min(eps, strength.shape[1])), device=x.device)
        keep = _largest(strength, limit).view_as(x0)
        return torch.where(keep, counts, x0)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Give floor(eps) random cells a random other count."""
        low, high = bounds
        size = x0[0].numel()
        chosen = torch.zeros(len(x0), size, dtype=torch.bool, device=x0.device)
        chosen.scatter_(1, rng.permutation(size, rows=rows)[:, : int(min(eps, size))], True)
        u = rng.uniform(x0.shape[1:], rows=rows, dtype=x0.dtype)
        other = low + (u * (high - low)).floor().clamp(max=high - low - 1)  # one fewer than there are counts
        other = other + (other >= x0).to(x0)  # the present count is left out
        return torch.where(chosen.view_as(x0), other, x0)


class CountL1(_Counts):
    """At most eps events are added or removed, all cells together."""

    name = "count_l1"
    unit = "events added or removed"

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        return (x.double() - x0.double()).abs().flatten(1).sum(dim=1)

    def largest(self, shape: tuple[int, ...]) -> int:
        """Return a number of events that no two inputs differ by; `Oracle.radius` knows the bounds."""
        return math.prod(shape) * _MOST

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Return the legal point nearest to x in the Euclidean sense, exactly (ties: the lower index).

        The m-th event that a cell gains or loses brings it nearer by less than the one before, so events
        are taken in the order of what they bring until the budget is spent. Which those are is found by
        bisection over that gain.
        """
        wish = torch.nan_to_num(x, nan=0.0, posinf=_MOST, neginf=-_MOST) - x0
        size = wish.abs().flatten(1).double()
        room = torch.where(wish > 0, bounds[1] - x0, x0 - bounds[0]).flatten(1).double()
        limit = min(math.floor(eps), size.shape[1] * _MOST) if eps < math.inf else math.inf
        events = self._events(size, room, 0.5)
        over = (events.sum(dim=1) > limit).nonzero().squeeze(1)
        if len(over):
            events[over] = self._spent(size[over], room[over], int(limit))
        return x0 + wish.sign() * events.view_as(x0).to(x0.dtype)

    @staticmethod
    def _events(size: Tensor, room: Tensor, bar: Tensor | float) -> Tensor:
        """Return how many events of every cell bring more than the bar, which starts at 1/2: [N, P]."""
        return torch.minimum((size - bar).ceil().clamp(min=0), room)

    def _spent(self, size: Tensor, room: Tensor, limit: int) -> Tensor:
        """Return the events of every cell when exactly `limit` are spent; there are more to spend."""
        low = torch.full_like(size[:, :1], 0.5)
        high = size.amax(dim=1, keepdim=True) + 1
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            fits = self._events(size, room, middle).sum(dim=1, keepdim=True) <= limit
            high, low = torch.where(fits, middle, high), torch.where(fits, low, middle)
        events = self._events(size, room, high)
        left = limit - events.sum(dim=1)
        following = (size - events).masked_fill(events >= room, -1.0)
        return events + _largest(following, left).to(events)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Draw floor(eps) cells, some perhaps twice; each gains or loses one event a draw.

        A coin says which; an empty cell gains, a full one loses, and none leaves the bounds.
        """
        low, high = bounds
        size = x0[0].numel()
        draws = int(min(eps, size * (high - low)))
        cells = (rng.uniform((draws,), rows=rows, dtype=torch.float64) * size).long()
        times = torch.zeros(len(x0), size, dtype=x0.dtype, device=x0.device)
        times.scatter_add_(1, cells, torch.ones_like(cells, dtype=x0.dtype))
        gains = rng.uniform(x0.shape[1:], rows=rows, dtype=x0.dtype) < 0.5
        gains = (gains | (x0 == low)) & (x0 != high)
        return (x0 + torch.where(gains, 1.0, -1.0).to(x0) * times.view_as(x0)).clamp(low, high)
