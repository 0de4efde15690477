"""SDA: grow a set of spike flips by gradient and finite differences, then shrink it."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import margin
from robustspike.bench.api import registry


@dataclass(frozen=True)
class Sda:
    """Sparse dynamic attack: the fewest spike flips that change the decision.

    Generation, iteration n = 1, 2, ...: the n * k_init elements with the largest gradient in the
    direction of their flip are tried one by one; all that do not raise the loss are flipped together.
    Reduction: flips are undone, those with the smallest effect first, as long as a binary search over
    the sorted prefix finds the decision still changed. All samples advance together and the single
    flips of all of them share the victim's batches; each sample's result depends on itself alone.

    On event counts a flip adds events to a cell, or takes some away, as the gradient says: one step of the
    published rule x - sign(gradient), with the bounds of the counts in place of 0 and 1. The release itself
    writes 1 - x into a chosen cell, which is no count where a cell holds two events or more.

    Args:
        k_init: candidates in the first iteration, and how many more each further one gets.
        iterations: most iterations of the generation.
        estimator: registry name of the gradient estimator.
        tol: a loss change of at most this size counts as no effect (0 is the published rule, and then
            rounding decides on flips without effect).
        accept_zero: whether flips without effect are kept in the generation (as published); if not,
            they are not proposed again until another flip is kept.
        keep: most flips kept in one iteration, those with the largest effect; 0 keeps all good ones (as
            published), 1 is a greedy search guided by the gradient.
        early_candidate_exit: whether one flip that changes the decision alone ends the generation.
        second_reduction_pass: whether reduction is repeated with fresh effects until nothing more can
            be undone; the result is then 1-minimal (no single flip can be undone).
        events: on counts, how many events a chosen cell gains or loses, as far as the bounds allow.

    Cost: success after n iterations costs n + 1 forwards and backwards, k_init n (n+1) / 2 candidate
    forwards and at most log2(flips) + 1 reduction forwards; a repeated reduction costs as many
    forwards as flips are left, and another binary search, each time.
    """

    k_init: int = 10
    iterations: int = 500
    estimator: str = "pdsg"
    tol: float = 1e-6
    accept_zero: bool = True
    keep: int = 0
    early_candidate_exit: bool = False
    second_reduction_pass: bool = False
    events: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="sda.l0",
        geometries=("l0", "count_l0", "count_l1"),
        domains=(Domain.SPIKES, Domain.EVENTS),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Lun et al., CVPR 2025, arXiv:2503.03272 (SDA). Differs: batched; ties go to the lower index; "
            "a loss change below tol is no effect; the gradient is that of the unclipped margin; the "
            "success test reuses the next gradient pass; a NaN difference is rejected; "
            "selected elements are never proposed again. Targeted: the margin of the target class. "
            "Counts: see Sda."
        ),
        cost="5 n^2 forwards + n backwards for n iterations",
    )

    def __post_init__(self) -> None:
        if min(self.k_init, self.iterations, self.events) < 1 or self.keep < 0 or not self.tol >= 0:
            raise ConfigError(
                f"{self.spec.name}: k_init, iterations and events must be at least 1, keep and tol 0 or "
                f"more, got {self.k_init}, {self.iterations}, {self.events}, {self.keep} and {self.tol}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        search = _Search(oracle, x0, y, events=self.events)
        self._generate(search, rng)
        _shrink(search, search.effect.abs(), search.found)
        if self.second_reduction_pass:
            self._shrink_again(search)
        best, hit = oracle.best()
        everyone = torch.arange(len(x0), device=x0.device)
        x = search.inputs(everyone)
        legal = oracle.geometry.distance(x0, x) <= _limit(oracle)
        x = torch.where(_column(search.found & legal, x), x, x0)
        return torch.where(_column(hit & ~(search.found & legal), x), best, x)

    def _generate(self, search: _Search, rng: RowStreams) -> None:
        oracle = search.oracle
        rule: GradientEstimator = registry("estimators").get(self.estimator)
        for n in range(1, self.iterations + 1):
            rows = search.open(forwards=rule.forwards, backwards=rule.backwards)
            if not len(rows):
                break
            out = oracle.loss_and_grad(search.inputs(rows), rows, "margin", estimator=rule)
            search.settle(rows, out.logits)
            keep = ~search.found[rows]
            rows = rows[keep]
            k = min(n * self.k_init, search.flipped.shape[1])
            index, tried = search.propose(rows, out.grad[keep].flatten(1), k, rng.fork("fill", n))
            self._test(search, rows, index, tried, search.loss(out.logits[keep], rows))
        rows = search.open(forwards=1)
        rows = rows[search.flipped[rows].any(dim=1)]
        if len(rows):
            search.settle(rows, oracle.logits(search.inputs(rows), rows))

    def _test(self, search: _Search, rows: Tensor, index: Tensor, tried: Tensor, loss: Tensor) -> None:
        """Try the proposed flips one by one and flip together those that do not raise the loss."""
        owner, place = tried.nonzero(as_tuple=True)
        picked = index[owner, place]
        logits = search.oracle.flip_logits(
            search.inputs(rows), rows, owner, picked, search.other(rows[owner], picked)
        )
        change = search.loss(logits, rows[owner]) - loss[owner]
        change = torch.where(change.abs() <= self.tol, 0.0, change)
        good = change <= 0 if self.accept_zero else change < 0
        if self.keep:
            good &= _leading(owner, torch.where(good, change, torch.inf), self.keep)
        if self.early_candidate_exit:
            wrong = search.oracle.reached(logits, rows[owner])
            lead = wrong & _leading(owner, (~wrong).to(change), 1)
            search.found[rows[owner[lead]]] = True
            good = torch.where(search.found[rows[owner]], lead, good)
        row = rows[owner]
        free = (~search.flipped[rows] & ~search.tabu[rows]).sum(dim=1)
        moved = torch.zeros_like(search.found)
        moved[row[good]] = True
        # Nothing can change any more where every free flip was tried and none was good.
        search.over[rows] = ~moved[rows] & ((free == tried.sum(dim=1)) | ~tried.any(dim=1))
        search.flipped[row[good], picked[good]] = True
        search.effect[row[good], picked[good]] = change[good]
        if not self.accept_zero:
            search.tabu[moved] = False
            idle = (change == 0) & ~moved[row]
            search.tabu[row[idle], picked[idle]] = True

    def _shrink_again(self, search: _Search) -> None:
        """Measure what undoing each flip does, and reduce in that order, until nothing changes."""
        again = search.found.clone()
        while True:
            rows = (again & search.affordable(search.flipped.sum(dim=1) + 1)).nonzero().squeeze(1)
            if not len(rows):
                return
            owner, picked = search.flipped[rows].nonzero(as_tuple=True)
            logits = search.oracle.flip_logits(
                search.inputs(rows), rows, owner, picked, search.other(rows[owner], picked)
            )
            # A flip whose undoing leaves the largest margin is the least needed.
            search.effect[rows[owner], picked] = search.shortfall(logits, rows[owner]).to(search.effect)
            again.zero_()
            again[rows] = True
            again = _shrink(search, search.effect, again)


@dataclass(frozen=True)
class SdaGreedy(Sda):
    """SDA that keeps one flip an iteration and repeats the reduction: fewer flips, more queries."""

    keep: int = 1
    second_reduction_pass: bool = True
    spec: ClassVar[AttackSpec] = replace(
        Sda.spec,
        name="sda_greedy.l0",
        source=Sda.spec.source + " One flip an iteration and repeated reduction are ours.",
        cost="5 n^2 forwards + n backwards for n flips",
    )


class _Search:
    """The state of one run: which elements are flipped, with what effect; [N, P] tensors."""

    def __init__(self, oracle: Oracle, x0: Tensor, y: Tensor, *, events: int = 1) -> None:
        self.oracle, self.shape = oracle, x0.shape
        self.clean = x0.flatten(1)
        low, high = oracle.threat.bounds
        self.events = events if oracle.spec.domain is Domain.EVENTS else 0
        self.changed = low + high - self.clean
        self.flipped = torch.zeros_like(self.clean, dtype=torch.bool)
        self.tabu = torch.zeros_like(self.flipped)
        self.effect = torch.full_like(self.clean, torch.inf)
        self.found = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        self.over = torch.zeros_like(self.found)
        targets = oracle.targets
        self.targeted = targets is not None
        self.labels = y if targets is None else targets

    def inputs(self, rows: Tensor) -> Tensor:
        """Return the present inputs of some rows."""
        x = torch.where(self.flipped[rows], self.changed[rows], self.clean[rows])
        return x.view(len(rows), *self.shape[1:])

    def other(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return what elements become when they are flipped, or flipped back: [q]."""
        flipped = self.flipped[rows, index]
        return torch.where(flipped, self.clean[rows, index], self.changed[rows, index])

    def aim(self, rows: Tensor, grad: Tensor) -> None:
        """On counts, decide which way every cell that is not flipped would go: up the loss, if it can."""
        clean, bounds = self.clean[rows], self.oracle.threat.bounds
        step = self.events * torch.where(grad < 0, -1.0, 1.0).to(clean)
        there, back = (clean + step).clamp(*bounds), (clean - step).clamp(*bounds)
        aimed = torch.where(there == clean, back, there)
        self.changed[rows] = torch.where(self.flipped[rows], self.changed[rows], aimed)

    def open(self, *, forwards: int, backwards: int = 0) -> Tensor:
        """Return the rows without a result that can pay."""
        rows = self.oracle.active(forwards=forwards, backwards=backwards)
        return rows[~(self.found | self.over)[rows]]

    def affordable(self, forwards: Tensor) -> Tensor:
        """Say for every row whether it still stands and can pay that many forwards."""
        standing = torch.zeros_like(self.found)
        standing[self.oracle.active(forwards=1)] = True
        everyone = torch.arange(len(standing), device=standing.device)
        return standing & (forwards <= self.oracle.forwards_left(everyone))

    def shortfall(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return how far an answer is from the goal; negative beyond it."""
        gap = margin(logits, self.labels[rows])
        return gap if self.targeted else -gap

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return the published loss: the shortfall, clipped at zero."""
        return self.shortfall(logits, rows).clamp(min=0)

    def settle(self, rows: Tensor, logits: Tensor) -> None:
        """Mark the rows whose present input reaches the goal."""
        self.found[rows[self.oracle.reached(logits, rows)]] = True

    def propose(self, rows: Tensor, grad: Tensor, k: int, fill: RowStreams) -> tuple[Tensor, Tensor]:
        """Choose the k most promising single flips of every row.

        Where fewer than k elements have a useful gradient, random others follow after them.
        Returns: flat indices [n, k], and which of them are free to try and can be paid [n, k].
        """
        if self.events:
            self.aim(rows, grad)
        now = torch.where(self.flipped[rows], self.changed[rows], self.clean[rows])
        toward = torch.where(now == self.clean[rows], self.changed[rows], self.clean[rows]) - now
        gain = torch.nan_to_num((toward * grad), nan=0.0).clamp(min=0)
        taken = self.flipped[rows] | self.tabu[rows]
        gain = gain.masked_fill(taken, 0.0)
        poor = ((gain > 0).sum(dim=1) < k).nonzero().squeeze(1)
        if len(poor):
            some = gain[poor]
            floor = some.masked_fill(some == 0, torch.inf).amin(dim=1, keepdim=True)
            floor = torch.where(torch.isinf(floor), 1.0, floor)
            noise = fill.uniform((some.shape[1],), rows=rows[poor], dtype=some.dtype)
            gain[poor] = torch.where(some == 0, noise * floor, some)
        gain = gain.masked_fill(taken, -1.0)
        best, index = _largest(gain, k)
        tried = best >= 0
        # Keep what the check and the reduction of the outcome will cost.
        after = (self.flipped[rows].sum(dim=1) + k).double().log2().floor().long() + 2
        room = self.oracle.forwards_left(rows) - after
        return index, tried & (torch.arange(k, device=rows.device) < room[:, None])


def _shrink(search: _Search, effect: Tensor, chosen: Tensor) -> Tensor:
    """Undo the longest prefix of flips, by rising effect, that a binary search finds to be undoable.

    Args:
        effect: [N, P]; ties go to the lower index.
        chosen: [N] rows to reduce; their present inputs reach the goal.
    Returns: [N] rows that lost flips.
    Cost: at most log2(flips) + 1 forwards per row.
    """
    rows = chosen.nonzero().squeeze(1)
    size = search.flipped.shape[1]
    start = search.flipped[rows]
    last = torch.finfo(effect.dtype).max
    key = effect[rows].nan_to_num(nan=last, posinf=last).masked_fill(~start, torch.inf)
    order = key.sort(dim=1, stable=True).indices
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(size, device=order.device).expand_as(order))
    low = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    high = start.sum(dim=1) - 1
    while True:
        payable = torch.isin(rows, search.oracle.active(forwards=1))
        at = ((low <= high) & payable).nonzero().squeeze(1)
        if not len(at):
            break
        middle = (low[at] + high[at]) // 2
        search.flipped[rows[at]] = start[at] & (rank[at] > middle[:, None])
        logits = search.oracle.logits(search.inputs(rows[at]), rows[at])
        still = search.oracle.reached(logits, rows[at])
        low[at] = torch.where(still, middle + 1, low[at])
        high[at] = torch.where(still, high[at], middle - 1)
    search.flipped[rows] = start & (rank >= low[:, None])
    changed = torch.zeros_like(chosen)
    changed[rows] = low > 0
    return changed


def _largest(gain: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest entries of every row and where they are, largest first; ties by place: [n, k].

    `topk` says which they are, at a twentieth of the cost of a sort, but keeps no order among equals.
    """
    values, index = gain.topk(min(k + 1, gain.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    values, index = values[:, :k], index[:, :k]
    if len(tied):
        full = gain[tied].sort(dim=1, descending=True, stable=True)
        values[tied], index[tied] = full.values[:, :k], full.indices[:, :k]
    return values, index


def _leading(owner: Tensor, key: Tensor, count: int) -> Tensor:
    """Mark the entries with the `count` smallest keys of every owner; ties go to the earlier entry."""
    order = key.sort(stable=True).indices
    order = order[owner[order].sort(stable=True).indices]
    grouped = owner[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(grouped, grouped)
    mask = torch.zeros_like(owner, dtype=torch.bool)
    mask[order] = rank < count
    return mask


def _limit(oracle: Oracle) -> float:
    return torch.inf if oracle.threat.eps is None else float(oracle.threat.eps)


def _column(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (x.dim() - 1))
