"""Sparse attack on event frames: Adam on an additive map, restricted to some of the time steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Loss
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

_BETAS = (0.9, 0.999)
_BISECTIONS = 8


def _evade(logits: Tensor, y: Tensor) -> Tensor:
    """Return log(1 - q_y) per sample, exact for confident victims too."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(dim=1) - logits.logsumexp(dim=1)


def _attract(logits: Tensor, y: Tensor) -> Tensor:
    """Return -log q_y per sample; the oracle negates it for targeted goals."""
    return -logits.log_softmax(dim=1).gather(1, y[:, None]).squeeze(1)


@dataclass(frozen=True)
class DvsSparse:
    """Learn a map M that is added to the frames at some times, round it to spikes, keep the largest.

    Args:
        steps: Adam steps.
        lr: learning rate of Adam in units of one spike.
        weight: weight of the l1 norm of M in the loss.
        masked: share of the time steps, drawn for each sample, that the attacker may not touch.
        estimator: registry name of the gradient estimator.

    Cost: per step the estimator's passes and 1 forward; then 1 forward, and 8 more without a budget.
    """

    steps: int = 20
    lr: float = 0.1
    weight: float = 1e-3
    masked: float = 0.25
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="dvs_sparse.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Marchisio et al., IJCNN 2021, arXiv:2107.00415, Sparse; form of Buechel et al. 2022, "
            "arXiv:2110.02929 (M starts at 0, random time mask, rounding). Differs: softmax of the logits "
            "instead of normalised spike counts; log(1 - q) without an added 1e-6, at which confident "
            "victims have no gradient; l1 penalty; every iterate is rounded and tried, and at the end the "
            "largest entries of M become flips (the released notebooks change one time slot of a reshaped "
            "tensor, which is not followed)."
        ),
        cost="41 forwards + 20 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0 or self.weight < 0 or not 0 <= self.masked < 1:
            raise ConfigError(
                f"{self.spec.name}: steps must be at least 1, lr above 0, weight 0 or more and masked in "
                f"[0, 1), got {self.steps}, {self.lr}, {self.weight} and {self.masked}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        rule: GradientEstimator = registry("estimators").get(self.estimator)
        loss: Loss = _attract if oracle.threat.goal is Goal.TARGETED else _evade
        low, high = oracle.threat.bounds
        allowed = self._times(x0, rng)
        change, first, second = (torch.zeros_like(x0) for _ in range(3))
        x = x0.clone()
        for step in range(1, self.steps + 1):
            rows = _open(oracle, oracle.differentiable(rule))
            if not len(rows):
                break
            free = x0[rows] + change[rows]
            out = oracle.loss_and_grad(free.clamp(low, high), rows, loss, estimator=rule)
            inside = (free >= low) & (free <= high)
            ascent = (out.grad * inside - self.weight * change[rows].sign()) * allowed[rows]
            first[rows] = _BETAS[0] * first[rows] + (1 - _BETAS[0]) * ascent
            second[rows] = _BETAS[1] * second[rows] + (1 - _BETAS[1]) * ascent.square()
            scale = (second[rows] / (1 - _BETAS[1] ** step)).sqrt() + 1e-8
            moved = change[rows] + self.lr * first[rows] / (1 - _BETAS[0] ** step) / scale
            change[rows] = (x0[rows] + moved).clamp(low, high) - x0[rows]
            rows = _open(oracle, oracle.active(forwards=1))
            if len(rows):
                x[rows] = oracle.project(x0[rows] + change[rows], rows)
                oracle.labels(x[rows], rows)
        self._flip_largest(oracle, x0, y, x, change)
        best, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x.dim() - 1)), best, x)

    def _times(self, x0: Tensor, rng: RowStreams) -> Tensor:
        """Draw which time steps of each sample may change: [N, T, 1, ...] of 0 and 1."""
        steps = x0.shape[1]
        order = rng.permutation(steps)
        times = torch.ones(len(x0), steps, dtype=x0.dtype, device=x0.device)
        times.scatter_(1, order[:, : int(self.masked * steps)], 0.0)
        return times.view(len(x0), steps, *[1] * (x0.dim() - 2))

    def _flip_largest(self, oracle: Oracle, x0: Tensor, y: Tensor, x: Tensor, change: Tensor) -> None:
        """Flip the cells with the largest changes: as many as the budget allows, else by bisection."""
        low, high = oracle.threat.bounds
        targets = oracle.targets
        size = change.flatten(1).abs()
        order = size.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order)
        rank.scatter_(1, order, torch.arange(order.shape[1], device=x0.device).expand_as(order))
        most = (size > 0).sum(dim=1).clamp(max=int(oracle.radius))
        fails, works = torch.zeros_like(most), most.clone()

        def flipped(rows: Tensor, count: Tensor) -> Tensor:
            flips = (rank[rows] < count[:, None]).view_as(x0[rows])
            return torch.where(flips, low + high - x0[rows], x0[rows])

        rows = _open(oracle, oracle.active(forwards=1))
        rows = rows[most[rows] > 0]
        if len(rows):
            x[rows] = flipped(rows, most[rows])
            oracle.labels(x[rows], rows)
        if not oracle.threat.is_minimum_norm:
            return
        for _ in range(_BISECTIONS):
            rows = oracle.active(forwards=1)
            rows = rows[oracle.best()[1][rows] & (works - fails > 1)[rows]]
            if not len(rows):
                break
            middle = (works[rows] + fails[rows]) // 2
            label = oracle.labels(flipped(rows, middle), rows)
            good = label == targets[rows] if targets is not None else label != y[rows]
            works[rows] = torch.where(good, middle, works[rows])
            fails[rows] = torch.where(good, fails[rows], middle)


def _open(oracle: Oracle, rows: Tensor) -> Tensor:
    """Keep the rows without a success; without a budget the oracle itself never closes a row."""
    if oracle.spec.stochastic:
        return rows
    return rows[~oracle.best()[1][rows]]
