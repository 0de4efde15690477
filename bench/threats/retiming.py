"""Retiming geometries: spikes move in time only, along their own line.

Inputs are binary frames or event counts [N, T, ...]; 0 is an empty cell. A *line* is one pixel and polarity
over all T steps. What a cell holds is one packet, a spike or all of its events, which moves as a whole. A
legal x holds the same packets on every line as x0, so any x arises from x0 by moving packets.
The size of a move is judged over the best assignment of old to new times, which is known exactly: on a line,
matching the k-th of equal packets to the k-th minimises both the largest and the total shift (the shifts are
those of a one-dimensional transport), and a packet whose cell holds as much as before need not move.

Source: Yu et al. 2026, arXiv:2602.03284 (budgets B_inf, B_1, B_0, the one-packet-a-cell rule, and packets of
several events in its integer setting).
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


def packets(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Sort what every line holds: the larger packet first, of equal ones the earlier. Cost: one sort.

    Shape: lines [..., T] -> sizes, times [..., T]; empty cells come last, of size 0.
    """
    return lines.sort(dim=-1, descending=True, stable=True)


def best_placement(
    scores: Tensor, origins: Tensor, *, reach: float, price: Tensor, sizes: Tensor | None = None
) -> Tensor:
    """Place the spikes of every line where the scores are largest, exactly (dynamic programming).

    The k-th spike may land at most `reach` steps from its origin and pays `price` a step; spikes keep
    their order, which loses nothing (see the module's text).

    Args:
        scores: value of a spike in each cell [M, T].
        origins: sorted spike times [M, T], padded with T.
        reach: largest shift; may be infinite.
        price: cost of one time step of shift [M].
        sizes: what the score counts by for the k-th packet [M, T]; 1 where not given.

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
        score = scores[:, t : t + 1] if sizes is None else scores[:, t : t + 1] * sizes
        worth = score - price[:, None] * shift
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


def swapped(lines: Tensor, sources: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:
    """Carry what the chosen sources hold to their targets. Shape: all [N, L, T]; returns the lines."""
    steps = lines.shape[2]
    padded = torch.nn.functional.pad(lines, (0, 1))
    padded = padded.scatter(2, sources.masked_fill(~chosen, steps), 0)
    return padded.scatter(2, targets.masked_fill(~chosen, steps), lines.gather(2, sources))[:, :, :steps]


def _top(values: Tensor, limit: float) -> Tensor:
    """Mark the `limit` largest entries of every row, the lower index first among equals."""
    order = values.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=values.device).expand_as(order))
    return rank < int(min(limit, values.shape[1]))


class _Retiming:
    """What the three budgets share: packets that keep their line and size, legality, the list of moves.

    A cell that is not empty is one packet, a spike or all of its events; no two packets share a cell. Of
    equal packets of a line the k-th moves to where the k-th is, which is the cheapest assignment.
    """

    name = ""
    everywhere = False  # no move of spikes changes what a victim sees that only counts them
    moves = True
    domains = ("spikes", "events")

    def size(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the smallest budget that explains a move between lines. Shape: [N, L, T] twice -> [N]."""
        raise TypeError("size is defined by the budget")  # pragma: no cover

    def largest(self, shape: tuple[int, ...]) -> int:
        """Return the largest distance between inputs (T, ...) by moves into empty cells."""
        raise TypeError("largest is defined by the budget")  # pragma: no cover

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        """Return the budget that x needs; infinite where a line gained, lost or changed a packet."""
        before, after = to_lines(x0), to_lines(x)
        kept = (packets(before)[0] == packets(after)[0]).flatten(1).all(dim=1)
        return self.size(before, after).double().masked_fill(~kept, torch.inf)

    def legal(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        distance = self.distance(x0, x)
        return (distance <= eps) & torch.isfinite(distance)

    def units(self, x0: Tensor, x: Tensor) -> Tensor:
        """Number the moves: of equal packets, the k-th vacated and the k-th filled cell of a line are one.

        Where packets of several sizes trade places, all moves of a line are one.
        """
        before, after = to_lines(x0), to_lines(x)
        alone = torch.full(before.shape, -1, dtype=torch.int64, device=x.device)
        for cells, values in (
            ((before != 0) & (before != after), before),
            ((after != 0) & (before != after), after),
        ):
            alone = torch.where(cells, _ranked(cells, values), alone)
        # Packets that change places cannot be undone one by one: in such a row a line is one change.
        tangled = ((before != after) & (before != 0) & (after != 0)).flatten(1).any(dim=1)
        lines = (before != after).any(dim=2).cumsum(dim=1)[:, :, None] - 1
        together = torch.where(before != after, lines, -1)
        return from_lines(torch.where(tangled[:, None, None], together, alone), x0).flatten(1)

    @staticmethod
    def _placed(x0: Tensor, scores: Tensor, *, reach: float, price: Tensor, bounds: Bounds) -> Tensor:
        """Place all packets of all rows, which keep their order; price [N]. Returns the lines [N, L, T]."""
        lines = to_lines(x0)
        occupied = lines != 0
        busy = occupied.any(dim=2)
        held = lines[busy]
        # The k-th packet from the start, at place k; empty cells after them.
        order = (held == 0).to(torch.uint8).sort(dim=1, stable=True).indices
        sizes = held.gather(1, order)
        same = bool(((lines == 0) | (lines == bounds[1])).all())
        cells = best_placement(
            scores[busy],
            spike_times(occupied[busy]),
            reach=reach,
            price=price[:, None].expand(busy.shape)[busy],
            sizes=None if same else sizes.to(scores) / bounds[1],
        )
        out = lines.clone()
        place = (cells.long().cumsum(dim=1) - 1).clamp(min=0)
        out[busy] = sizes.gather(1, place) * cells
        return out

    def _nearest(self, x0: Tensor, x: Tensor, lines: Tensor, eps: float, bounds: Bounds) -> Tensor:
        """Return the projected lines as frames; a legal x stays, packets out of their order included."""
        out = from_lines(lines, x0)
        if bool(((x0 == 0) | (x0 == bounds[1])).all()):
            return out  # without packets of several sizes there is no order, and nothing to repair
        stays = self.legal(x0, x, eps=eps, bounds=bounds).view(-1, *[1] * (x0.dim() - 1))
        return torch.where(stays, x.to(x0.dtype), out)

    @staticmethod
    def _random_swaps(x0: Tensor, rng: RowStreams, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pair random packets with random empty cells: lines, sources, targets, order [N, L, T].

        `order` is a uniform number for each pair, -inf where a line has no further pair.
        """
        shape = x0.shape[1:]
        scores = to_lines(rng.uniform(shape, rows=rows, dtype=torch.float64))
        order = to_lines(rng.uniform(shape, rows=rows, dtype=torch.float64))
        lines = to_lines(x0)
        sources, targets, gains = swaps(scores, lines != 0)
        return lines, sources, targets, order.masked_fill(gains == -torch.inf, -torch.inf)


def _ranked(cells: Tensor, values: Tensor) -> Tensor:
    """Number the cells of a row by line, size of their packet and time: [N, L, T]; elsewhere anything."""
    key = values.masked_fill(~cells, 0)
    order = packets(key)[1]
    flags = cells.gather(2, order)
    ranks = (flags.flatten(1).cumsum(dim=1) - 1).view_as(order)
    return torch.empty_like(ranks).scatter_(2, order, ranks)


def _shifts(before: Tensor, after: Tensor) -> Tensor:
    """Return how far every packet moved: [N, L, T], in the order of `packets`."""
    sizes, left = packets(before)
    return (left - packets(after)[1]).abs().masked_fill(sizes == 0, 0)


class RetimeLinf(_Retiming):
    """Every packet moves by at most eps time steps."""

    name = "retime_linf"
    unit = "time steps moved, of the spike that moved farthest"

    def largest(self, shape: tuple[int, ...]) -> int:
        return shape[0] - 1

    def size(self, before: Tensor, after: Tensor) -> Tensor:
        return _shifts(before, after).amax(dim=(1, 2))

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Return the legal point nearest to x in the Euclidean sense, among those that keep packets in order.

        On binary frames that is the nearest of all.
        """
        scores = _scores(x)
        free = torch.zeros(len(x0), dtype=scores.dtype, device=x.device)
        lines = self._placed(x0, scores, reach=eps, price=free, bounds=bounds)
        return self._nearest(x0, x, lines, eps, bounds)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Project uniform noise: every legal point that maximises some score; not quite uniform."""
        noise = rng.uniform(x0.shape[1:], rows=rows, dtype=torch.float64)
        return self.project(x0, noise, eps=eps, bounds=bounds)


class RetimeL1(_Retiming):
    """The shifts of all packets add up to at most eps time steps."""

    name = "retime_l1"
    unit = "time steps moved, all spikes together"

    def largest(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[1:]) * (shape[0] ** 2 // 4)

    def size(self, before: Tensor, after: Tensor) -> Tensor:
        return _shifts(before, after).sum(dim=(1, 2))

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Return a legal point near x: the nearest at the lowest price a step that meets the budget.

        Legal points stay as they are. In between two prices the budget may not be spent to the end.
        """
        scores = _scores(x)
        span = (scores.flatten(1).amax(dim=1) - scores.flatten(1).amin(dim=1)) + 1
        low, high = torch.zeros_like(span), 2 * span
        lines = to_lines(x0)
        best = self._placed(x0, scores, reach=torch.inf, price=low, bounds=bounds)
        todo = (self.size(lines, best) > eps).nonzero().squeeze(1)
        if not len(todo):
            return self._nearest(x0, x, best, eps, bounds)
        best[todo] = lines[todo]
        for _ in range(_PRICE_STEPS):
            price = (low + high) / 2
            tried = self._placed(x0[todo], scores[todo], reach=torch.inf, price=price[todo], bounds=bounds)
            fits = self.size(lines[todo], tried) <= eps
            best[todo[fits]] = tried[fits]
            high[todo[fits]], low[todo[~fits]] = price[todo[fits]], price[todo[~fits]]
        return self._nearest(x0, x, best, eps, bounds)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Move random packets to random empty cells of their lines until the next move is too far."""
        lines, sources, targets, order = self._random_swaps(x0, rng, rows)
        exists = order > -torch.inf
        far = (sources - targets).abs().masked_fill(~exists, 0).flatten(1)
        turn = order.flatten(1).sort(dim=1, descending=True, stable=True).indices
        spent = torch.empty_like(far).scatter_(1, turn, far.gather(1, turn).cumsum(dim=1))
        chosen = exists & (spent <= eps).view_as(exists)
        return from_lines(swapped(lines, sources, targets, chosen), x0)


class RetimeL0(_Retiming):
    """At most eps packets move, each as far as it likes."""

    name = "retime_l0"
    unit = "moved spikes"

    def largest(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[1:]) * (shape[0] // 2)

    def size(self, before: Tensor, after: Tensor) -> Tensor:
        return ((before != 0) & (before != after)).sum(dim=(1, 2))

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Return the legal point nearest to x in the Euclidean sense, exactly on binary frames.

        There the m-th swap of a line gains at most as much as the one before, so taking the floor(eps)
        largest positive gains of all lines together is optimal. Packets of several sizes are paired with
        empty cells in the same order, and gain by their size.
        """
        lines = to_lines(x0)
        sources, targets, gains = swaps(_scores(x), lines != 0)
        if not bool(((x0 == 0) | (x0 == bounds[1])).all()):
            gains = torch.where(gains == -torch.inf, gains, gains * lines.gather(2, sources))
        chosen = _top(gains.flatten(1), eps).view_as(gains) & (gains > 0)
        return self._nearest(x0, x, swapped(lines, sources, targets, chosen), eps, bounds)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Move floor(eps) random packets (or all that have an empty cell) to random empty cells."""
        lines, sources, targets, order = self._random_swaps(x0, rng, rows)
        chosen = _top(order.flatten(1), eps).view_as(order) & (order > -torch.inf)
        return from_lines(swapped(lines, sources, targets, chosen), x0)
