"""Square: random search over square patches, with scores only."""

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

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of changed pixels halves."""


def share(query: int, start: float) -> float:
    """Return the share of pixels that a query of the schedule changes (query 0 is the start)."""
    return start / 2 ** sum(query > at for at in _HALVINGS)


@dataclass(frozen=True)
class Square:
    """Start from vertical stripes at +-eps; keep a random square at +-eps where the margin grows.

    Args:
        queries: forwards per sample at most.
        share: share of the pixels that the first squares cover.
        rescale: whether the schedule of sizes, published for 10 000 queries, is stretched to `queries`.

    Shape: static images [N, C, H, W].
    Cost: `queries` forwards, no gradient.
    """

    queries: int = 5000
    share: float = 0.8
    rescale: bool = False
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="square.linf",
        geometries=("linf",),
        access=Access.SCORE,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=(
            "Andriushchenko et al. 2020, arXiv:1912.00049, with AutoAttack's constants (which do not rescale "
            "the schedule). Differs: each sample has squares and signs of its own, where AutoAttack draws "
            "them once a batch; squares reach the last row and column, where the code's never do (324, not "
            "371, of 500 digits withstand 1000 queries at eps 1/10 on ann_cnn.digits); the margin is the "
            "loss of targeted runs as well."
        ),
        cost="5000 forwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, queries=self.queries, share=self.share)

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse inputs that are not images."""
        return None if len(spec.shape) == 3 else "squares need images [C, H, W]"

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        reason = self.fits(oracle.spec)
        if reason:
            raise ConfigError(
                f"{self.spec.name}: {reason}, got {list(oracle.spec.shape)}. Use another attack."
            )
        channels, height, width = x0.shape[1:]
        rows = torch.arange(len(x0), device=x0.device)
        eps = oracle.radius
        best = oracle.project(x0 + eps * rng.sign((channels, 1, width), dtype=x0.dtype), rows)
        top = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
        for query in range(self.queries):
            rows = oracle.active(forwards=1)
            if not len(rows):
                break
            x = best[rows]
            if query:
                area = share(query * 10_000 // self.queries if self.rescale else query, self.share)
                area *= height * width
                side = min(max(round(area**0.5), 1), height, width)
                square = self._square(rows, side, (height, width), rng)
                sign = rng.sign((channels, 1, 1), rows=rows, dtype=x0.dtype)
                x = oracle.project(torch.where(square, x0[rows] + eps * sign, x), rows)
            value, _ = oracle.loss(x, rows, "margin")
            better = value > top[rows]
            best[rows[better]] = x[better]
            top[rows] = torch.maximum(top[rows], value)
        return settle(oracle, best)

    def _square(self, rows: Tensor, side: int, size: tuple[int, int], rng: RowStreams) -> Tensor:
        """Return one random square per row as a mask [n, 1, H, W]."""
        inside = []
        for length in size:
            first = rng.integers(length - side + 1, (1,), rows=rows)
            at = torch.arange(length, device=rows.device)
            inside.append((at >= first) & (at < first + side))
        return (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)
