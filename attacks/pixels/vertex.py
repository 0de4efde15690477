"""A search over the corners of the ball with forwards alone, from the best input that was found before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.pixels.climbing import check
from robustspike.attacks.pixels.climbing import settle
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimSpec


@dataclass(frozen=True)
class Vertex:
    """Set one random square after the other to +-eps; keep it where the margin does not shrink.

    The search starts at the input that came nearest to the goal of all that were asked before: by itself the
    clean one, in an ensemble the best of earlier members. A gradient of a spiking network is masked and its
    answers are constant in pieces, so that a point which no gradient leaves can still be a step from the
    boundary. A move that would change nothing is mirrored.

    Args:
        queries: forwards per sample at most.
        largest: side of the largest square as a share of the image's shorter side. Sides are drawn between
            one pixel and that, evenly in their logarithm.

    Shape: static images [N, C, H, W].
    Cost: `queries` forwards, no gradient.
    """

    queries: int = 500
    largest: float = 0.375
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="vertex.linf",
        geometries=("linf",),
        access=Access.SCORE,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=(
            "After the local search over corners of Moon et al., ICML 2019, arXiv:1905.06635 (Parsimonious "
            "attack). Differs: moves are the random squares of Square (arXiv:1912.00049), of every size from "
            "the first query on and one a query, where the paper flips the blocks of a grid, coarse to fine, "
            "in the order of their gain; equal margins are accepted; it starts at the best input known."
        ),
        cost="500 forwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, queries=self.queries, largest=self.largest)
        if self.largest > 1:
            raise ConfigError(f"{self.spec.name}: largest must be at most 1, got {self.largest}.")

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse inputs that are not images."""
        return None if len(spec.shape) == 3 else "squares need images [C, H, W]"

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        reason = self.fits(oracle.spec)
        if reason:
            raise ConfigError(
                f"{self.spec.name}: {reason}, got {list(oracle.spec.shape)}. Use another attack."
            )
        best = oracle.closest()
        top = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
        for query in range(self.queries):
            rows = oracle.active(forwards=1)
            if not len(rows):
                break
            x = best[rows]
            if query:
                signs = rng.sign((len(x0[0]), 1, 1), rows=rows, dtype=x0.dtype)
                change = oracle.radius * signs * self._square(x, rows, rng)
                moved = oracle.project(torch.where(change == 0, x, x0[rows] + change), rows)
                stuck = (moved == x).flatten(1).all(dim=1)
                mirrored = oracle.project(torch.where(change == 0, x, x0[rows] - change), rows)
                x = torch.where(stuck[:, None, None, None], mirrored, moved)
            value, _ = oracle.loss(x, rows, "margin")
            kept = value >= top[rows]
            best[rows[kept]] = x[kept]
            top[rows] = torch.maximum(top[rows], value)
        return settle(oracle, best)

    def _square(self, x: Tensor, rows: Tensor, rng: RowStreams) -> Tensor:
        """Return one random square per row: [n, 1, H, W], 1 inside and 0 outside."""
        height, width = x.shape[2:]
        most = max(1.0, self.largest * min(height, width))
        u = rng.uniform((3,), rows=rows, dtype=torch.float64)
        side = ((most + 1) ** u[:, 0]).floor().clamp(1, min(height, width))
        inside = []
        for length, place in ((height, u[:, 1]), (width, u[:, 2])):
            first = (place * (length - side + 1)).floor()[:, None]
            at = torch.arange(length, device=x.device)
            inside.append((at >= first) & (at < first + side[:, None]))
        return (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1).to(x.dtype)
