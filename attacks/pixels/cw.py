"""Carlini-Wagner L2: the smallest Euclidean perturbation, by a search over the weight of the margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.pixels.climbing import check
from robustspike.attacks.pixels.climbing import eot
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

_INSIDE = 0.999999
"""How far the tanh space reaches towards the bounds: atanh of the bounds themselves is infinite."""

_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8


class _Adam:
    """Adam with a state for every sample, so that samples can leave and start again."""

    def __init__(self, w: Tensor, rate: float) -> None:
        self.mean, self.square, self.rate = torch.zeros_like(w), torch.zeros_like(w), rate

    def step(self, rows: Tensor, gradient: Tensor, time: int) -> Tensor:
        """Return the change of the given rows at step `time` = 1, 2, ..."""
        self.mean[rows] = _BETA1 * self.mean[rows] + (1 - _BETA1) * gradient
        self.square[rows] = _BETA2 * self.square[rows] + (1 - _BETA2) * gradient.square()
        mean = self.mean[rows] / (1 - _BETA1**time)
        square = self.square[rows] / (1 - _BETA2**time)
        return -self.rate * mean / (square.sqrt() + _TINY)


@dataclass(frozen=True)
class CarliniWagner:
    """Minimise |x - x0|^2 + c * max(-margin, -confidence) over tanh space, and search for c.

    Args:
        steps: Adam steps for each c.
        searches: values of c that are tried: multiplied by 10 until the first success, then bisected.
        rate: Adam's learning rate.
        weight: first c, per squared unit of the input range.
        confidence: margin beyond which the classification term stops pushing.
        estimator: registry name of the gradient estimator.
        draws: noise draws averaged into one gradient (EOT); 0: 10 for stochastic victims, else 1.

    Cost: searches * steps gradients.
    """

    steps: int = 100
    searches: int = 6
    rate: float = 0.05
    weight: float = 0.1
    confidence: float = 0.0
    estimator: str = "native"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="cw.l2",
        geometries=("l2",),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        minimum_norm=True,
        source=(
            "Carlini & Wagner 2017, arXiv:1608.04644, section V.A. Differs: 6 values of c with 100 steps of "
            "rate 0.05 from c = 0.1 (theirs: 9 with 1000 steps of 0.01 from 0.001); wrong classes are masked "
            "with -inf; the nearest success of all iterates is returned."
        ),
        cost="600 forwards + 600 backwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, steps=self.steps, searches=self.searches, rate=self.rate, weight=self.weight)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        shape = (-1, *[1] * (x0.dim() - 1))
        low, high = oracle.threat.bounds
        half, middle = (high - low) / 2, (high + low) / 2
        origin = torch.atanh((x0 - middle) / half * _INSIDE)
        weight = torch.full((len(x0),), self.weight, dtype=x0.dtype, device=x0.device)
        floor, ceiling = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        draws = eot(oracle, self.draws)
        for _ in range(self.searches):
            w, adam = origin.clone(), _Adam(origin, self.rate)
            reached = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
            for time in range(1, self.steps + 1):
                rows = oracle.differentiable(self.estimator, draws=draws)
                if not len(rows):
                    break
                bent = torch.tanh(w[rows])
                x = oracle.project(middle + half * bent, rows)
                out = oracle.loss_and_grad(x, rows, "margin", estimator=self.estimator, draws=draws)
                reached[rows] |= out.loss > 0
                pushing = (out.loss < self.confidence).to(x.dtype) * weight[rows]
                slope = 2 * (x - x0[rows]) / (2 * half) ** 2 - pushing.view(shape) * out.grad
                w[rows] += adam.step(rows, slope * half * (1 - bent.square()), time)
            ceiling = torch.where(reached, torch.minimum(ceiling, weight), ceiling)
            floor = torch.where(reached, floor, torch.maximum(floor, weight))
            weight = torch.where(torch.isinf(ceiling), 10 * weight, (floor + ceiling) / 2)
        return oracle.best()[0]
