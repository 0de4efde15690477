"""SpikeFool: SparseFool for binary spikes, linearising the decision and flipping few coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

_MARGIN = 1e-3
"""How far the last coordinate moves past the hyperplane, in units of n^T v."""


def sparse_solution(v: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """Raise n^T v by `gap` inside [0, 1], moving the coordinates with the largest |n| first.

    Every coordinate before the last moves to its face of the box; the last one just far enough. Where
    the box is too small, all move.

    Shape: v, normal [n, P], gap [n] > 0 -> [n, P], not rounded. O(P log P).
    """
    size, order = normal.abs().sort(dim=1, descending=True, stable=True)
    start, up = v.gather(1, order), normal.gather(1, order) > 0
    room = torch.where(up, 1 - start, start)
    total = (size * room).cumsum(dim=1)
    before = total - size * room
    moved = torch.where(total < gap[:, None], room, 0.0)  # saturated: the plane is not reached yet
    last = (before < gap[:, None]) & (total >= gap[:, None])
    needed = (gap[:, None] - before + _MARGIN) / torch.where(size > 0, size, 1.0)
    moved = torch.where(last, torch.minimum(room, needed.clamp(min=1e-4)), moved)
    moved = torch.where(size > 0, moved, 0.0)
    end = (start + torch.where(up, moved, -moved)).clamp(0, 1)
    return torch.empty_like(v).scatter_(1, order, end)


@dataclass(frozen=True)
class SpikeFool:
    """DeepFool finds the boundary in real-valued inputs; the way there is taken by whole spikes.

    Args:
        reach: factor lambda on the way to the boundary; larger ones flip more and succeed sooner.
        least: smallest DeepFool step eta (L2); without it rounding can cancel every step.
        overshoot: relative overshoot of the DeepFool test.
        outer: rounds of linearise, solve, round.
        inner: DeepFool steps a round.
        top: classes considered besides the present one (those with the largest logits).
        fallback: share of the elements flipped at random where all gradients are zero.
        estimator: registry name of the gradient estimator.

    Cost: top + 1 forwards and backwards per DeepFool step, 1 and 1 per round.
    """

    reach: float = 2.0
    least: float = 0.2
    overshoot: float = 0.02
    outer: int = 20
    inner: int = 50
    top: int = 9
    fallback: float = 0.01
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="spikefool.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Buechel et al. 2022, arXiv:2110.02929. Differs: solver vectorised; the normal falls back to "
            "the DeepFool direction where it points away from the boundary; random flips where all "
            "gradients are zero (the release stops there); coordinates of 0.5 round up."
        ),
        cost="10 forwards + 10 backwards per DeepFool step",
    )

    def __post_init__(self) -> None:
        if not (self.reach > 0 and self.least >= 0) or min(self.outer, self.inner, self.top) < 1:
            raise ConfigError(
                "spikefool.l0: expected reach > 0, least >= 0 and outer, inner, top >= 1, got "
                f"{self.reach}, {self.least}, {self.outer}, {self.inner} and {self.top}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        rule: GradientEstimator = registry("estimators").get(self.estimator)
        low, high = oracle.threat.bounds
        x, going = x0.clone(), torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        for _ in range(self.outer):
            rows = oracle.active(forwards=1)
            rows = rows[going[rows]]
            if not len(rows):
                break
            going[rows[oracle.reached(oracle.logits(x[rows], rows), rows)]] = False
            rows = rows[going[rows]]
            way, other = self._deepfool(oracle, x, y, rows, rule)
            rows = rows[torch.isin(rows, oracle.active(forwards=rule.forwards, backwards=rule.backwards))]
            if not len(rows):
                break
            normal = _slope(oracle, x[rows] + way[rows], rows, other[rows], y[rows], rule)
            x[rows] = self._flip(x[rows], way[rows], normal, rng, rows, (low, high))
        rows = oracle.active(forwards=1)
        rows = rows[going[rows]]
        if len(rows):
            oracle.logits(x[rows], rows)
        best, hit = oracle.best()
        everyone = torch.arange(len(x0), device=x0.device)
        return torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), best, oracle.project(x, everyone))

    def _deepfool(
        self, oracle: Oracle, x: Tensor, y: Tensor, rows: Tensor, rule: GradientEstimator
    ) -> tuple[Tensor, Tensor]:
        """Walk to the boundary: the way r [N, ...], and the class on the other side [N]."""
        way, other = torch.zeros_like(x), y.clone()
        classes = min(self.top + 1, oracle.spec.classes)
        going = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(self.inner):
            can = oracle.active(forwards=classes * rule.forwards + 1, backwards=classes * rule.backwards)
            rows = rows[going[rows] & torch.isin(rows, can)]
            if not len(rows):
                break
            point = x[rows] + (1 + self.overshoot) * way[rows]
            logits = oracle.logits(point, rows)
            crossed = logits.argmax(dim=1) != y[rows]
            other[rows[crossed]] = logits.argmax(dim=1)[crossed]
            going[rows[crossed]] = False
            rows, point, logits = rows[~crossed], point[~crossed], logits[~crossed]
            if not len(rows):
                break
            rest = logits.scatter(1, y[rows][:, None], -torch.inf)
            kinds = torch.cat([y[rows][:, None], rest.topk(classes - 1, dim=1).indices], dim=1)
            grad = _gradients(oracle, point, rows, kinds, rule)
            w = (grad[:, 1:] - grad[:, :1]).flatten(2)
            norm = w.norm(dim=2)
            gap = logits.gather(1, kinds[:, 1:]) - logits.gather(1, kinds[:, :1])
            ratio = torch.where(norm > 0, gap.abs() / torch.where(norm > 0, norm, 1.0), torch.inf)
            nearest = ratio.argmin(dim=1, keepdim=True)
            step = ratio.gather(1, nearest).clamp(min=self.least)
            size = norm.gather(1, nearest)
            direction = w.gather(1, nearest[:, :, None].expand(-1, 1, w.shape[2])).squeeze(1)
            move = torch.where(size > 0, step * direction / torch.where(size > 0, size, 1.0), 0.0)
            way[rows] += move.view_as(point)
            other[rows] = kinds[:, 1:].gather(1, nearest).squeeze(1)
            going[rows[size.squeeze(1) == 0]] = False
        return way, other

    def _flip(
        self,
        x: Tensor,
        way: Tensor,
        normal: Tensor,
        rng: RowStreams,
        rows: Tensor,
        bounds: tuple[float, float],
    ) -> Tensor:
        """Take the way to the boundary by whole spikes."""
        low, high = bounds
        r, n = way.flatten(1) / (high - low), normal.flatten(1)
        away = (n * r).sum(dim=1) <= 0
        n = torch.where(away[:, None], r, n)
        length = n.norm(dim=1)
        dead = length == 0
        n = n / torch.where(dead, 1.0, length)[:, None]
        gap = self.reach * (n * r).sum(dim=1)
        s = (x.flatten(1) - low) / (high - low)
        after = (sparse_solution(s, n, gap) >= 0.5).to(s)
        chance = rng.uniform((s.shape[1],), rows=rows, dtype=s.dtype)
        after = torch.where(dead[:, None], torch.where(chance < self.fallback, 1 - s, s), after)
        return torch.where(after > 0.5, high, low).to(x).view_as(x)


def _gradients(oracle: Oracle, x: Tensor, rows: Tensor, kinds: Tensor, rule: GradientEstimator) -> Tensor:
    """Return the gradients of several logits of every input: kinds [n, k] -> [n, k, ...]."""
    n, k = kinds.shape
    flat = kinds.flatten()
    out = oracle.loss_and_grad(
        x.repeat_interleave(k, dim=0),
        rows.repeat_interleave(k),
        lambda logits, _: logits.gather(1, flat[:, None]).squeeze(1),
        estimator=rule,
    )
    return out.grad.view(n, k, *x.shape[1:])


def _slope(
    oracle: Oracle, x: Tensor, rows: Tensor, other: Tensor, y: Tensor, rule: GradientEstimator
) -> Tensor:
    """Return the gradient of the other class's logit minus the true one's."""

    def difference(logits: Tensor, _: Tensor) -> Tensor:
        return logits.gather(1, other[:, None]).squeeze(1) - logits.gather(1, y[:, None]).squeeze(1)

    return oracle.loss_and_grad(x, rows, difference, estimator=rule).grad
