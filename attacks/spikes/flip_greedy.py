"""Greedy flips without gradients: try cells one by one, flip the best, again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.spikes.random_changes import smallest
from robustspike.attacks.spikes.reduction import CHUNK
from robustspike.attacks.spikes.reduction import meets_goal
from robustspike.attacks.spikes.reduction import past_boundary
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


def single_flips(oracle: Oracle, x: Tensor, rows: Tensor, tried: Tensor) -> Tensor:
    """Return the logits of every marked single flip, in row-major order of the marks.

    Shape: x [n, ...], rows [n], tried [n, cells] bool -> [flips, K]. Cost: 1 forward a flip.
    """
    owner, index = tried.nonzero(as_tuple=True)
    parts = [
        oracle.flip_logits(x, rows, owner[i : i + CHUNK], index[i : i + CHUNK])
        for i in range(0, len(owner), CHUNK)
    ]
    return torch.cat(parts) if parts else x.new_zeros(0, oracle.spec.classes)


@dataclass(frozen=True)
class GreedyFlips:
    """The gradient-free twin of the sparse gradient attacks.

    Each round tries `pool` random cells that have not been flipped, alone, and keeps the flip with the
    best margin. With all cells in the pool it is the exact greedy search.

    Args:
        pool: cells tried per round; 0 tries all.

    Cost: `pool` forwards per flip.
    """

    pool: int = 256
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="flip.greedy",
        geometries=("l0",),
        domains=(Domain.STATIC, Domain.SPIKES),
        access=Access.SCORE,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source="Control: coordinate-wise greedy search over sampled cells. Differs: none.",
        cost="256 forwards per flip",
    )

    def __post_init__(self) -> None:
        if self.pool < 0:
            raise ConfigError(f"flip.greedy: pool must be 0 (all cells) or more, got {self.pool}.")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = x0.clone()
        low, high = oracle.threat.bounds
        flipped = torch.zeros_like(x0.flatten(1), dtype=torch.bool)
        done = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        cells = flipped.shape[1]
        limit = cells if oracle.threat.eps is None else int(min(float(oracle.threat.eps), cells))
        for flips in range(limit):
            pool = min(self.pool or cells, cells - flips)
            rows = oracle.active(forwards=pool)
            rows = rows[~done[rows]]
            if not len(rows):
                break
            order = rng.uniform((cells,), rows=rows, dtype=torch.float64)
            tried = smallest(order, ~flipped[rows], torch.full_like(rows, pool))
            logits = single_flips(oracle, x[rows], rows, tried)
            owner, index = tried.nonzero(as_tuple=True)
            value = past_boundary(oracle, logits, rows[owner], y).double().view(len(rows), pool)
            wrong = meets_goal(oracle, logits.argmax(dim=1), rows[owner], y).view(len(rows), pool)
            value = torch.nan_to_num(value, nan=-torch.inf)
            value = torch.where(wrong, value.clamp(min=0) + 1, value)  # a draw may already be lost
            best = value.argmax(dim=1, keepdim=True)
            cell = index.view(len(rows), pool).gather(1, best).squeeze(1)
            flipped[rows, cell] = True
            done[rows] = wrong.gather(1, best).squeeze(1)
            x[rows] = torch.where(flipped[rows].view_as(x0[rows]), low + high - x0[rows], x0[rows])
        return x
