"""SA-PGD: unsigned gradient ascent with per-element adaptive steps on a fixed schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


def halvings(steps: int) -> tuple[int, ...]:
    """Return after how many steps the step size is halved: 22, 41, 57, 70, 80, 87, 93, 99 of 100.

    The first interval is 22 % of the steps, each later one 3 points shorter, at least 6 points;
    fractions of a step are rounded up.
    """
    found, at, interval = [], 22, 22
    while at < 100:
        found.append(-(-at * steps // 100))
        interval = max(interval - 3, 6)
        at += interval
    return tuple(found)


def normalised(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return g / mean |g| and g^2 / mean g^2 of every sample; zero where g is zero or not finite.

    The largest element is divided out first, so that neither tiny nor huge gradients leave the
    range of the number format.
    """
    axes = list(range(1, grad.dim()))
    largest = grad.abs().amax(dim=axes, keepdim=True)
    usable = (largest > 0) & torch.isfinite(largest)
    unit = torch.where(usable, grad / torch.where(usable, largest, 1.0), 0.0)
    one = torch.ones_like(largest)
    first = unit / torch.where(usable, unit.abs().mean(dim=axes, keepdim=True), one)
    second = unit.square() / torch.where(usable, unit.square().mean(dim=axes, keepdim=True), one)
    return first, second


@dataclass(frozen=True)
class SaPgd:
    """Stable adaptive PGD.

    With g' = g / mean |g| and g'' = g^2 / mean g^2 of the sample: m = 0.5 m + g', v = 0.8 v + g'',
    x moves by m / sqrt(v) times the step size, at most by the step size. The step size starts at eps
    and is halved at fixed steps; nothing is signed.

    Args:
        steps: gradient steps.
        momentum, decay: memory of m and of v.
        estimator: gradient estimator.
        loss: name of the loss that is increased.
        draws: noise draws averaged for one gradient of a stochastic victim (EOT); the paper uses 10
            with 50 steps for Poisson coding.

    Cost: steps * draws * (forwards + backwards of the estimator), and 1 forward for the last iterate.
    """

    steps: int = 100
    momentum: float = 0.5
    decay: float = 0.8
    estimator: str = "assg"
    loss: str = "ce"
    draws: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="sapgd.linf",
        geometries=("linf",),
        stochastic=True,
        source=(
            "Wang et al., arXiv:2512.22522, SA-PGD. Differs: a sample whose gradient is zero or not finite "
            "adds nothing to m and v (the release returns NaN inputs); moments are taken over all axes of a "
            "sample (the release leaves out the last axis of event frames); a sample stops at its first "
            "hit, which is returned in place of the latest one."
        ),
        cost="101 forwards + 100 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or self.draws < 1:
            raise ConfigError(
                f"sapgd.linf: steps and draws must be at least 1, got {self.steps} and {self.draws}."
            )
        if not (0 <= self.momentum < 1 and 0 <= self.decay < 1):
            raise ConfigError(
                f"sapgd.linf: momentum and decay must be in [0, 1), got {self.momentum} and {self.decay}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        span = oracle.threat.bounds[1] - oracle.threat.bounds[0]
        eps = span if oracle.threat.eps is None else min(float(oracle.threat.eps), span)
        everyone = torch.arange(len(x0), device=x0.device)
        x = oracle.project(x0 + eps * self._start(x0, rng), everyone)
        m, v = torch.zeros_like(x0), torch.zeros_like(x0)
        cost = oracle.cost(self.estimator)
        size, shrink = eps, halvings(self.steps)
        for step in range(self.steps):
            rows = oracle.active(forwards=self.draws * cost.forwards, backwards=self.draws * cost.backwards)
            if not len(rows):
                break
            out = oracle.loss_and_grad(
                x[rows], rows, self.loss, estimator=self.estimator, draws=self.draws
            )
            first, second = normalised(out.grad)
            m[rows] = self.momentum * m[rows] + first
            v[rows] = self.decay * v[rows] + second
            move = (size * m[rows] / (v[rows].sqrt() + 1e-12)).clamp(-size, size)
            x[rows] = oracle.project(x[rows] + move, rows)
            size /= 2.0 ** shrink.count(step + 1)
        rows = oracle.active(forwards=1)
        if len(rows):
            oracle.logits(x[rows], rows)
        return oracle.best()[0]

    @staticmethod
    def _start(x0: Tensor, rng: RowStreams) -> Tensor:
        """Return uniform noise of every sample, scaled so that its largest element is 1."""
        noise = rng.uniform(x0.shape[1:], dtype=x0.dtype) * 2 - 1
        largest = noise.abs().amax(dim=list(range(1, x0.dim())), keepdim=True)
        return noise / largest.clamp(min=1e-12)
