"""Random flips and random moves at a matched budget: the controls that every spike attack must beat."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor

from robustspike.attacks.spikes.reduction import discrete
from robustspike.attacks.spikes.reduction import fooled
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

Draw = Callable[[Tensor, float], Tensor]
"""(rows, eps) -> one random legal point per row."""


def growing_budgets(oracle: Oracle, limit: int) -> Iterator[float]:
    """Yield the budgets to draw at: eps itself, or 1, 2, 4, ... up to `limit` for a minimum-norm threat."""
    if oracle.threat.eps is not None:
        yield min(float(oracle.threat.eps), float(limit))
        return
    size = 1
    while size < limit:
        yield float(size)
        size *= 2
    yield float(limit)


def draw_until_fooled(oracle: Oracle, x0: Tensor, y: Tensor, draw: Draw, *, restarts: int) -> Tensor:
    """Draw `restarts` points at each budget until a row is fooled; return the last (or first good) draw."""
    x = x0.clone()
    done = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
    largest = discrete(oracle, "random changes").largest(x0.shape[1:])
    for eps in growing_budgets(oracle, int(min(largest, oracle.radius))):
        for _ in range(restarts):
            rows = oracle.active(forwards=1)
            rows = rows[~done[rows]]
            if not len(rows):
                return x
            x[rows] = draw(rows, eps)
            done[rows] = fooled(oracle, x[rows], rows, y)
    return x


@dataclass(frozen=True)
class RandomFlips:
    """The best of several random sets of exactly eps flips.

    For a minimum-norm threat the sizes 1, 2, 4, ... are tried until one fools (reduce the result with
    `Reduced`). The success probability of one draw is estimated by hits / forwards of the record.

    Args:
        restarts: sets drawn per budget.
        mode: "any" cell, "delete" only spikes, "insert" only where there is none, or "matched":
            half deletions (rounded down, at most the spikes there are), the rest insertions.

    Cost: `restarts` forwards per budget.
    """

    restarts: int = 50
    mode: Literal["any", "delete", "insert", "matched"] = "any"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="flip.random",
        geometries=("l0",),
        domains=(Domain.STATIC, Domain.SPIKES),
        access=Access.LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source="Control: uniform flips without replacement at matched L0. Differs: none.",
        cost="50 forwards at each budget",
    )

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise ConfigError(f"flip.random: restarts must be at least 1, got {self.restarts}.")
        if self.mode not in ("any", "delete", "insert", "matched"):
            raise ConfigError(
                f"flip.random: mode must be 'any', 'delete', 'insert' or 'matched', got '{self.mode}'."
            )

    def flips(self, x0: Tensor, eps: float, rng: RowStreams, rows: Tensor) -> Tensor:
        """Draw the cells to flip: [n, cells] bool, exactly min(eps, eligible cells) per row."""
        active = (x0 != 0).flatten(1)
        order = rng.uniform((active.shape[1],), rows=rows, dtype=torch.float64)
        size = int(min(eps, active.shape[1]))
        if self.mode == "any":
            return smallest(order, torch.ones_like(active), torch.full_like(rows, size))
        delete = {"delete": size, "insert": 0, "matched": size // 2}[self.mode]
        removed = torch.minimum(active.sum(dim=1), torch.full_like(rows, delete))
        added = torch.zeros_like(removed) if self.mode == "delete" else size - removed
        return smallest(order, active, removed) | smallest(order, ~active, added)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        low, high = oracle.threat.bounds

        def draw(rows: Tensor, eps: float) -> Tensor:
            flip = self.flips(x0[rows], eps, rng, rows).view_as(x0[rows])
            return torch.where(flip, low + high - x0[rows], x0[rows])

        return draw_until_fooled(oracle, x0, y, draw, restarts=self.restarts)


def smallest(order: Tensor, eligible: Tensor, count: Tensor) -> Tensor:
    """Mark the `count` eligible cells with the smallest numbers (below 2) of every row.

    Shape: order and eligible [n, cells], count [n] -> [n, cells] bool.
    """
    width = min(int(count.max()) if len(count) else 0, order.shape[1])
    best = order.masked_fill(~eligible, 2.0).topk(width, dim=1, largest=False, sorted=True).indices
    chosen = torch.zeros_like(eligible)
    chosen.scatter_(1, best, torch.arange(width, device=order.device) < count[:, None])
    return chosen & eligible


@dataclass(frozen=True)
class RandomRetiming:
    """The best of several random retimings at the budget of the threat model.

    Args:
        restarts: retimings drawn per budget; a minimum-norm threat tries the budgets 1, 2, 4, ...

    Cost: `restarts` forwards per budget.
    """

    restarts: int = 50
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="retime.random",
        geometries=("retime_l0", "retime_l1", "retime_linf"),
        domains=(Domain.SPIKES, Domain.EVENTS),
        access=Access.LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source="Control: random count-preserving moves at matched budget. Differs: none.",
        cost="50 forwards at each budget",
    )

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise ConfigError(f"{self.spec.name}: restarts must be at least 1, got {self.restarts}.")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        def draw(rows: Tensor, eps: float) -> Tensor:
            return oracle.geometry.sample(x0[rows], eps=eps, bounds=oracle.threat.bounds, rng=rng, rows=rows)

        return draw_until_fooled(oracle, x0, y, draw, restarts=self.restarts)


@dataclass(frozen=True)
class RandomCounts(RandomRetiming):
    """The best of several random changes of event counts at the budget of the threat model.

    Cost: `restarts` forwards per budget.
    """

    spec: ClassVar[AttackSpec] = replace(
        RandomRetiming.spec,
        name="count.random",
        geometries=("count_l0", "count_l1"),
        domains=(Domain.EVENTS,),
        source="Control: random counts in eps cells, or eps random events, at matched budget. Differs: none.",
    )
