"""Attacks that see scores only and change a part at a time: a patch, or blocks of +eps and -eps."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.quality.iterated import GOALS
from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import directions
from robustspike.attacks.quality.iterated import per_image
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10,000 after which the redrawn part of a patch is halved."""


def towards(oracle: Oracle, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Ask for the clean scores. Returns the rows that could pay, and every row's direction (0: unknown)."""
    aim = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    rows = oracle.active(forwards=1)
    if len(rows):
        aim[rows] = directions(oracle, oracle.logits(x0[rows], rows).squeeze(1))
    return rows, aim


def farthest(oracle: Oracle, x0: Tensor) -> Tensor:
    """Return the legal image whose score moved farthest, x0 where none moved."""
    best, seen = oracle.best()
    return torch.where(per_image(seen, x0), best, x0)


@dataclass(frozen=True)
class PatchRs:
    """One square patch of pure colours, redrawn and moved at random as long as that helps.

    The budget bounds the patch's contrast with what it covers: with eps = 1 in L-inf it is opaque.

    Args:
        queries: forwards per sample.
        area: pixels of the patch.
        p: share of the patch that the first redraws cover.
        move_every: every so many queries the patch is moved instead.

    Cost: queries forwards.
    """

    queries: int = 500
    area: int = 169
    p: float = 0.8
    move_every: int = 4
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.patch_rs",
        geometries=("linf", "rmse"),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source=(
            "Croce et al., AAAI 2022, arXiv:2006.12834 (Sparse-RS, patches of an image), on the score as in "
            "Gushchin et al., ICML 2025 (169 pixels). Differs: the patched image is projected into the "
            "budget, which the paper has none of; the first patch is coarse random colours and not overlaid "
            "squares; no last phase that changes single channels; 500 queries instead of 10,000."
        ),
        cost="500 forwards",
    )

    def __post_init__(self) -> None:
        if min(self.queries, self.area, self.move_every) < 1 or not 0 < self.p <= 1:
            raise ConfigError(
                "quality.patch_rs: queries, area and move_every must be at least 1 and p in (0, 1], got "
                f"{self.queries}, {self.area}, {self.move_every} and {self.p}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        del y
        rows, aim = towards(oracle, x0)
        channels, height, width = x0.shape[1:]
        side = min(math.ceil(math.sqrt(self.area)), height, width)
        room = torch.tensor([height - side, width - side], device=x0.device)
        place = torch.stack([rng.integers(int(free) + 1, ()) for free in room], dim=1)
        cells = -(-side // 3)
        coarse = rng.integers(2, (channels, cells, cells)).to(x0)
        patch = (
            coarse.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)[:, :, :side, :side].contiguous()
        )
        top = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
        for query in range(1, self.queries):
            rows = oracle.active(forwards=1)
            rows = rows[aim[rows] != 0]
            if not len(rows):
                break
            new, at = patch[rows], place[rows]
            if query > 1 and query % self.move_every == 0:
                reach = max(1, round(0.75 * (1 - query / self.queries) * height))
                at = at + rng.integers(2 * reach + 1, (2,), rows=rows) - reach
                at = torch.minimum(at.clamp(min=0), room)
            elif query > 1:
                new = self.redrawn(new, self.redraw(query, side), rng, rows)
            candidate = oracle.project(pasted(x0[rows], new, at), rows)
            worth = torch.nan_to_num(aim[rows] * oracle.logits(candidate, rows).squeeze(1), nan=-torch.inf)
            better = worth > top[rows]
            chosen = rows[better]
            patch[chosen], place[chosen], top[chosen] = new[better], at[better], worth[better]
        return farthest(oracle, x0)

    def redraw(self, query: int, side: int) -> int:
        """Return the side of the redrawn square at a query, on the schedule of 10,000 queries."""
        at = query / self.queries * 10_000
        share = self.p / 2 ** sum(at > limit for limit in _HALVED_AT)
        return max(1, int(math.sqrt(share) * side))

    @staticmethod
    def redrawn(patch: Tensor, size: int, rng: RowStreams, rows: Tensor) -> Tensor:
        """Return patches with one square of `size` in another pure colour."""
        colour = rng.integers(2, (patch.shape[1], 1, 1), rows=rows).to(patch)
        corner = rng.integers(patch.shape[2] - size + 1, (2,), rows=rows)
        return pasted(patch, colour.expand(-1, -1, size, size), corner)


def pasted(x: Tensor, patch: Tensor, place: Tensor) -> Tensor:
    """Return images with a patch [N, C, s, s] whose upper left corner is at place [N, 2]."""
    along = torch.arange(patch.shape[2], device=x.device)
    lines, columns = (place[:, axis, None] + along for axis in (0, 1))
    out = x.clone()
    which = torch.arange(len(x), device=x.device)[:, None, None]
    out[which, :, lines[:, :, None], columns[:, None, :]] = patch.movedim(1, 3)
    return out


Block = tuple[int, slice, slice]
"""A channel, lines and columns."""


@dataclass(frozen=True)
class Parsimonious:
    """Every block of every channel is +eps or -eps; greedy insertion and deletion, on ever finer blocks.

    Args:
        queries: forwards per sample.
        block: side of the first blocks; halved when all have been considered.
        batch: blocks that are considered together.

    Cost: queries forwards at most.
    """

    queries: int = 500
    block: int = 32
    batch: int = 64
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.parsimonious",
        geometries=("linf", "rmse"),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source=(
            "Moon et al., ICML 2019, arXiv:1905.06635 (lazy greedy search over signs), on the score as in "
            "Gushchin et al., ICML 2025. Differs: the first block of a batch is taken only if it helps; "
            "blocks count pixels of the image, which is not scaled to 256; 500 queries instead of 10,000."
        ),
        cost="500 forwards",
    )

    def __post_init__(self) -> None:
        if min(self.queries, self.block, self.batch) < 1:
            raise ConfigError(
                "quality.parsimonious: queries, block and batch must be at least 1, got "
                f"{self.queries}, {self.block} and {self.batch}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        del y
        rows, aim = towards(oracle, x0)
        searches = {int(row): self.search(x0[int(row)], _order(rng, row)) for row in rows}
        asked = {row: next(search) for row, search in searches.items()}
        for _ in range(1, self.queries):
            rows = oracle.active(forwards=1)
            rows = rows[aim[rows] != 0]
            if not len(rows):
                break
            signs = torch.stack([asked[int(row)] for row in rows])
            candidate = oracle.project(x0[rows] + oracle.radius * signs, rows)
            worth = torch.nan_to_num(aim[rows] * oracle.logits(candidate, rows).squeeze(1), nan=-torch.inf)
            for row, answer in zip(rows.tolist(), worth.tolist(), strict=True):
                asked[row] = searches[row].send(answer)
        return farthest(oracle, x0)

    def search(self, x: Tensor, order: Callable[[int], list[int]]) -> Generator[Tensor, float, None]:
        """Search one image's signs without end: yield signs [C, H, W], be sent how well they do.

        Args:
            x: the image.
            order: draws an order of so many blocks.
        """
        signs, side = -torch.ones_like(x), self.block
        worth = yield signs
        while True:
            blocks = blocks_of(tuple(x.shape), side)
            todo = [blocks[i] for i in order(len(blocks))]
            for start in range(0, len(todo), self.batch):
                for sign in (1.0, -1.0):
                    batch = todo[start : start + self.batch]
                    signs, worth = yield from _greedy(signs, worth, batch, sign)
            side = max(1, side // 2)


def _greedy(
    signs: Tensor, worth: float, blocks: list[Block], sign: float
) -> Generator[Tensor, float, tuple[Tensor, float]]:
    """Give blocks a sign, the most helpful first, as long as that helps; gains are looked up late."""
    queue = []
    for place, block in enumerate(blocks):
        if float(signs[block].flatten()[0]) != sign:
            found = yield _with(signs, block, sign)
            queue.append((worth - found, place))
    heapq.heapify(queue)
    fresh = True  # no block was taken since the gains were measured
    while queue:
        loss, place = heapq.heappop(queue)
        changed = _with(signs, blocks[place], sign)
        if not fresh:
            loss = worth - (yield changed)
            if queue and loss > queue[0][0]:
                heapq.heappush(queue, (loss, place))
                continue
        if not loss < 0:
            break
        signs, worth, fresh = changed, worth - loss, False
    return signs, worth


def _with(signs: Tensor, block: Block, sign: float) -> Tensor:
    changed = signs.clone()
    changed[block] = sign
    return changed


def blocks_of(shape: tuple[int, ...], side: int) -> list[Block]:
    """Cut images [C, H, W] into blocks of a side, channel by channel; those at the ends may be smaller."""
    channels, height, width = shape
    starts = itertools.product(range(channels), range(0, height, side), range(0, width, side))
    return [(c, slice(i, i + side), slice(j, j + side)) for c, i, j in starts]


def _order(rng: RowStreams, row: Tensor) -> Callable[[int], list[int]]:
    return lambda n: [int(i) for i in rng.permutation(n, rows=row.view(1))[0]]
