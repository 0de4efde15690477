"""Gumbel attack on binary grids: descend on the log-odds of every spike through sampled hard grids."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

_TINY = 2.0**-25
"""Uniform numbers are kept this far from 0 and 1 where their logarithm is taken."""


def relaxed(odds: Tensor, draw: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample Bernoulli variables by the Gumbel trick: their hard values, and d(soft)/d(odds).

    Args:
        odds: log-odds of a one.
        draw: uniform numbers in [0, 1).
        temperature: of the soft sample whose slope replaces that of the step (straight-through).
    """
    u = draw.clamp(_TINY, 1 - _TINY)
    noisy = odds + torch.log(u) - torch.log1p(-u)
    soft = torch.sigmoid(noisy / temperature)
    return (noisy > 0).to(odds), soft * (1 - soft) / temperature


def annealed(step: int, steps: int, first: float, last: float) -> float:
    """Return a cosine schedule from first (step 0) to last (the final step)."""
    share = step / max(1, steps - 1)
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


class RowAdam:
    """Adam whose moments belong to rows, so a row's steps do not depend on its batch mates."""

    def __init__(self, like: Tensor) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.count = torch.zeros(len(like), 1, dtype=like.dtype, device=like.device)

    def step(self, rows: Tensor, grad: Tensor, rate: float) -> Tensor:
        """Return the ascent step of some rows. Shape: grad [n, P]."""
        self.count[rows] += 1
        self.first[rows] = 0.9 * self.first[rows] + 0.1 * grad
        self.second[rows] = 0.999 * self.second[rows] + 0.001 * grad.square()
        count = self.count[rows]
        mean = self.first[rows] / (1 - 0.9**count)
        spread = (self.second[rows] / (1 - 0.999**count)).sqrt()
        return rate * mean / (spread + 1e-8)


@dataclass(frozen=True)
class Gumbel:
    """Ascend the loss of sampled binary grids minus a price per flip, in the log-odds of each element.

    Args:
        steps: gradient steps.
        draws: hard samples averaged in one gradient.
        rate: Adam's step size at the start; it falls to zero by a cosine.
        price: what one flip costs, in units of the loss.
        start: initial log-odds of every element for its clean value.
        limit: largest absolute log-odds.
        hot, cold: temperature at the start and at the end (cosine).
        stop: whether a sample stops at its first hit (as published); else it goes on, and the nearest
            hit counts.
        loss: name of the loss that is increased.
        estimator: registry name of the gradient estimator.
        restarts: independent searches, each on the samples still standing (minimum-norm threat: on all).

    Cost: per search steps * (draws + 1) forwards, steps * draws backwards.
    """

    steps: int = 100
    draws: int = 1
    rate: float = 0.3
    price: float = 0.1
    start: float = 4.0
    limit: float = 8.0
    hot: float = 2.0
    cold: float = 0.1
    stop: bool = False
    loss: str = "margin"
    estimator: str = "native"
    restarts: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="gumbel.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Yao, Zhao & Gu, ECCV 2024 (binary-grid variant). Differs: correct straight-through sign; "
            "one log-odds per element; untargeted too; the most likely grid is tested at every step; "
            "the rate is annealed over all steps; price per flip, not on the mean; wider log-odds, "
            "because those published leave 27 % of the elements to chance at the start."
        ),
        cost="200 forwards + 100 backwards",
    )

    def __post_init__(self) -> None:
        if (
            min(self.steps, self.draws, self.restarts) < 1
            or not 0 < self.cold <= self.hot
            or not self.limit >= self.start
        ):
            raise ConfigError(
                "gumbel.l0: expected steps, draws, restarts >= 1, 0 < cold <= hot and start <= limit, got "
                f"{self.steps}, {self.draws}, {self.restarts}, {self.cold}, {self.hot}, {self.start} and "
                f"{self.limit}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        rule: GradientEstimator = registry("estimators").get(self.estimator)
        x = self._attempt(oracle, x0, rule, rng)
        for _ in range(1, self.restarts):
            if not len(oracle.active()):
                break
            oracle.forget()
            x = self._attempt(oracle, x0, rule, rng)
        best, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), best, x)

    def _attempt(self, oracle: Oracle, x0: Tensor, rule: GradientEstimator, rng: RowStreams) -> Tensor:
        """Search from one start; return the most likely grids."""
        low, high = oracle.threat.bounds
        clean = ((x0 - low) / (high - low)).flatten(1)
        away = 1 - 2 * clean  # the direction of each element's flip
        odds, adam = -self.start * away, RowAdam(clean)
        going = torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        for step in range(self.steps):
            rows = oracle.active(
                forwards=self.draws * rule.forwards + 1, backwards=self.draws * rule.backwards
            )
            rows = rows[going[rows]]
            if not len(rows):
                break
            draw = rng.uniform((self.draws, clean.shape[1]), rows=rows, dtype=clean.dtype)
            heat = annealed(step, self.steps, self.hot, self.cold)
            hard, slope = relaxed(odds[rows][:, None], draw, heat)
            x = torch.where(hard.flatten(0, 1) > 0.5, high, low).to(x0).view(-1, *x0.shape[1:])
            owner = rows.repeat_interleave(self.draws)
            out = oracle.loss_and_grad(x, owner, self.loss, estimator=rule)
            gain = out.grad.reshape(hard.shape) * (high - low) - self.price * away[rows][:, None]
            grad = (gain * slope).mean(dim=1)
            length = grad.norm(dim=1, keepdim=True)
            grad = grad * (20 / length.clamp(min=20))
            rate = annealed(step, self.steps, self.rate, 0.0)
            odds[rows] = (odds[rows] + adam.step(rows, grad, rate)).clamp(-self.limit, self.limit)
            likely = self._likely(odds[rows], x0[rows], (low, high))
            hit = oracle.reached(oracle.logits(likely, rows), rows)
            hit |= oracle.reached(out.logits, owner).view(-1, self.draws).any(dim=1)
            going[rows[hit]] = not self.stop
        return oracle.project(self._likely(odds, x0, (low, high)), torch.arange(len(x0), device=x0.device))

    def _likely(self, odds: Tensor, like: Tensor, bounds: tuple[float, float]) -> Tensor:
        """Return the most likely grid."""
        return torch.where(odds > 0, bounds[1], bounds[0]).to(like).view_as(like)
