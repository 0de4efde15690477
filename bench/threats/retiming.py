"""Retiming geometries: spikes move in time only, along their own line.

Inputs are binary frames [N, T, ...]; 0 is an empty cell. A *line* is one pixel and polarity over all
T steps. A legal x holds as many spikes on every line as x0, so any x arises from x0 by moving spikes.
The size of a move is judged over the best assignment of old to new times, which is known exactly:
on a line, matching the k-th spike to the k-th spike minimises both the largest and the total shift
(the shifts are those of a one-dimensional transport), and a spike whose cell stays occupied need not move.

Source: Yu et al. 2026, arXiv:2602.03284 (budgets B_inf, B_1, B_0 and the one-packet-a-cell rule).
Differs: the distance is the minimum over assignments, not the bookkeeping of the attack that moved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.threats.geometry import Bounds

_PRICE_STEPS = 20
"""Bisection steps for the price of a time step: found to 2**-20 of the range of the scores."""


def to_lines(x: Tensor) -> Tensor:
    """Rearrange frames to lines. Shape: [N, T, ...] -> [N, L, T]."""
    return x.reshape(len(x), x.shape[1], math.prod(x.shape[2:])).transpose(1, 2)


def from_lines(lines: Tensor, like: Tensor) -> Tensor:
    """Rearrange lines to frames of the shape of `like`. Shape: [N, L, T] -> [N, T, ...]."""
    return lines.transpose(1, 2).reshape(like.shape)


def _scores(x: Tensor) -> Tensor:
    """Return finite scores on lines, whatever an attack hands over."""
    return to_lines(torch.nan_to_num(x, nan=0.0, posinf=1e6, neginf=-1e6).clamp(-1e6, 1e6))


def spike_times(occupied: Tensor) -> Tensor:
    """Return the sorted times of the spikes of every line, padded with T. Shape: [..., T] -> [..., T]."""
    steps = occupied.shape[-1]
    times = torch.arange(steps, device=occupied.device).expand(occupied.shape)
    return times.masked_fill(~occupied, steps).sort(dim=-1).values


def best_placement(scores: Tensor, origins: Tensor, *, reach: float, price: Tensor) -> Tensor:
    """Place the spikes of every line where the scores are largest, exactly (dynamic programming).

    The k-th spike may land at most `reach` steps from its origin and pays `price` a step; spikes keep
    their order, which loses nothing (see the module's text).

    Args:
        scores: value of a spike in each cell [M, T].
        origins: sorted spike times [M, T], padded with T.
        reach: largest shift; may be infinite.
        price: cost of one time step of shift [M].

    Shape: returns the occupied cells [M, T] bool.
    Cost: T steps on tables of M * T.
    """
    lines, steps = scores.shape
    count = (origins < steps).sum(dim=1)
    value = scores.new_full((lines, steps + 1), -torch.inf)
    value[:, 0] = 0.0
    takes = []
    for t in range(steps):
        shift = (origins - t).abs()
        worth = scores[:, t : t + 1] - price[:, None] * shift
        worth = worth.masked_fill((shift > reach) | (origins == steps), -torch.inf)
        taken = value[:, :-1] + worth
        take = torch.zeros_like(value, dtype=torch.bool)
        take[:, 1:] = taken > value[:, 1:]
        value = torch.where(take, torch.nn.functional.pad(taken, (1, 0), value=-torch.inf), value)
        takes.append(take)
    occupied = torch.zeros(lines, steps, dtype=torch.bool, device=scores.device)
    for t in reversed(range(steps)):
        here = takes[t].gather(1, count[:, None]).squeeze(1)
        occupied[:, t] = here
        count = count - here.to(count.dtype)
    return occupied


def swaps(scores: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pair the worst occupied cell of every line with its best empty one, the next with the next.

    Shape: scores and occupied [N, L, T] -> source times, target times, gains [N, L, T]; the gain
    (score of the target minus score of the source) is -inf where a line has no further pair and
    does not increase along a line.
    """
    held = scores.masked_fill(~occupied, torch.inf).sort(dim=2, stable=True)
    free = scores.masked_fill(occupied, -torch.inf).sort(dim=2, descending=True, stable=True)
    return held.indices, free.indices, free.values - held.values


def swapped(occupied: Tensor, sources: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:
    """Carry out the chosen swaps. Shape: all [N, L, T]; returns the occupied cells."""
    steps = occupied.shape[2]
    padded = torch.nn.functional.pad(occupied, (0, 1))
    padded = padded.scatter(2, sources.masked_fill(~chosen, steps), False)
    return padded.scatter(2, targets.masked_fill(~chosen, steps), True)[:, :, :steps]


def _top(values: Tensor, limit: float) -> Tensor:
    """Mark the `limit` largest entries of every row, the lower index first among equals."""
    order = values.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=values.device).expand_as(order))
    return rank < int(min(limit, values.shape[1]))


class _Retiming:
    """What the three budgets share: count preservation, legality, the list of moves."""

    name = ""
    everywhere = False  # no move of spikes changes what a victim sees that only counts them
    moves = True

    def size(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the smallest budget that explains the move. Shape: bool [N, L, T] twice -> [N]."""
        raise TypeError("size is defined by the budget")  # pragma: no cover

    def largest(self, shape: tuple[int, ...]) -> int:
        """Return the largest distance between two inputs of the shape (T, ...)."""
        raise TypeError("largest is defined by the budget")  # pragma: no cover

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        """Return the budget that x needs; infinite where a line gained or lost spikes."""
        before, after = to_lines(x0 != 0), to_lines(x != 0)
        kept = (before.sum(dim=2) == after.sum(dim=2)).all(dim=1)
        return self.size(before, after).double().masked_fill(~kept, torch.inf)

    def legal(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        binary = ((x == 0) | (x == bounds[1])).flatten(1).all(dim=1)
        distance = self.distance(x0, x)
        return binary & (distance <= eps) & torch.isfinite(distance)

    def units(self, x0: Tensor, x: Tensor) -> Tensor:
        """Number the moves: the k-th vacated and the k-th filled cell of a line are one move."""
        before, after = to_lines(x0 != 0), to_lines(x != 0)
        numbers = torch.full(before.shape, -1, dtype=torch.int64, device=x.device)
        for cells in (before & ~after, after & ~before):
            ranks = (cells.flatten(1).cumsum(dim=1) - 1).view_as(numbers)
            numbers = torch.where(cells, ranks, numbers)
        return from_lines(numbers, x0).flatten(1)

    @staticmethod
    def _frames(occupied: Tensor, x0: Tensor, bounds: Bounds) -> Tensor:
        return from_lines(occupied, x0).to(x0.dtype) * bounds[1]

    @staticmethod
    def _placed(x0: Tensor, scores: Tensor, *, reach: float, price: Tensor) -> Tensor:
        """Place all lines of all rows; price [N]. Returns the occupied cells [N, L, T]."""
        occupied = to_lines(x0 != 0)
        busy = occupied.any(dim=2)
        out = occupied.clone()
        out[busy] = best_placement(
            scores[busy],
            spike_times(occupied[busy]),
            reach=reach,
            price=price[:, None].expand(busy.shape)[busy],
        )
        return out

    @staticmethod
    def _random_swaps(x0: Tensor, rng: RowStreams, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pair random occupied with random empty cells: occupied, sources, targets, order [N, L, T].

        `order` is a uniform number for each pair, -inf where a line has no further pair.
        """
        shape = x0.shape[1:]
        scores = to_lines(rng.uniform(shape, rows=rows, dtype=torch.float64))
        order = to_lines(rng.uniform(shape, rows=rows, dtype=torch.float64))
        occupied = to_lines(x0 != 0)
        sources, targets, gains = swaps(scores, occupied)
        return occupied, sources, targets, order.masked_fill(gains == -torch.inf, -torch.inf)


class RetimeLinf(_Retiming):
    """Every spike moves by at most eps time steps."""

    name = "retime_linf"
    unit = "time steps moved, of the spike that moved farthest"

    def largest(self, shape: tuple[int, ...]) -> int:
        return shape[0] - 1

    def size(self, before: Tensor, after: Tensor) -> Tensor:
        return (spike_times(before) - spike_times(after)).abs().amax(dim=(1, 2))

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Return the legal point nearest to x in the Euclidean sense, exactly."""
        scores = _scores(x)
        free = torch.zeros(len(x0), dtype=scores.dtype, device=x.device)
        return self._frames(self._placed(x0, scores, reach=eps, price=free), x0, bounds)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Project uniform noise: every legal point that maximises some score; not quite uniform."""
        noise = rng.uniform(x0.shape[1:], rows=rows, dtype=torch.float64)
        return self.project(x0, noise, eps=eps, bounds=bounds)


class RetimeL1(_Retiming):
    """The shifts of all spikes add up to at most eps time steps."""

    name = "retime_l1"
    unit = "time steps moved, all spikes together"

    def largest(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[1:]) * (shape[0] ** 2 // 4)

    def size(self, before: Tensor, after: Tensor) -> Tensor:
        flow = before.long().cumsum(dim=2) - after.long().cumsum(dim=2)
        return flow.abs().sum(dim=(1, 2))

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Return a legal point near x: the nearest at the lowest price a step that meets the budget.

        Legal points stay as they are. In between two prices the budget may not be spent to the end.
        """
        scores = _scores(x)
        span = (scores.flatten(1).amax(dim=1) - scores.flatten(1).amin(dim=1)) + 1
        low, high = torch.zeros_like(span), 2 * span
        occupied = to_lines(x0 != 0)
        best = self._placed(x0, scores, reach=torch.inf, price=low)
        todo = (self.size(occupied, best) > eps).nonzero().squeeze(1)
        if not len(todo):
            return self._frames(best, x0, bounds)
        best[todo] = occupied[todo]
        for _ in range(_PRICE_STEPS):
            price = (low + high) / 2
            tried = self._placed(x0[todo], scores[todo], reach=torch.inf, price=price[todo])
            fits = self.size(occupied[todo], tried) <= eps
            best[todo[fits]] = tried[fits]
            high[todo[fits]], low[todo[~fits]] = price[todo[fits]], price[todo[~fits]]
        return self._frames(best, x0, bounds)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Move random spikes to random empty cells of their lines until the next move is too far."""
        occupied, sources, targets, order = self._random_swaps(x0, rng, rows)
        exists = order > -torch.inf
        far = (sources - targets).abs().masked_fill(~exists, 0).flatten(1)
        turn = order.flatten(1).sort(dim=1, descending=True, stable=True).indices
        spent = torch.empty_like(far).scatter_(1, turn, far.gather(1, turn).cumsum(dim=1))
        chosen = exists & (spent <= eps).view_as(exists)
        return self._frames(swapped(occupied, sources, targets, chosen), x0, bounds)


class RetimeL0(_Retiming):
    """At most eps spikes move, each as far as it likes."""

    name = "retime_l0"
    unit = "moved spikes"

    def largest(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[1:]) * (shape[0] // 2)

    def size(self, before: Tensor, after: Tensor) -> Tensor:
        return (before & ~after).sum(dim=(1, 2))

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Return the legal point nearest to x in the Euclidean sense, exactly.

        On a line the m-th swap gains at most as much as the one before, so taking the floor(eps)
        largest positive gains of all lines together is optimal.
        """
        occupied = to_lines(x0 != 0)
        sources, targets, gains = swaps(_scores(x), occupied)
        chosen = _top(gains.flatten(1), eps).view_as(gains) & (gains > 0)
        return self._frames(swapped(occupied, sources, targets, chosen), x0, bounds)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Move floor(eps) random spikes (or all that have an empty cell) to random empty cells."""
        occupied, sources, targets, order = self._random_swaps(x0, rng, rows)
        chosen = _top(order.flatten(1), eps).view_as(order) & (order > -torch.inf)
        return self._frames(swapped(occupied, sources, targets, chosen), x0, bounds)
