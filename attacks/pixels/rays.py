"""RayS: a decision-based search over sign vectors; it needs predicted labels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.pixels.climbing import check
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class Rays:
    """Find the sign vector whose ray reaches the decision boundary at the smallest radius.

    Blocks of signs are flipped, halves first, then quarters, down to single elements. A flip is kept
    if the class is still wrong at the best radius; then the radius is found by bisection.

    Args:
        queries: forwards per sample at most.
        tolerance: width at which a bisection ends, as a share of the range of the inputs.

    Cost: `queries` forwards, no gradient.
    """

    queries: int = 1000
    tolerance: float = 1e-3
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="rays.linf",
        geometries=("linf",),
        access=Access.LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        minimum_norm=True,
        source=(
            "Chen & Gu 2020, arXiv:2006.12792, algorithm 3. Differs: every sample's search advances by one "
            "query a pass; the first radius is the range of the inputs; after single elements the search "
            "starts again at halves."
        ),
        cost="1000 forwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, queries=self.queries, tolerance=self.tolerance)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        n, size = len(x0), x0[:1].numel()
        low, high = oracle.threat.bounds
        reach = high - low
        wanted = oracle.targets
        place = torch.arange(size, device=x0.device)
        signs = torch.ones(n, size, dtype=x0.dtype, device=x0.device)
        trial = signs.clone()
        radius = torch.full((n,), torch.inf, dtype=x0.dtype, device=x0.device)
        floor, ceiling = torch.zeros_like(radius), torch.full_like(radius, reach)
        bisecting = torch.zeros(n, dtype=torch.bool, device=x0.device)
        blocks = torch.ones(n, dtype=torch.int64, device=x0.device)  # number of blocks of this level
        block = torch.zeros_like(blocks)
        for _ in range(self.queries):
            rows = oracle.active(forwards=1)
            if not len(rows):
                break
            middle = (floor[rows] + ceiling[rows]) / 2
            at = torch.where(bisecting[rows], middle, radius[rows].clamp(max=reach))
            x = (x0[rows] + (at[:, None] * trial[rows]).view(-1, *x0.shape[1:])).clamp(low, high)
            label = oracle.labels(x, rows)
            wrong = label == wanted[rows] if wanted is not None else label != y[rows]
            # A bisection narrows its interval; a flip that is still wrong opens one.
            ceiling[rows] = torch.where(wrong, at, ceiling[rows])
            floor[rows] = torch.where(bisecting[rows] & ~wrong, at, floor[rows])
            opened = rows[~bisecting[rows] & wrong]
            bisecting[opened], floor[opened] = True, 0.0
            closed = rows[bisecting[rows] & (ceiling[rows] - floor[rows] <= self.tolerance * reach)]
            signs[closed], radius[closed] = trial[closed], ceiling[closed]
            bisecting[closed] = False
            rest = rows[~bisecting[rows]]
            trial[rest] = self._flip(signs[rest], blocks[rest], block[rest], place)
            block[rest] += 1
            full = rest[block[rest] >= blocks[rest]]
            block[full] = 0
            blocks[full] = torch.where(blocks[full] >= size, 1, (2 * blocks[full]).clamp(max=size))
        best, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), best, x0)

    def _flip(self, signs: Tensor, blocks: Tensor, block: Tensor, place: Tensor) -> Tensor:
        """Return the sign vectors with one block each flipped."""
        length = -(-signs.shape[1] // blocks)
        first = (block * length)[:, None]
        inside = (place >= first) & (place < first + length[:, None])
        return torch.where(inside, -signs, signs)
