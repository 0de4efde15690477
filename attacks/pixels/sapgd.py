"""SA-PGD: unsigned gradient ascent with per-element adaptive steps on a fixed schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.pixels.apgd import surface
from robustspike.attacks.pixels.climbing import ascend
from robustspike.attacks.pixels.climbing import check
from robustspike.attacks.pixels.climbing import from_starts
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
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


def step_sizes(start: float, steps: int) -> list[float]:
    """Return the step size of every step."""
    shrink = halvings(steps)
    return [start / 2.0 ** sum(at <= step for at in shrink) for step in range(steps)]


@dataclass(frozen=True)
class SaPgd:
    """Stable adaptive PGD.

    With g' = g / mean |g| and g'' = g^2 / mean g^2 of the sample: m = 0.5 m + g', v = 0.8 v + g'',
    x moves by m / sqrt(v) times the step size, at most by the step size. The step size starts at eps
    and is halved at fixed steps; nothing is signed.

    Args:
        steps: gradient steps.
        momentum, decay: memory of m and of v.
        restarts: random starts, each run on the samples still standing.
        estimator: gradient estimator.
        loss: name of the loss that is increased.
        draws: noise draws averaged into one gradient (EOT); 0: 10 for stochastic victims, else 1.
            The paper takes 50 steps where it draws 10.

    Cost: per start `steps` gradients, and 1 forward for the last iterate.
    """

    steps: int = 100
    momentum: float = 0.5
    decay: float = 0.8
    restarts: int = 1
    estimator: str = "assg"
    loss: str = "ce"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="sapgd.linf",
        geometries=("linf",),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=(
            "Wang et al., arXiv:2512.22522, SA-PGD. Differs: a sample whose gradient is zero or not finite "
            "adds nothing to m and v (the release returns NaN inputs); moments are taken over all axes of a "
            "sample (the release leaves out the last axis of event frames); a sample stops at its first "
            "hit, which is returned in place of the latest one; for a stochastic victim the iterate of "
            "largest loss is returned, not one that a single draw got wrong."
        ),
        cost="101 forwards + 100 backwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, steps=self.steps, restarts=self.restarts)
        if not (0 <= self.momentum < 1 and 0 <= self.decay < 1 and self.draws >= 0):
            raise ConfigError(
                f"sapgd.linf: momentum and decay must be in [0, 1) and draws at least 0, got "
                f"{self.momentum}, {self.decay} and {self.draws}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        def climb(_: int) -> tuple[Tensor, Tensor]:
            m, v = torch.zeros_like(x0), torch.zeros_like(x0)
            sizes = iter(step_sizes(oracle.radius, self.steps))

            def step(x: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
                first, second = normalised(gradient)
                m[rows] = self.momentum * m[rows] + first
                v[rows] = self.decay * v[rows] + second
                size = next(sizes)
                return x + (size * m[rows] / (v[rows].sqrt() + 1e-12)).clamp(-size, size)

            return ascend(
                oracle,
                surface(oracle, x0, rng=rng),
                steps=self.steps,
                step=step,
                loss=self.loss,
                estimator=self.estimator,
                draws=self.draws,
            )

        return from_starts(oracle, x0, climb, restarts=self.restarts)
