"""Spike retiming with the projected-in-the-loop optimisation: logits over times, legal forward passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.timing.retime_lines import BUDGETS
from robustspike.attacks.timing.retime_lines import Lines
from robustspike.attacks.timing.retime_lines import budget_of
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

_TIE = 1e-6
_SYNC = 16
"""Candidates between two looks at whether every budget is spent."""


def strict_windows(pi: Tensor, packets: Tensor, allowed: Tensor) -> Tensor:
    """Place every packet of every line, the globally best (packet, time) first; nobody is left over.

    A time is closed to a packet if another has been placed there, or if it is the origin of another
    that is not placed yet; so staying is always open.

    Shape: pi [M, T, T] (from, to), packets [M, T] (0: none), allowed [M, T, T] bool -> packets [M, T].
    Cost: T passes over the M lines.
    """
    lines, steps = packets.shape
    waiting, placed = packets != 0, torch.zeros_like(packets)
    own = torch.eye(steps, dtype=torch.bool, device=pi.device)
    every = torch.arange(lines, device=pi.device)
    for _ in range(steps):
        free = (placed == 0)[:, None, :] & (~waiting[:, None, :] | own)
        open_now = allowed & waiting[:, :, None] & free
        best = pi.masked_fill(~open_now, -torch.inf).flatten(1).argmax(dim=1)
        left = waiting.any(dim=1)
        source, target = best // steps, best % steps
        waiting[every[left], source[left]] = False
        placed[every[left], target[left]] = packets[every[left], source[left]]
    return placed


def strict_budget(
    pi: Tensor,
    packets: Tensor,
    allowed: Tensor,
    cost: Tensor,
    row: Tensor,
    budget: Tensor,
    *,
    spend: bool = False,
) -> Tensor:
    """Carry out moves in the order of their probability while the budget of their row lasts.

    A move is skipped if its packet has moved, its target is occupied, or it costs more than is left.
    Moves less likely than staying are not carried out, unless all of the budget is to be spent; moves
    of probability 0 never are.

    Shape: pi, allowed [M, T, T]; packets [M, T] (0: none); cost [T, T]; row [M]; budget [N] -> [M, T].
    Cost: as many steps as the longest list of candidate moves of a row, each over all rows.
    """
    hard, still = packets.clone(), packets != 0
    stay = pi.diagonal(dim1=1, dim2=2)
    moves = allowed & still[:, :, None] & (cost > 0) & (pi > 0)
    if not spend:
        moves &= pi > stay[:, :, None]
    line, source, target = moves.nonzero().unbind(dim=1)
    order = pi[line, source, target].sort(descending=True, stable=True).indices
    order = order[row[line[order]].sort(stable=True).indices]
    line, source, target = line[order], source[order], target[order]
    owner = row[line]
    left = budget.clone()
    count = torch.bincount(owner, minlength=len(left))
    first = count.cumsum(dim=0) - count
    for turn in range(int(count.max()) if len(count) else 0):
        if turn % _SYNC == 0 and not bool(((left > 0) & (count > turn)).any()):
            break
        at = first[(count > turn) & (left > 0)] + turn
        m, s, t = line[at], source[at], target[at]
        price = cost[s, t].to(left)
        go = still[m, s] & (hard[m, t] == 0) & (price <= left[owner[at]])
        m, s, t, at, price = m[go], s[go], t[go], at[go], price[go]
        hard[m, s] = 0
        still[m, s] = False
        hard[m, t] = packets[m, s]
        left[owner[at]] -= price
    return hard


@dataclass(frozen=True)
class RetimePil:
    """Sign ascent on logits over the times a spike may take; the victim only ever sees legal frames.

    The forward input is the strict projection of the logits' softmax onto the budget, the gradient is
    passed straight through to the expected frames. Two penalties keep the two close: on cells that
    expect more than one spike, and on expected moves beyond the budget.

    Args:
        steps: updates; the paper uses 20 for the L-inf budget and 40 for the others.
        rate: step of the logits, which stay within +-10.
        capacity: weight of the penalty on crowded cells.
        spending: weight of the penalty on expected moves beyond an L1 or L0 budget.
        head_start: initial logit of the offsets -1, 0, +1 under the L-inf budget.
        spend: whether an L1 or L0 budget is always spent to the end, as in the released code; if not,
            moves less likely than staying are not made, and small budgets often make none at all.
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.

    Cost: steps forwards + steps backwards, and 1 forward for the last frames.
    """

    steps: int = 40
    rate: float = 1.0
    capacity: float = 20.0
    spending: float = 10.0
    head_start: float = 4.0
    spend: bool = True
    estimator: str = "native"
    loss: str = "ce"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="retime.pil",
        geometries=BUDGETS,
        domains=(Domain.SPIKES, Domain.EVENTS),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        source=(
            "Yu et al. 2026, arXiv:2602.03284. Differs: probabilities are normalised over feasible times; "
            "an unaffordable move is skipped, it does not end the schedule; the crowding penalty is averaged "
            "over spikes; stops at the first hit; targeted runs pursue the target. On counts a cell is one "
            "packet that carries all of its events, as in the paper's integer setting."
        ),
        cost="41 forwards + 40 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0:
            raise ConfigError(
                f"retime.pil: steps must be at least 1 and rate above 0, got {self.steps}, {self.rate}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x, best = x0.clone(), x0.clone()
        top = torch.full((len(x0),), -torch.inf, dtype=torch.float64, device=x0.device)
        lines = Lines(x0)
        problem = _Problem(oracle, lines, self)
        for _ in range(self.steps):
            rows = oracle.active(forwards=1, backwards=1)
            if not len(rows):
                break
            at = lines.of(rows)
            pi = problem.probabilities(at)
            x[rows] = lines.frames(problem.project(pi, at), rows)
            out = oracle.loss_and_grad(x[rows], rows, self.loss, estimator=self.estimator)
            better = rows[out.loss > top[rows]]
            best[better] = x[better]
            top[rows] = torch.maximum(top[rows], out.loss.double())
            problem.ascend(pi, lines.gradients(out.grad, rows), at)
        rows = oracle.active(forwards=1)
        if len(rows):
            at = lines.of(rows)
            x[rows] = lines.frames(problem.project(problem.probabilities(at), at), rows)
            loss, _ = oracle.loss(x[rows], rows, self.loss)
            better = rows[loss > top[rows]]
            best[better] = x[better]
        found, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), found, best)


class _Problem:
    """The logits, what they may express, and their gradient."""

    def __init__(self, oracle: Oracle, lines: Lines, attack: RetimePil) -> None:
        self.lines, self.attack = lines, attack
        self.eps = budget_of(oracle)
        self.windowed = oracle.geometry.name == "retime_linf"
        self.cost = lines.shift if oracle.geometry.name == "retime_l1" else (lines.shift > 0).long()
        shape = (*lines.origin.shape, lines.origin.shape[1])
        reach = self.eps if self.windowed else torch.inf
        self.allowed = (lines.shift <= reach).expand(shape)
        self.phi = torch.zeros(shape, dtype=lines.like.dtype, device=lines.origin.device)
        if self.windowed:
            self.phi += attack.head_start * (lines.shift <= 1)
        spikes = torch.zeros(len(lines.like), dtype=torch.float64, device=self.phi.device)
        self.spikes = spikes.index_add_(0, lines.row, lines.origin.sum(dim=1).double())

    def probabilities(self, at: Tensor) -> Tensor:
        """Return the probability of every time for every spike of some lines [m, T, T]; 0 elsewhere."""
        pi = self.phi[at].masked_fill(~self.allowed[at], -torch.inf).softmax(dim=2)
        return pi * self.lines.origin[at][:, :, None]

    def project(self, pi: Tensor, at: Tensor) -> Tensor:
        """Return the strict frames as what all lines hold [M, T]; other lines stay."""
        hard, packets = self.lines.packets.clone(), self.lines.packets[at]
        steps = packets.shape[1]
        ranked = pi + _TIE * (steps - 1 - self.lines.shift) * (pi > 0)
        if self.windowed:
            hard[at] = strict_windows(ranked, packets, self.allowed[at])
        else:
            budget = torch.full_like(self.spikes, self.eps)
            hard[at] = strict_budget(
                ranked,
                packets,
                self.allowed[at],
                self.cost,
                self.lines.row[at],
                budget,
                spend=self.attack.spend,
            )
        return hard

    def slope(self, pi: Tensor, gradient: Tensor, at: Tensor) -> Tensor:
        """Return the derivative of the objective in the logits of some lines [m, T, T]."""
        row = self.lines.row[at]
        crowd = (pi.sum(dim=1) - 1).clamp(min=0)
        press = 2 * self.attack.capacity * crowd / self.spikes[row, None].to(pi)
        worth = self.lines.packets[at][:, :, None] * gradient[:, None, :] - press[:, None, :]
        if not self.windowed and 0 < self.eps < torch.inf:
            moving = (pi * self.cost).flatten(1).sum(dim=1).double()
            expected = torch.zeros_like(self.spikes).index_add_(0, row, moving)
            over = (expected > self.eps)[row].to(pi)
            worth = worth - self.attack.spending / self.eps * over[:, None, None] * self.cost
        return pi * (worth - (pi * worth).sum(dim=2, keepdim=True))

    def ascend(self, pi: Tensor, gradient: Tensor, at: Tensor) -> None:
        """Move the logits of some lines one signed step up the objective."""
        slope = self.slope(pi, gradient, at)
        self.phi[at] = (self.phi[at] + self.attack.rate * slope.sign()).clamp(-10, 10)
