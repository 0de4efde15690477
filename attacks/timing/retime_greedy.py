"""Greedy retiming: move the spikes whose move the gradient rewards most, round by round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.spikes.reduction import discrete
from robustspike.attacks.spikes.reduction import fooled
from robustspike.attacks.spikes.reduction import meets_goal
from robustspike.attacks.spikes.reduction import reduce_changes
from robustspike.attacks.timing.retime_lines import BUDGETS
from robustspike.attacks.timing.retime_lines import Lines
from robustspike.attacks.timing.retime_lines import budget_of
from robustspike.attacks.timing.retime_lines import within
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


def pair_moves(key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Match sources with targets on every line: best pair first, each used once.

    Shape: key [M, T, T] (from, to), -inf where a move is not allowed -> line, source, target [m] of
    the pairs, sorted by line. Cost: at most T passes over the lines.
    """
    key = key.clone()
    lines, steps, _ = key.shape
    pairs = torch.zeros_like(key, dtype=torch.bool)
    every = torch.arange(lines, device=key.device)
    for _ in range(steps):
        value, best = key.flatten(1).max(dim=1)
        found = every[value > -torch.inf]
        if not len(found):
            break
        source, target = best[found] // steps, best[found] % steps
        pairs[found, source, target] = True
        key[found, source, :] = -torch.inf
        key[found, :, target] = -torch.inf
    line, source, target = pairs.nonzero().unbind(dim=1)
    return line, source, target


@dataclass(frozen=True)
class RetimeGreedy:
    """First-order moves: moving a packet of n events from s to t gains n (g[t] - g[s]); the best are made.

    Each of R rounds takes a fresh gradient, spends its share of the budget on the largest positive gains
    (gain per step under the L1 budget), and freezes what moved. A target must be empty at the start of
    the round. Under the L-inf budget a round moves at most 1/R of the spikes. For a minimum-norm
    threat the budget grows by a third each round and the moves that the hit does not need are undone
    (L-inf: the reach grows step by step).

    Args:
        rounds: rounds R the budget is split over.
        window: 0 allows any time; S > 0 only times in the same window of S steps, which leaves every
            frame of S merged steps as it was.
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.

    Cost: rounds forwards + rounds backwards + 1 forward; minimum-norm: about 4 log2(budget) of each,
    and the reduction.
    """

    rounds: int = 10
    window: int = 0
    estimator: str = "native"
    loss: str = "margin"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="retime.greedy",
        geometries=BUDGETS,
        domains=(Domain.SPIKES, Domain.EVENTS),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        minimum_norm=True,
        source=(
            "Event retiming arm of shoaibdipu/Stealth_Is_a_Relation_Not_a_Property (code release 2026). "
            "Differs: margin instead of cross-entropy; budgets in spikes, steps or reach instead of a "
            "share of events; gain per step under L1; minimum-norm search with reduction. On counts all "
            "events of a cell move together."
        ),
        cost="11 forwards + 10 backwards",
    )

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.window < 0:
            raise ConfigError(
                f"retime.greedy: rounds must be at least 1 and window 0 or more, got {self.rounds} and "
                f"{self.window}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        search = _Search(oracle, x0, y, self)
        eps = budget_of(oracle)
        if eps < torch.inf:
            for share in range(1, self.rounds + 1):
                search.advance(search.budget(eps, share / self.rounds), reach=search.reach(eps))
            search.ask()
            return search.frames()
        for budget, reach, fresh in self._growing(search):
            if fresh:
                search.ask()
                search.restart()
            search.advance(budget, reach=reach)
        search.ask()
        x = search.frames()
        if search.windowed:
            return x
        rows = search.found.nonzero().squeeze(1)
        x[rows] = reduce_changes(oracle, x0, x[rows], y, rows).x
        return x

    def _growing(self, search: _Search) -> Iterator[tuple[Tensor, float, bool]]:
        """Yield (cumulative budget, reach, whether to start over) for a minimum-norm threat."""
        steps = search.lines.origin.shape[1]
        if search.windowed:
            for reach in range(1, steps):
                for share in range(1, self.rounds + 1):
                    yield search.budget(torch.inf, share / self.rounds), reach, share == 1
            return
        size, limit = 1, discrete(search.oracle, "retime.greedy").largest(search.x0.shape[1:])
        while size < limit:
            yield torch.full_like(search.spent, size), torch.inf, False
            size += max(1, size // 3)
        yield torch.full_like(search.spent, limit), torch.inf, False


class _Search:
    """Where the spikes are, which have moved, and what it cost."""

    def __init__(self, oracle: Oracle, x0: Tensor, y: Tensor, attack: RetimeGreedy) -> None:
        self.oracle, self.x0, self.y, self.attack = oracle, x0, y, attack
        self.lines = Lines(x0)
        name = oracle.geometry.name
        self.windowed = name == "retime_linf"
        self.cost = self.lines.shift if name == "retime_l1" else (self.lines.shift > 0).long()
        self.found = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        spikes = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        self.spikes = spikes.index_add_(0, self.lines.row, self.lines.origin.sum(dim=1).double())
        self.hard, self.still = self.lines.packets.clone(), self.lines.origin.clone()
        self.spent = torch.zeros_like(spikes)

    def restart(self) -> None:
        """Put the spikes of all rows that were not broken back to their origins."""
        self.hard = torch.where(self.found[self.lines.row, None], self.hard, self.lines.packets)
        self.still = self.lines.origin.clone()
        self.spent = torch.zeros_like(self.spent)

    def reach(self, eps: float) -> float:
        return eps if self.windowed else torch.inf

    def budget(self, eps: float, share: float) -> Tensor:
        """Return the cumulative budget of every row after a share of the rounds."""
        total = self.spikes if self.windowed else torch.full_like(self.spikes, eps).floor()
        return (total * share).ceil()

    def standing(self, *, forwards: int, backwards: int = 0) -> Tensor:
        rows = self.oracle.active(forwards=forwards, backwards=backwards)
        return rows[~self.found[rows]]

    def frames(self) -> Tensor:
        everyone = torch.arange(len(self.x0), device=self.x0.device)
        return self.lines.frames(self.hard, everyone)

    def advance(self, budget: Tensor, *, reach: float) -> None:
        """Spend up to the cumulative budget on the moves that the gradient rewards most."""
        rows = self.standing(forwards=1, backwards=1)
        if not len(rows):
            return
        x = self.lines.frames(self.hard, rows)
        out = self.oracle.loss_and_grad(x, rows, self.attack.loss, estimator=self.attack.estimator)
        wrong = meets_goal(self.oracle, out.logits.argmax(dim=1), rows, self.y)
        self.found[rows] = wrong
        rows, grad = rows[~wrong], out.grad[~wrong]
        at = self.lines.of(rows)
        slope = self.lines.gradients(grad, rows)
        gain = (slope[:, None, :] - slope[:, :, None]) * self.lines.packets[at][:, :, None]
        allowed = self.still[at][:, :, None] & (self.hard[at] == 0)[:, None, :] & (self.lines.shift <= reach)
        if self.attack.window:
            steps = torch.arange(slope.shape[1], device=slope.device) // self.attack.window
            allowed &= steps[:, None] == steps[None, :]
        key = gain / self.cost.clamp(min=1).to(gain)
        line, source, target = pair_moves(key.masked_fill(~allowed | ~(gain > 0), -torch.inf))
        price = self.cost[source, target]
        chosen = within(self.lines.row[at[line]], key[line, source, target], price, budget - self.spent)
        line, source, target = at[line[chosen]], source[chosen], target[chosen]
        self.hard[line, target] = self.lines.packets[line, source]
        self.hard[line, source] = 0
        self.still[line, source] = False
        self.spent.index_add_(0, self.lines.row[line], price[chosen].double())

    def ask(self) -> None:
        """See which rows are broken now."""
        rows = self.standing(forwards=1)
        x = self.lines.frames(self.hard, rows)
        self.found[rows] = fooled(self.oracle, x, rows, self.y)
