"""What the oracle knows of one shard: the samples, what was spent, the best input found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch
from torch import Tensor

from robustspike.bench.attack.lanes import Lanes
from robustspike.bench.attack.task import Aim
from robustspike.bench.attack.task import rules_of
from robustspike.bench.attack.trace import Trace
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.data.events.events import Recording
from robustspike.bench.errors import BudgetExceeded
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.snn.estimators import Memory
from robustspike.bench.threats.geometry import Geometry
from robustspike.bench.victim.module import ModuleVictim


@dataclass
class StageCost:
    """What one named part of an attack spent, how many samples it was the first to break, and for how many
    it attacked a victim of the attacker's own."""

    forwards: int = 0
    backwards: int = 0
    hits: int = 0
    local: int = 0


_Memories = dict[tuple[GradientEstimator, int | None], list[dict[str, object]]]
"""What an estimator (for a member of a joint victim) stores, neuron by neuron."""


@dataclass(frozen=True)
class _Grant:
    """Rows that `active` has returned, none of them twice, and the passes that each can still pay.

    Args:
        version: how often the tensor had been changed.
    """

    rows: Tensor
    version: int
    forwards: int
    backwards: int

    def covers(self, rows: Tensor, forwards: int, backwards: int) -> bool:
        same = rows is self.rows and rows._version == self.version
        return same and forwards <= self.forwards and backwards <= self.backwards


EOT_LEAST = 10
"""Draws from which on an averaged gradient counts as one (ASSG's setting; defenses' minimum protocol)."""


class Meter:
    """The engine behind an oracle: one attack on one batch. The runner holds it, attacks do not.

    Attributes (all [N] tensors, one entry per attacked sample):
        forwards, backwards: passes spent so far.
        hit: whether a legal adversarial example has been seen.
        first_hit: forwards spent when the first one was seen, -1 before.
        best: the best one seen (x0 where none): the first for a bounded threat, the nearest for a
            minimum-norm threat, the largest score change for quality models and the largest margin
            for stochastic victims.
        merit: what `best` is best by (larger is better).
        closest: the legal input of largest margin (of quality models: score change) of all that were
            asked, hit or not; None until an attack wants it.
        closeness: that margin, -inf where nothing was asked.
        queries: passes spent, by which the noise of a stochastic victim differs; not counted for others.
        gradients, zero_gradients: gradients handed out, and those that were zero everywhere.
        averaged: gradients that were averages over at least `EOT_LEAST` draws of the victim's noise.
        local: whether a victim of the attacker's own was attacked for the sample.
        trace: how far the attack got after how many forwards.
        non_finite: whether the victim answered NaN or infinity.
        unanswered: whether it did so to a legal input: then nothing says that the sample stands.
        stages: passes and first hits of each named part of the attack (`Oracle.stage`).
        tallies: what the attack counted for the record (`Oracle.tally`).
        failures: what parts of the attack raised (`Oracle.failed`), one line each.
        lists: row -> the event list that an attack on raw events handed in last.
        lanes: the parts that run side by side, while they do.

    Args:
        keeps_going: keep a sample in the batch after its first hit (the attacker's own victims).
        events: returns the raw events behind the samples, if the data set has any.
    """

    def __init__(
        self,
        victim: ModuleVictim,
        threat: ThreatModel,
        geometry: Geometry,
        x0: Tensor,
        y: Tensor,
        *,
        noise: RowStreams,
        clean: Tensor,
        estimators: Callable[[str], GradientEstimator],
        targets: Tensor | None = None,
        keeps_going: bool = False,
        events: Callable[[], EventLists | None] | None = None,
    ) -> None:
        n, device = len(x0), x0.device
        self.width = max(1, len(victim.members))
        self.keeps_going = keeps_going
        self.victim, self.threat, self.geometry = victim, threat, geometry
        self.x0, self.y, self.targets, self.clean = x0, y, targets, clean
        self.rules = rules_of(victim.spec)
        self.noise, self.estimators = noise, estimators
        self.events = events
        self.lists: dict[int, Recording] = {}
        self.eps = float("inf") if threat.eps is None else float(threat.eps)
        self.forwards = torch.zeros(n, dtype=torch.int64, device=device)
        self.backwards = torch.zeros_like(self.forwards)
        self.hit = torch.zeros(n, dtype=torch.bool, device=device)
        self.first_hit = torch.full_like(self.forwards, -1)
        self.best = x0.clone()
        self.merit = torch.full((n,), -torch.inf, dtype=torch.float64, device=device)
        self.closest: Tensor | None = None
        self.closeness = torch.full_like(self.merit, -torch.inf)
        self.gradients = torch.zeros_like(self.forwards)
        self.zero_gradients = torch.zeros_like(self.forwards)
        self.averaged = torch.zeros_like(self.forwards)
        self.non_finite = torch.zeros_like(self.hit)
        self.unanswered = torch.zeros_like(self.hit)
        self.local = torch.zeros_like(self.hit)
        self.trace = Trace(n, device)
        self.queries = torch.zeros_like(self.forwards)
        self.stages: dict[str, StageCost] = {}
        self.stage: StageCost | None = None
        self.tallies: dict[str, int] = {}
        self.failures: list[str] = []
        self.lanes: Lanes | None = None
        self._memories: _Memories = {}
        self._granted: _Grant | None = None
        self._most = 0, 0  # no sample has spent more: while that is below the budget, no look at the device
        self._rows = torch.arange(n, device=device)

    @property
    def stops_at_hit(self) -> bool:
        """Whether a sample leaves the batch once a legal adversarial example is known."""
        spec = self.victim.spec
        if self.keeps_going:
            return False
        return self.rules.stops_at_hit and not (spec.stochastic or self.threat.is_minimum_norm)

    def active(
        self, forwards: int, backwards: int, *, with_hits: bool = False, among: Tensor | None = None
    ) -> Tensor:
        times = self.width * self.sharing
        forwards, backwards = times * forwards, times * backwards
        kept = [] if among is None else [among]
        if self.stops_at_hit and not with_hits:
            kept.append(~self.hit)
        if not self._surely_pay(forwards, backwards):
            kept.append(~self._over(self.forwards + forwards, self.backwards + backwards))
        rows = self._rows[reduce(and_, kept)] if kept else self._rows.clone()
        self._granted = _Grant(rows, rows._version, forwards, backwards)
        return rows

    def _surely_pay(self, forwards: int, backwards: int) -> bool:
        """Say whether every sample can pay so much, by what the one that has spent most can have spent."""
        most, budget = self._most, self.threat.budget
        return most[0] + forwards <= budget.forwards and most[1] + backwards <= budget.backwards

    def _over(self, forwards: Tensor, backwards: Tensor) -> Tensor:
        """Say which samples would be beyond their budget with so many passes spent: [N] bool."""
        budget = self.threat.budget
        return (forwards > budget.forwards) | (backwards > budget.backwards)

    @property
    def sharing(self) -> int:
        """How many parts that run side by side share what is left of a sample's budget."""
        return 1 if self.lanes is None else max(1, self.lanes.live)

    def stage_of(self, name: str) -> StageCost:
        """Return the account of a named part of the attack."""
        return self.stages.setdefault(name, StageCost())

    def charge(self, rows: Tensor, forwards: int, backwards: int, *, members: int = 0) -> None:
        """Count passes through the victim: one for each member of a joint one, or for `members` of them."""
        width = members or self.width
        forwards, backwards = width * forwards, width * backwards
        granted = self._pays(rows, forwards, backwards)
        most = 1 if granted else len(rows)  # times that a row may occur
        if not granted and not self._surely_pay(most * forwards, most * backwards):
            self._refuse_overdraft(rows, forwards, backwards)
        self._most = self._most[0] + most * forwards, self._most[1] + most * backwards
        once = torch.ones_like(rows)
        self.forwards.index_add_(0, rows, once, alpha=forwards)
        if backwards:
            self.backwards.index_add_(0, rows, once, alpha=backwards)
        if self.victim.spec.stochastic:
            self.queries.index_add_(0, rows, once)
        if self.stage is not None:
            self.stage.forwards += forwards * len(rows)
            self.stage.backwards += backwards * len(rows)

    def _refuse_overdraft(self, rows: Tensor, forwards: int, backwards: int) -> None:
        """Raise BudgetExceeded if a sample among the rows cannot pay so much for each time it occurs."""
        times = torch.zeros_like(self.forwards).index_add_(0, rows, torch.ones_like(rows))
        after_f = self.forwards + times * forwards
        after_b = self.backwards + times * backwards
        over = (times > 0) & self._over(after_f, after_b)
        if over.any():
            row, budget = int(over.nonzero()[0]), self.threat.budget
            raise BudgetExceeded(
                f"oracle: sample {row} of the batch would need {int(after_f[row])} forwards and "
                f"{int(after_b[row])} backwards, the threat model allows {budget.forwards} and "
                f"{budget.backwards}. Ask oracle.active() for the rows that can still pay."
            )

    def _pays(self, rows: Tensor, forwards: int, backwards: int) -> bool:
        """Say whether `active` said that these rows can pay so much, and take it from what it granted.

        Then nothing need be looked up on the device, which it would have to be waited for.
        """
        granted, self._granted = self._granted, None
        if granted is None or not granted.covers(rows, forwards, backwards):
            return False
        left = granted.forwards - forwards, granted.backwards - backwards
        self._granted = _Grant(rows, granted.version, *left)
        return True

    def are_distinct(self, rows: Tensor) -> bool:
        """Say whether no row is known to stand twice: those that `active` gave and nobody changed."""
        return self._granted is not None and self._granted.covers(rows, 0, 0)

    @property
    def overspent(self) -> bool:
        """Whether any sample was charged more than its budget."""
        return bool(self._over(self.forwards, self.backwards).any())

    def fresh_noise(self, rows: Tensor, draw: int) -> RowStreams | None:
        if not self.victim.spec.stochastic:
            return None
        return self.noise.fork("query", draw, rows=rows, index=self.queries[rows])

    def memories(
        self, estimator: GradientEstimator, rows: Tensor, *, frozen: bool, member: int | None = None
    ) -> list[Memory]:
        neurons = self.victim.neurons if member is None else self.victim.members[member].neurons
        stores = self._memories.setdefault((estimator, member), [{} for _ in neurons])
        distinct, n = self.are_distinct(rows), len(self.x0)
        return [Memory(rows=rows, n=n, frozen=frozen, distinct=distinct, store=store) for store in stores]

    def forget(self) -> None:
        """Clear what estimators remember."""
        self._memories.clear()

    def replace_memories(self, memories: _Memories) -> _Memories:
        """Let estimators remember something else; return what they remembered so far."""
        before, self._memories = self._memories, memories
        return before

    def remembers(self, estimator: GradientEstimator) -> bool:
        """Say whether an estimator has stored anything since the last `forget`."""
        return any(
            store for (known, _), stores in self._memories.items() if known == estimator for store in stores
        )

    def judge(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Say which answers meet the goal, and how well: ([n] bool, [n] float64)."""
        targets = None if self.targets is None else self.targets[rows]
        aim = Aim(self.threat.goal, self.y[rows], targets, self.clean[rows], self.victim.spec.classes)
        return self.rules.reached(logits, aim)

    def _note_unanswered(self, x: Tensor, rows: Tensor) -> None:
        self.non_finite[rows] = True
        self.unanswered[rows[self._legal(x, rows)]] = True

    def _legal(self, x: Tensor, rows: Tensor) -> Tensor:
        """Say which of some inputs are legal ones of their samples: [n] bool."""
        return self.geometry.legal(self.x0[rows], x, eps=self.eps, bounds=self.threat.bounds)

    def _note_closest(self, x: Tensor, rows: Tensor, merit: Tensor, tame: Tensor) -> None:
        nearer = ((merit > self.closeness[rows]) & tame).nonzero().squeeze(1)
        if not len(nearer) or self.closest is None:
            return
        x, at, merit = x[nearer].detach(), rows[nearer], merit[nearer]
        x, at, merit = _taken(self._legal(x, at).nonzero().squeeze(1), x, at, merit)
        x, at, merit = _taken(_best_of_each(at, merit), x, at, merit)
        self.closest[at] = x
        self.closeness[at] = merit

    def note(self, x: Tensor, logits: Tensor, rows: Tensor) -> None:
        """Remember legal adversarial examples among the queried inputs."""
        tame = logits.abs().amax(dim=1) < torch.inf  # no NaN either
        reached, merit = self.judge(logits, rows)
        self.trace.note(rows, self.forwards[rows], merit)
        if self.closest is not None:
            self._note_closest(x, rows, merit, tame)
        found = (reached | ~tame).nonzero().squeeze(1)  # the one look at the device where nothing is found
        if len(found) and not bool(tame[found].all()):
            wild = ~tame
            self._note_unanswered(x[wild], rows[wild])
            found = found[tame[found]]
        if not len(found):
            return
        x, at = x[found].detach(), rows[found]
        found, x, at = _taken(self._legal(x, at).nonzero().squeeze(1), found, x, at)
        if not len(found):
            return
        first = ~self.hit[at]
        if self.threat.is_minimum_norm:
            worth = -self.geometry.distance(self.x0[at], x)
        elif self.stops_at_hit:
            worth = torch.where(first, 0.0, -torch.inf).double()
        else:
            worth = merit[found]
        x, at, worth, first = _taken(_best_of_each(at, worth), x, at, worth, first)
        new = at[first]
        self.first_hit[new] = self.forwards[new]
        if self.stage is not None:
            self.stage.hits += len(new)
        self.hit[at] = True
        x, at, worth = _taken((worth > self.merit[at]).nonzero().squeeze(1), x, at, worth)
        self.best[at] = x
        self.merit[at] = worth


def _taken(places: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Return some entries of tensors, none of them twice: the tensors themselves where those are all."""
    return parts if len(places) == len(parts[0]) else tuple(part[places] for part in parts)


def _best_of_each(rows: Tensor, worth: Tensor) -> Tensor:
    """Return the places of the largest worth of every row that occurs; of equals the first."""
    if bool((rows[1:] > rows[:-1]).all()):
        return torch.arange(len(rows), device=rows.device)
    order = worth.sort(descending=True, stable=True).indices
    order = order[rows[order].sort(stable=True).indices]
    first = torch.ones(len(order), dtype=torch.bool, device=order.device)
    first[1:] = rows[order][1:] != rows[order][:-1]
    return order[first]
