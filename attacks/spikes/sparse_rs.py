"""Sparse random search: keep a set of flips of fixed size, swap a few at random, keep what helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.spikes.random_changes import smallest
from robustspike.attacks.spikes.reduction import meets_goal
from robustspike.attacks.spikes.reduction import past_boundary
from robustspike.attacks.spikes.reduction import reduce_changes
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

_HALVINGS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the share of swapped flips is halved."""


@dataclass(frozen=True)
class SparseRs:
    """Random search over sets of exactly eps flips, guided by the margin.

    For a minimum-norm threat the set starts with `start` flips; it loses an eighth of its members,
    chosen at random, whenever it fools the victim, and doubles when a tenth of the queries passes
    without a first success. The smallest set found is then reduced to 1-minimality.

    Args:
        queries: proposals per sample.
        share: share of the set that the first proposals swap; it is halved seven times.
        start: size of the first set of a minimum-norm threat.

    Cost: `queries` forwards; minimum-norm: and the reduction.
    """

    queries: int = 1000
    share: float = 0.3
    start: int = 64
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="sparse_rs",
        geometries=("l0",),
        domains=(Domain.STATIC, Domain.SPIKES),
        access=Access.SCORE,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Croce et al. 2022 (AAAI), arXiv:2006.12834 (Sparse-RS, L0). Differs: binary flips instead of "
            "new pixel values; own halving points of the swap share; the minimum-norm form."
        ),
        cost="1000 forwards",
    )

    def __post_init__(self) -> None:
        if min(self.queries, self.start) < 1 or not 0 < self.share <= 1:
            raise ConfigError(
                "sparse_rs: queries and start must be at least 1 and share in (0, 1], got "
                f"{self.queries}, {self.start} and {self.share}."
            )

    def swaps(self, size: Tensor, turn: int) -> Tensor:
        """Return how many members of sets of these sizes the proposal of a turn swaps."""
        halved = sum(turn >= share * self.queries for share in _HALVINGS)
        return (size.double() * self.share / 2**halved).ceil().long().clamp(min=1)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        n, cells = len(x0), x0[0].numel() if len(x0) else 0
        least = oracle.threat.is_minimum_norm
        first = self.start if least else int(float(oracle.threat.eps or 0))
        size = torch.full((n,), min(first, cells), dtype=torch.int64, device=x0.device)
        search = _Sets(oracle, x0, y)
        search.members = smallest(search.draw(rng, None), torch.ones_like(search.members), size)
        for turn in range(self.queries + 1):
            rows = oracle.active(forwards=1)
            if not len(rows):
                break
            if turn == 0:
                proposal = search.members[rows]
            else:
                swap = torch.minimum(
                    self.swaps(size[rows], turn), torch.minimum(size[rows], cells - size[rows])
                )
                proposal = search.swapped(rows, swap, rng)
            value, wrong = search.ask(proposal, rows)
            better = value >= search.value[rows]
            search.members[rows[better]] = proposal[better]
            search.value[rows[better]] = value[better]
            if not least:
                continue
            won = rows[wrong]
            search.keep_smaller(won)
            size[won] = (size[won] - (size[won] + 7) // 8).clamp(min=1)
            stuck = rows[~search.hit[rows]]
            if turn > 0 and turn % max(1, self.queries // 10) == 0:
                size[stuck] = (2 * size[stuck]).clamp(max=cells)
            search.resize(rows, size, rng)
        return search.result(rng) if least else search.inputs(search.members)


class _Sets:
    """The present set of flips of every row, its margin, and the smallest set that fooled."""

    def __init__(self, oracle: Oracle, x0: Tensor, y: Tensor) -> None:
        self.oracle, self.x0, self.y = oracle, x0, y
        self.members = torch.zeros_like(x0.flatten(1), dtype=torch.bool)
        self.value = torch.full((len(x0),), -torch.inf, dtype=torch.float64, device=x0.device)
        self.best = self.members.clone()
        self.hit = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)

    def draw(self, rng: RowStreams, rows: Tensor | None) -> Tensor:
        return rng.uniform((self.members.shape[1],), rows=rows, dtype=torch.float64)

    def inputs(self, members: Tensor, rows: Tensor | None = None) -> Tensor:
        x0 = self.x0 if rows is None else self.x0[rows]
        low, high = self.oracle.threat.bounds
        return torch.where(members.view_as(x0), low + high - x0, x0)

    def swapped(self, rows: Tensor, count: Tensor, rng: RowStreams) -> Tensor:
        """Replace `count` random members by as many random non-members."""
        members = self.members[rows]
        leave = smallest(self.draw(rng, rows), members, count)
        join = smallest(self.draw(rng, rows), ~members, count)
        return (members & ~leave) | join

    def ask(self, members: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins of sets of flips, and which of them fool the victim."""
        logits = self.oracle.logits(self.inputs(members, rows), rows)
        value = past_boundary(self.oracle, logits, rows, self.y).double()
        wrong = meets_goal(self.oracle, logits.argmax(dim=1), rows, self.y)
        return torch.nan_to_num(value, nan=-torch.inf), wrong

    def keep_smaller(self, rows: Tensor) -> None:
        smaller = rows[~self.hit[rows] | (self.members[rows].sum(dim=1) < self.best[rows].sum(dim=1))]
        self.best[smaller] = self.members[smaller]
        self.hit[rows] = True

    def resize(self, rows: Tensor, size: Tensor, rng: RowStreams) -> None:
        """Drop or add random members of the rows whose sets should have another size."""
        now = self.members[rows].sum(dim=1)
        rows, now = rows[now != size[rows]], now[now != size[rows]]
        if not len(rows):
            return
        members, order = self.members[rows], self.draw(rng, rows)
        leave = smallest(order, members, (now - size[rows]).clamp(min=0))
        join = smallest(order, ~members, (size[rows] - now).clamp(min=0))
        self.members[rows] = (members & ~leave) | join
        self.value[rows] = -torch.inf

    def result(self, rng: RowStreams) -> Tensor:
        """Reduce the smallest sets that fooled."""
        x = self.inputs(self.best)
        rows = self.hit.nonzero().squeeze(1)
        x[rows] = reduce_changes(self.oracle, self.x0, x[rows], self.y, rows).x
        return x
