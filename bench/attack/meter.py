"""What the oracle knows of one shard: the samples, what was spent, the best input found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
        budget, times = self.threat.budget, self.width * self.sharing
        keep = (self.forwards + times * forwards <= budget.forwards) & (
            self.backwards + times * backwards <= budget.backwards
        )
        if self.stops_at_hit and not with_hits:
            keep &= ~self.hit
        if among is not None:
            keep &= among
        rows = self._rows[keep]
        if self.lanes is None:
            self._granted = _Grant(rows, rows._version, times * forwards, times * backwards)
        return rows

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
        times = torch.zeros_like(self.forwards).index_add_(0, rows, torch.ones_like(rows))
        after_f = self.forwards + times * forwards
        after_b = self.backwards + times * backwards
        budget = self.threat.budget
        over = (times > 0) & ((after_f > budget.forwards) | (after_b > budget.backwards))
        if not self._pays(rows, forwards, backwards) and over.any():
            row = int(over.nonzero()[0])
            raise BudgetExceeded(
                f"oracle: sample {row} of the batch would need {int(after_f[row])} forwards and "
                f"{int(after_b[row])} backwards, the threat model allows {budget.forwards} and "
                f"{budget.backwards}. Ask oracle.active() for the rows that can still pay."
            )
        self.forwards, self.backwards = after_f, after_b
        self.queries = self.queries + times
        if self.stage is not None:
            self.stage.forwards += forwards * len(rows)
            self.stage.backwards += backwards * len(rows)

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

    @property
    def overspent(self) -> bool:
        """Whether any sample was charged more than its budget."""
        budget = self.threat.budget
        return bool(((self.forwards > budget.forwards) | (self.backwards > budget.backwards)).any())

    def fresh_noise(self, rows: Tensor, draw: int) -> RowStreams | None:
        if not self.victim.spec.stochastic:
            return None
        return self.noise.fork("query", draw, rows=rows, index=self.queries[rows])

    def memories(
        self, estimator: GradientEstimator, rows: Tensor, *, frozen: bool, member: int | None = None
    ) -> list[Memory]:
        neurons = self.victim.neurons if member is None else self.victim.members[member].neurons
        stores = self._memories.setdefault((estimator, member), [{} for _ in neurons])
        distinct = self._granted is not None and self._granted.covers(rows, 0, 0)
        n = len(self.x0)
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
        legal = self.geometry.legal(self.x0[rows], x, eps=self.eps, bounds=self.threat.bounds)
        self.unanswered[rows[legal]] = True

    def _note_closest(self, x: Tensor, rows: Tensor, merit: Tensor) -> None:
        nearer = (merit > self.closeness[rows]).nonzero().squeeze(1)
        if not len(nearer) or self.closest is None:
            return
        at = rows[nearer]
        nearer = nearer[self.geometry.legal(self.x0[at], x[nearer], eps=self.eps, bounds=self.threat.bounds)]
        nearer = nearer[_best_of_each(rows[nearer], merit[nearer])]
        self.closest[rows[nearer]] = x[nearer].detach()
        self.closeness[rows[nearer]] = merit[nearer]

    def note(self, x: Tensor, logits: Tensor, rows: Tensor) -> None:
        """Remember legal adversarial examples among the queried inputs."""
        wild = ~torch.isfinite(logits).all(dim=1)
        reached, merit = self.judge(logits, rows)
        self.trace.note(rows, self.forwards[rows], merit)
        if self.closest is not None:
            self._note_closest(x, rows, torch.where(wild, -torch.inf, merit))
        found = (reached | wild).nonzero().squeeze(1)  # the one look at the device where nothing is found
        if len(found) and bool(wild[found].any()):
            self._note_unanswered(x[wild], rows[wild])
            found = found[~wild[found]]
        if not len(found):
            return
        at = rows[found]
        legal = self.geometry.legal(self.x0[at], x[found], eps=self.eps, bounds=self.threat.bounds)
        found, at = found[legal], at[legal]
        if not len(found):
            return
        if self.threat.is_minimum_norm:
            worth = -self.geometry.distance(self.x0[at], x[found])
        elif self.stops_at_hit:
            worth = torch.where(self.hit[at], -torch.inf, 0.0).double()
        else:
            worth = merit[found]
        pick = _best_of_each(at, worth)
        found, at, worth = found[pick], at[pick], worth[pick]
        better = worth > self.merit[at]
        target = at[better]
        self.best[target] = x[found[better]].detach()
        self.merit[target] = worth[better]
        new = at[~self.hit[at]]
        self.first_hit[new] = self.forwards[new]
        if self.stage is not None:
            self.stage.hits += len(new)
        self.hit[at] = True


def _best_of_each(rows: Tensor, worth: Tensor) -> Tensor:
    """Return the places of the largest worth of every row that occurs; of equals the first."""
    if bool((rows[1:] > rows[:-1]).all()):
        return torch.arange(len(rows), device=rows.device)
    order = worth.sort(descending=True, stable=True).indices
    order = order[rows[order].sort(stable=True).indices]
    first = torch.ones(len(order), dtype=torch.bool, device=order.device)
    first[1:] = rows[order][1:] != rows[order][:-1]
    return order[first]
