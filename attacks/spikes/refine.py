"""Refined flips: two flips out, one in, where the gradient says so. Makes good flip sets smaller."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace

import torch
from torch import Tensor

from robustspike.attacks.spikes.flip_greedy import single_flips
from robustspike.attacks.spikes.reduced import Reduced
from robustspike.attacks.spikes.reduction import affordable
from robustspike.attacks.spikes.reduction import meets_goal
from robustspike.attacks.spikes.reduction import past_boundary
from robustspike.bench.api import Access
from robustspike.bench.api import Attack
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

_WORST = 6
"""Members whose pairs are tried: the six whose loss hurts least, fifteen pairs."""


@dataclass(frozen=True)
class Refined:
    """Reduce the results of a flip attack, then look for smaller sets next to them.

    A turn takes out the two flips whose loss hurts least (by the margins that are left without each),
    takes the gradient there, and tries the `pool` flips that it rewards most, one by one. If one of
    them fools the victim, the set has become smaller by one; if none does, the next pair is taken out.
    A bounded threat gains nothing from smaller sets: there it is `Reduced`.

    Args:
        attack: the attack that finds the first sets, or its registry name.
        turns: turns per sample.
        pool: flips tried per turn.
        estimator: registry name of the gradient estimator.

    Cost: the attack's and the reduction's; then per turn pool + 1 forwards + 1 backward, and as many
    forwards as there are flips after each success.
    """

    attack: Attack | str = "sda_greedy.l0"
    turns: int = 30
    pool: int = 24
    estimator: str = "pdsg"

    def __post_init__(self) -> None:
        if self.turns < 1 or self.pool < 1:
            raise ConfigError(
                f"refined: turns and pool must be at least 1, got {self.turns} and {self.pool}."
            )

    def uses(self) -> dict[str, tuple[str, ...]]:
        return Reduced(attack=self.attack).uses()

    def needs(self) -> tuple[GradientEstimator | str, ...]:
        return (*Reduced(attack=self.attack).needs(), self.estimator)

    @property
    def spec(self) -> AttackSpec:
        """The inner attack's, with a new name, white-box, for flips only."""
        inner = Reduced(attack=self.attack).inner.spec
        return replace(
            inner,
            name=f"refined.{inner.name}",
            geometries=("l0",),
            access=Access.WHITE,
            source=f"{inner.source} Then reduced and refined by two-for-one exchanges (own).",
            cost=f"{inner.cost}; about 30 turns of 25 forwards + 1 backward",
        )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = Reduced(attack=self.attack).run(oracle, x0, y, rng=rng)
        if not oracle.threat.is_minimum_norm:
            return x
        _, hit = oracle.best()
        search = _Search(oracle, x0, x, y, hit, self)
        for _ in range(self.turns):
            search.measure()
            if not search.exchange():
                break
        search.measure()
        return search.x


class _Search:
    """Adversarial inputs, the harm of undoing each of their flips, and the next pair to take out."""

    def __init__(
        self, oracle: Oracle, x0: Tensor, x: Tensor, y: Tensor, hit: Tensor, attack: Refined
    ) -> None:
        self.oracle, self.x0, self.x, self.y, self.attack = oracle, x0, x, y, attack
        self.harm = torch.full(x0.flatten(1).shape, -torch.inf, dtype=torch.float64, device=x0.device)
        self.turn = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
        self.stale = hit.clone()
        self.over = ~hit

    def flips(self, rows: Tensor) -> Tensor:
        return (self.x[rows] != self.x0[rows]).flatten(1)

    def measure(self) -> None:
        """Ask what is left of the margin when each flip alone is undone, where that is not known.

        A flip that turns out not to be needed is undone, and its row is asked again.
        """
        while bool(self.stale.any()):
            rows = self.stale.nonzero().squeeze(1)
            flips = self.flips(rows)
            can = affordable(self.oracle, rows, flips.sum(dim=1))
            self.over[rows[~can]] = True
            self.stale[rows] = False
            rows, flips = rows[can], flips[can]
            logits = single_flips(self.oracle, self.x[rows], rows, flips)
            owner, index = flips.nonzero(as_tuple=True)
            left = torch.full(flips.shape, -torch.inf, dtype=torch.float64, device=flips.device)
            margins = past_boundary(self.oracle, logits, rows[owner], self.y).double()
            left[flips] = torch.nan_to_num(margins, nan=-1e30)
            self.harm[rows], self.turn[rows] = left, 0
            spare = meets_goal(self.oracle, logits.argmax(dim=1), rows[owner], self.y)
            row, cell = rows[owner[spare]], index[spare]
            first = torch.ones_like(row, dtype=torch.bool)
            first[1:] = row[1:] != row[:-1]
            flat = self.x.flatten(1)
            flat[row[first], cell[first]] = self.x0.flatten(1)[row[first], cell[first]]
            self.x, self.stale[row] = flat.view_as(self.x), True

    def exchange(self) -> bool:
        """Replace two flips of every set by one if possible; False when nothing is left to try."""
        pool = min(self.attack.pool, self.harm.shape[1])
        rows = self.oracle.active(forwards=pool + 1, backwards=1)
        rows = rows[~self.over[rows]]
        out, valid = self._pair(rows)
        self.over[rows[~valid]] = True
        rows, out = rows[valid], out[valid]
        if not len(rows):
            return False
        self.turn[rows] += 1
        base = self.x[rows].flatten(1).scatter(1, out, self.x0[rows].flatten(1).gather(1, out))
        base = base.view_as(self.x[rows])
        answer = self.oracle.loss_and_grad(base, rows, "margin", estimator=self.attack.estimator)
        low, high = self.oracle.threat.bounds
        gain = (answer.grad * (low + high - 2 * base)).flatten(1).double()
        best = gain.masked_fill(self.flips(rows), -torch.inf).topk(pool, dim=1).indices
        tried = torch.zeros_like(gain, dtype=torch.bool).scatter(1, best, True)
        logits = single_flips(self.oracle, base, rows, tried)
        owner, index = tried.nonzero(as_tuple=True)
        value = past_boundary(self.oracle, logits, rows[owner], self.y).double()
        wrong = meets_goal(self.oracle, logits.argmax(dim=1), rows[owner], self.y)
        value = torch.where(wrong, torch.nan_to_num(value, nan=-torch.inf), -torch.inf)
        value, place = value.view(len(rows), pool).max(dim=1)
        won = value > -torch.inf
        cell = index.view(len(rows), pool).gather(1, place[:, None])
        new = base.flatten(1).scatter(1, cell, low + high - base.flatten(1).gather(1, cell))
        self.x[rows[won]] = new.view_as(base)[won]
        self.stale[rows[won]] = True
        return True

    def _pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next two flips to take out of every row [n, 2], and whether there are two."""
        size = min(_WORST, self.harm.shape[1])
        harm, cell = self.harm[rows].topk(size, dim=1)
        first, second = torch.triu_indices(size, size, offset=1, device=rows.device)
        both = harm[:, first] + harm[:, second]
        order = both.sort(dim=1, descending=True, stable=True)
        turn = self.turn[rows].clamp(max=len(first) - 1)[:, None]
        pick = order.indices.gather(1, turn).squeeze(1)
        valid = (order.values.gather(1, turn).squeeze(1) > -torch.inf) & (self.turn[rows] < len(first))
        line = torch.arange(len(rows), device=rows.device)
        return torch.stack([cell[line, first[pick]], cell[line, second[pick]]], dim=1), valid
