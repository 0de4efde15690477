"""Attacks that see scores only: random squares, estimated gradients, and boundary walking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robustspike.attacks.quality.iterated import GOALS
from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import directions
from robustspike.attacks.quality.iterated import finish
from robustspike.attacks.quality.iterated import per_image
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

_SHRINK_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class QualitySquare:
    """Redraw one +/-eps square at a time; keep it if the score moves the right way.

    Args:
        queries: forwards per sample.
        p: share of the image that the first squares cover.
        stripes: try vertical +/-eps stripes first.

    Cost: queries forwards.
    """

    queries: int = 500
    p: float = 0.05
    stripes: bool = True
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.square",
        geometries=("linf",),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source=(
            "Andriushchenko et al. 2020, arXiv:1912.00049, on the score (Gushchin et al., ICML 2025; Ran et "
            "al.). Differs: one square a query; no logistic mapping of the score; stripes count only if "
            "they help."
        ),
        cost="500 forwards",
    )

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.p <= 1:
            raise ConfigError(
                f"quality.square: queries must be at least 1 and p in (0, 1], got {self.queries} and "
                f"{self.p}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x, eps = x0.clone(), oracle.radius
        channels, height, width = x0.shape[1:]
        rows = oracle.active(forwards=1)
        if not len(rows):
            return x
        scores = oracle.logits(x0[rows], rows).squeeze(1)
        aim, top = torch.zeros(2, len(x0), dtype=x0.dtype, device=x0.device)
        aim[rows] = directions(oracle, scores)
        top[rows] = aim[rows] * scores
        for query in range(1, self.queries):
            rows = oracle.active(forwards=1)
            rows = rows[aim[rows] != 0]
            if not len(rows):
                break
            if query == 1 and self.stripes:
                signs = rng.sign((channels, 1, width), rows=rows, dtype=x0.dtype)
                drawn = x0[rows] + eps * signs.expand(-1, -1, height, -1)
            else:
                side = self.side(query, height, width)
                top_left = [rng.integers(size - side + 1, (1,), rows=rows) for size in (height, width)]
                signs = rng.sign((channels, 1, 1), rows=rows, dtype=x0.dtype)
                inside = _square(top_left, side, height, width)
                drawn = torch.where(inside, x0[rows] + eps * signs, x[rows])
            candidate = oracle.project(drawn, rows)
            worth = aim[rows] * oracle.logits(candidate, rows).squeeze(1)
            better = worth > top[rows]
            x[rows[better]], top[rows[better]] = candidate[better], worth[better]
        return x

    def side(self, query: int, height: int, width: int) -> int:
        """Return the side of the square at a query, on the schedule of 10,000 queries."""
        at = query / self.queries * 10_000
        share = self.p / 2 ** sum(at > limit for limit in _SHRINK_AT)
        return max(1, min(round(math.sqrt(share * height * width)), height, width))


def _square(top_left: list[Tensor], side: int, height: int, width: int) -> Tensor:
    """Return the mask [n, 1, H, W] of one square per row."""
    inside = []
    for start, size in zip(top_left, (height, width), strict=True):
        place = torch.arange(size, device=start.device)
        inside.append((place >= start) & (place < start + side))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]


@dataclass(frozen=True)
class QualityNes:
    """Ascend a gradient estimated from pairs of opposite Gaussian probes.

    Args:
        iterations: steps.
        samples: probes per step, in opposite pairs.
        sigma: size of a probe in pixel units; below about 1/255 a spiking score answers with flips.
        step: step size as a share of eps, times iterations.
        tile: size of the probe pattern, which is tiled.

    Cost: 1 + iterations * samples + 1 forwards.
    """

    iterations: int = 25
    samples: int = 20
    sigma: float = 1 / 255
    step: float = 2.5
    tile: int = 32
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.nes",
        geometries=("linf",),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source=(
            "Ilyas et al. 2018, arXiv:1804.08598, as 'grad-est' in Gushchin et al., ICML 2025. Differs: "
            "sigma "
            "1/255 instead of 0.001, signed steps instead of L2 steps, 25 iterations instead of 250."
        ),
        cost="502 forwards",
    )

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.samples < 2 or not self.sigma > 0 or self.tile < 1:
            raise ConfigError(
                "quality.nes: iterations must be at least 1, samples at least 2, sigma above 0 and tile "
                "at least "
                f"1, got {self.iterations}, {self.samples}, {self.sigma} and {self.tile}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x, pairs = x0.clone(), self.samples // 2
        rows = oracle.active(forwards=1)
        if not len(rows):
            return x
        aim = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        aim[rows] = directions(oracle, oracle.logits(x0[rows], rows).squeeze(1))
        channels, height, width = x0.shape[1:]
        size = oracle.radius * self.step / self.iterations
        for _ in range(self.iterations):
            rows = oracle.active(forwards=2 * pairs)
            rows = rows[aim[rows] != 0]
            if not len(rows):
                break
            estimate = torch.zeros_like(x[rows])
            for _ in range(pairs):
                small = rng.normal((channels, self.tile, self.tile), rows=rows, dtype=x0.dtype)
                probe = small.repeat(1, 1, -(-height // self.tile), -(-width // self.tile))
                probe = probe[:, :, :height, :width]
                ends = [oracle.project(x[rows] + s * self.sigma * probe, rows) for s in (1, -1)]
                difference = torch.sub(*(oracle.logits(end, rows).squeeze(1) for end in ends))
                estimate += per_image(torch.nan_to_num(difference), x0) * probe
            gradient = per_image(aim[rows], x0) * estimate
            x[rows] = oracle.project(x[rows] + size * gradient.sign(), rows)
        return finish(oracle, x, x0)


@dataclass(frozen=True)
class BbqLike:
    """Cross one score boundary after another, each time walking back towards the clean image.

    For a boundary, a changed image (blurred, sharpened, noisy) is blended with the clean one until its
    score is across; then random low-frequency turns around the clean image bring it nearer while it stays
    across. The projection of every accepted point into the ball is asked too; once that is across, the
    next boundary lies farther.

    Args:
        queries: forwards per sample.
        advance: distance between boundaries as a share of the score range.
        angle: first angle of a turn in degrees; it shrinks by 0.95 after a failure.

    Cost: queries forwards at most.
    """

    queries: int = 300
    advance: float = 0.05
    angle: float = 30.0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.bbq_like",
        geometries=("linf",),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source=(
            "The idea of Yang et al. 2024, arXiv:2401.05217 (regression as crossing score boundaries), whose "
            "inner details are not public; turns after SurFree (Maho et al., CVPR 2021). Differs: one "
            "query a "
            "turn instead of a binary search, no memory of past directions, no JPEG among the starts, the "
            "projection into the ball is asked after every accepted turn."
        ),
        cost="300 forwards",
    )

    def __post_init__(self) -> None:
        if self.queries < 2 or not self.advance > 0 or not 0 < self.angle < 90:
            raise ConfigError(
                "quality.bbq_like: queries must be at least 2, advance above 0 and angle in (0, 90), got "
                f"{self.queries}, {self.advance} and {self.angle}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        walk = _Walk(self, oracle, x0, rng)
        while walk.open_new_boundaries() | walk.turn():
            pass
        return walk.best


class _Walk:
    """The state of BbqLike on one batch."""

    def __init__(self, attack: BbqLike, oracle: Oracle, x0: Tensor, rng: RowStreams) -> None:
        self.attack, self.oracle, self.x0, self.rng = attack, oracle, x0, rng
        low, high = oracle.spec.score_range or (0.0, 1.0)
        n, device = len(x0), x0.device
        self.step = attack.advance * (high - low)
        self.best, self.z = x0.clone(), x0.clone()
        self.clean, self.aim, self.top = torch.zeros(3, n, dtype=x0.dtype, device=device)
        self.boundary = torch.full_like(self.top, self.step)
        self.angle = torch.full_like(self.top, math.radians(attack.angle))
        self.across = torch.zeros(n, dtype=torch.bool, device=device)
        self.ended = torch.zeros(n, dtype=torch.bool, device=device)
        self.start = oracle.threat.budget.forwards
        soft = functional.avg_pool2d(functional.pad(x0, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        noise = rng.sign(x0.shape[1:], dtype=x0.dtype) / 8
        self.changed = (2 * x0 - soft, soft, x0 + noise)
        rows = oracle.active(forwards=1) if oracle.radius else torch.arange(0, device=device)
        self.ended[~torch.isin(torch.arange(n, device=device), rows)] = True
        if len(rows):
            self.clean[rows] = oracle.logits(x0[rows], rows).squeeze(1)
            self.aim[rows] = directions(oracle, self.clean[rows])

    def able(self, forwards: int) -> Tensor:
        """Return the rows that go on and can pay, of the oracle's budget and of the attack's."""
        rows = self.oracle.active(forwards=forwards)
        spent = self.start - self.oracle.forwards_left(rows)
        return rows[~self.ended[rows] & (spent + forwards <= self.attack.queries)]

    def worth(self, x: Tensor, rows: Tensor) -> Tensor:
        """Ask for the change of the score the right way."""
        return self.aim[rows] * (self.oracle.logits(x, rows).squeeze(1) - self.clean[rows])

    def open_new_boundaries(self) -> bool:
        """Find a changed image across the boundary for every row that has none."""
        moved = False
        for blend in (0.1, 0.3, 1.0):
            for image in self.changed:
                rows = self.able(1)
                rows = rows[~self.across[rows]]
                if not len(rows):
                    continue
                candidate = (self.x0[rows] + blend * (image[rows] - self.x0[rows])).clamp(0, 1)
                found = self.worth(candidate, rows) >= self.boundary[rows]
                self.z[rows[found]], self.across[rows[found]] = candidate[found], True
                moved |= bool(found.any())
        self.ended |= ~self.across
        return moved

    def turn(self) -> bool:
        """Turn every point once, keep those still across, and ask for their projections."""
        rows = self.able(2)
        if not len(rows):
            return False
        x0 = self.x0[rows]
        angle = per_image(self.angle[rows] * self.rng.sign((), rows=rows, dtype=x0.dtype), x0)
        candidate = self.turned(x0, self.z[rows], angle, rows)
        stays = self.worth(candidate, rows) >= self.boundary[rows]
        self.z[rows[stays]] = candidate[stays]
        self.angle[rows] = torch.where(stays, self.angle[rows], 0.95 * self.angle[rows]).clamp(min=0.02)
        at = rows[stays]
        if len(at):
            inside = self.oracle.project(candidate[stays], at)
            worth = self.worth(inside, at)
            better = worth > self.top[at]
            self.best[at[better]], self.top[at[better]] = inside[better], worth[better]
            crossed = at[worth >= self.boundary[at]]
            self.boundary[crossed] = self.top[crossed] + self.step
            self.across[crossed] = False
        return True

    def turned(self, x0: Tensor, z: Tensor, angle: Tensor, rows: Tensor) -> Tensor:
        """Return z turned around x0 towards a random low-frequency direction; nearer by cos(angle)."""
        offset = z - x0
        radius = per_image(offset.flatten(1).norm(dim=1).clamp(min=1e-12), x0)
        unit = offset / radius
        coarse = [max(2, size // 8) for size in x0.shape[2:]]
        drawn = self.rng.normal((x0.shape[1], *coarse), rows=rows, dtype=x0.dtype)
        other = functional.interpolate(drawn, size=x0.shape[2:], mode="bilinear")
        other = other - per_image((other * unit).flatten(1).sum(dim=1), x0) * unit
        other = other / per_image(other.flatten(1).norm(dim=1).clamp(min=1e-12), x0)
        return (x0 + radius * angle.cos() * (angle.cos() * unit + angle.sin() * other)).clamp(0, 1)
