"""The reducer: undo every change that an adversarial input does not need.

For geometries made of elementary changes (flips, moves). The result is 1-minimal: it is adversarial, and
undoing any single remaining change gives the sample back its right answer. Any attack can call
`reduce_changes`; the attack `reduced` appends it to another one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DiscreteGeometry
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import margin

CHUNK = 512
"""Inputs in one forward pass when many candidates of many samples are tried together."""


class Reduction(NamedTuple):
    """What the reducer did, one entry per row it was given.

    Args:
        x: the reduced inputs.
        before, after: number of elementary changes before and after.
        minimal: whether 1-minimality was verified within the budget.
    """

    x: Tensor
    before: Tensor
    after: Tensor
    minimal: Tensor


def meets_goal(oracle: Oracle, labels: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """Say whether predicted classes [n] meet the goal of the threat model."""
    targets = oracle.targets
    return labels != y[rows] if targets is None else labels == targets[rows]


def fooled(oracle: Oracle, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """Ask whether inputs meet the goal. Shape: x [n, ...], y [N] -> [n] bool. Cost: 1 forward each."""
    hits = [oracle.labels(x[i : i + CHUNK], rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
    if not hits:
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    return meets_goal(oracle, torch.cat(hits), rows, y)


def past_boundary(oracle: Oracle, logits: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """Return how far logits [n, K] are past the decision boundary (negative: not there) [n].

    Untargeted: strongest wrong logit minus the true one; targeted: target minus strongest other.
    """
    targets = oracle.targets
    return margin(logits, y[rows]) if targets is None else -margin(logits, targets[rows])


def goal_margin(oracle: Oracle, x: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    """Ask how far inputs are past the boundary [n]. Cost: 1 forward each; needs SCORE access."""
    parts = [
        past_boundary(oracle, oracle.logits(x[i : i + CHUNK], at), at, y)
        for i in range(0, len(rows), CHUNK)
        for at in [rows[i : i + CHUNK]]
    ]
    return torch.cat(parts) if parts else x.new_zeros(0)


def affordable(oracle: Oracle, rows: Tensor, forwards: Tensor, *, with_hits: bool = False) -> Tensor:
    """Say which rows can pay for that many forwards each. Shape: [n], [n] -> [n] bool."""
    can = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for count in sorted(set(forwards.tolist())):
        here = forwards == count
        can[here] = torch.isin(rows[here], oracle.active(forwards=count, with_hits=with_hits))
    return can


def discrete(oracle: Oracle, where: str) -> DiscreteGeometry:
    """Return the oracle's geometry. Raises: ConfigError: its perturbations are not sets of changes."""
    geometry = oracle.geometry
    if not isinstance(geometry, DiscreteGeometry):
        raise ConfigError(
            f"{where}: geometry '{geometry.name}' has no elementary changes to undo. Use 'l0' or a "
            "retiming geometry, or give the geometry a `units` method."
        )
    return geometry


class _Changes:
    """The elementary changes of a batch of inputs, and which of them are still made."""

    def __init__(self, oracle: Oracle, x0: Tensor, x: Tensor, y: Tensor, rows: Tensor) -> None:
        self.oracle, self.x0, self.x, self.y, self.rows = oracle, x0, x, y, rows
        self.units = discrete(oracle, "reduction").units(x0, x)
        self.count = self.units.amax(dim=1) + 1
        width = int(self.count.max())
        self.keep = torch.arange(width, device=x.device) < self.count[:, None]
        self.open = torch.ones(len(rows), dtype=torch.bool, device=x.device)

    def compose(self, keep: Tensor, at: Tensor) -> Tensor:
        """Make the inputs of the rows `at` with the changes `keep` [len(at), units] alone."""
        units = self.units[at]
        made = (units >= 0) & keep.gather(1, units.clamp(min=0))
        return torch.where(made.view_as(self.x[at]), self.x[at], self.x0[at])

    def attempt(self, keep: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Try smaller sets; keep those that still fool. Returns the rows tried and whether they did.

        A row that cannot pay is never asked again, and so not proved minimal.
        """
        can = torch.isin(self.rows[at], self.oracle.active(forwards=1, with_hits=True))
        self.open[at[~can]] = False
        paid, keep = at[can], keep[can]
        good = fooled(self.oracle, self.compose(keep, paid), self.rows[paid], self.y)
        self.keep[paid[good]] = keep[good]
        return paid, good

    def harm(self) -> Tensor:
        """Score each change by the margin that is left without it, larger is less needed [n, units].

        Rows that cannot pay for all of their changes keep the order of the cells.
        """
        n, width = self.keep.shape
        scores = -torch.arange(width, device=self.x.device, dtype=torch.float64).repeat(n, 1)
        able = affordable(self.oracle, self.rows, self.count, with_hits=True)
        row, unit = (self.keep & able[:, None]).nonzero().unbind(dim=1)
        for i in range(0, len(row), CHUNK):
            r, u = row[i : i + CHUNK], unit[i : i + CHUNK]
            keep = self.keep[r].clone()
            keep[torch.arange(len(r)), u] = False
            left = goal_margin(self.oracle, self.compose(keep, r), self.rows[r], self.y)
            scores[r, u] = left.double()
        return scores.masked_fill(~self.keep, -torch.inf)


def _undo_prefix(changes: _Changes, order: Tensor) -> None:
    """Undo the longest prefix of the order that can go, by bisection (monotone by assumption)."""
    rank = order.argsort(dim=1)
    low, high = torch.zeros_like(changes.count), changes.count - 1
    while True:
        at = ((low < high) & changes.open).nonzero().squeeze(1)
        if not len(at):
            return
        middle = (low + high + 1) // 2
        full = torch.arange(rank.shape[1], device=rank.device) < changes.count[at, None]
        tried, good = changes.attempt(full & (rank[at] >= middle[at, None]), at)
        low[tried[good]] = middle[tried[good]]
        high[tried[~good]] = middle[tried[~good]] - 1


def _undo_blocks(changes: _Changes, order: Tensor) -> None:
    """Undo whole blocks of 2**k consecutive changes where they can go, halving the size."""
    size = 1 << max(0, int(changes.count.max()).bit_length() - 1)
    while size > 1:
        kept = changes.keep.gather(1, order)
        rank = (kept.cumsum(dim=1) - 1).masked_fill(~kept, -1).scatter(1, order, kept.cumsum(dim=1) - 1)
        left = changes.keep.sum(dim=1)
        blocks = (left + size - 1) // size
        blocks[left <= size] = 0
        for block in range(int(blocks.max())):
            at = ((blocks > block) & changes.open).nonzero().squeeze(1)
            inside = (rank[at] >= block * size) & (rank[at] < (block + 1) * size)
            changes.attempt(changes.keep[at] & ~inside, at)
        size //= 2


def _undo_singly(changes: _Changes, order: Tensor) -> None:
    """Undo single changes in circular order until none of those left can go."""
    width = order.shape[1]
    rank = order.argsort(dim=1)
    pointer, fails = torch.zeros_like(changes.count), torch.zeros_like(changes.count)
    while True:
        at = ((fails < changes.keep.sum(dim=1)) & changes.open).nonzero().squeeze(1)
        if not len(at):
            return
        wait = (rank[at] - pointer[at, None]) % width
        unit = wait.masked_fill(~changes.keep[at], width).argmin(dim=1)
        keep = changes.keep[at].clone()
        keep[torch.arange(len(at)), unit] = False
        pointer[at] = rank[at].gather(1, unit[:, None]).squeeze(1) + 1
        tried, good = changes.attempt(keep, at)
        fails[tried] = torch.where(good, 0, fails[tried] + 1)


def reduce_changes(
    oracle: Oracle,
    x0: Tensor,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    *,
    rng: RowStreams | None = None,
) -> Reduction:
    """Undo the changes that adversarial inputs do not need, down to 1-minimality.

    Without `rng`, changes are ordered by the margin that is left when each alone is undone (needs
    SCORE access), and the least needed are undone by bisection. With `rng` the order is random and
    blocks of halving size are undone first; labels are enough. Either way a pass over single changes
    follows, until a whole round undoes nothing.

    Args:
        oracle: queries are paid here; rows that run out of budget stop where they are.
        x0, y: as handed to `run`, all N rows.
        x: adversarial inputs of the given rows [n, ...]; they must fool the victim.
        rows: their positions.
        rng: random order instead of scores.

    Cost: units + log2(units) + single passes (scores), or about 2 * units + single passes (random).
    Source: the un-flip pass of pointwise attacks (Schott et al. 2019, arXiv:1805.09190) and delta
        debugging (Zeller & Hildebrandt 2002). Differs: batched over samples.
    """
    if not len(rows):
        none = torch.zeros(0, dtype=torch.int64, device=x.device)
        return Reduction(x.clone(), none, none, none.bool())
    changes = _Changes(oracle, x0[rows], x, y, rows)
    if int(changes.count.max()) == 0:
        return Reduction(x.clone(), changes.count, changes.count, changes.open)
    if rng is None:
        order = changes.harm().argsort(dim=1, descending=True, stable=True)
        _undo_prefix(changes, order)
    else:
        u = rng.uniform(changes.units.shape[1:], rows=rows, dtype=torch.float64)
        order = u[:, : changes.keep.shape[1]].masked_fill(~changes.keep, 2.0).argsort(dim=1, stable=True)
        _undo_blocks(changes, order)
    _undo_singly(changes, order)
    everyone = torch.arange(len(rows), device=x.device)
    return Reduction(
        x=changes.compose(changes.keep, everyone),
        before=changes.count,
        after=changes.keep.sum(dim=1),
        minimal=changes.open,
    )
