"""PGD: projected gradient ascent from a random start, the best iterate kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""How an optimiser moves: (x, gradient, rows) -> the next x, before projection."""

EOT_DRAWS = 10
"""Noise draws averaged into one gradient of a stochastic victim (ASSG's setting)."""


def eot(oracle: Oracle, draws: int) -> int:
    """Return the number of noise draws: `draws`, or for 0 the default, 1 without noise."""
    return draws or (EOT_DRAWS if oracle.spec.stochastic else 1)


def check(name: str, **positive: float) -> None:
    """Refuse parameters that are not above 0. Raises: ConfigError."""
    for key, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{name}: {key} must be above 0, got {value}.")


def unit(gradient: Tensor, *, power: int) -> Tensor:
    """Scale each row's gradient to mean absolute value 1 (power 1) or Euclidean norm 1 (power 2).

    Rows whose gradient is zero stay zero.
    """
    flat = gradient.flatten(1)
    size = flat.abs().mean(dim=1) if power == 1 else flat.norm(dim=1)
    size = torch.where(size > 0, size, torch.ones_like(size))
    return gradient / size.view(-1, *[1] * (gradient.dim() - 1))


def settle(oracle: Oracle, best: Tensor) -> Tensor:
    """Return the adversarial examples that the oracle remembers, and `best` where it has none.

    For stochastic victims `best` stays: one lucky draw is no reason to prefer another iterate.
    """
    if oracle.spec.stochastic:
        return best
    found, hit = oracle.best()
    best[hit] = found[hit]
    return best


def ascend(
    oracle: Oracle,
    x: Tensor,
    *,
    steps: int,
    step: Step,
    loss: str,
    estimator: str,
    draws: int = 0,
) -> Tensor:
    """Climb the loss by projected gradient steps; return the hits, or the iterates of largest loss.

    Args:
        x: legal starting points of all samples; changed in place.
        step: how to move; called with the rows that still stand.
        loss, estimator, draws: see `Oracle.loss_and_grad`; draws 0 means the default of `eot`.

    Cost: per active row `steps` gradients, and `draws` forwards for the last iterate.
    """
    draws = eot(oracle, draws)
    best = x.clone()
    top = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)

    def keep(rows: Tensor, value: Tensor) -> None:
        better = rows[value > top[rows]]
        best[better] = x[better]
        top[rows] = torch.maximum(top[rows], value)

    for _ in range(steps):
        rows = oracle.differentiable(estimator, draws=draws)
        if not len(rows):
            break
        out = oracle.loss_and_grad(x[rows], rows, loss, estimator=estimator, draws=draws)
        keep(rows, out.loss)
        x[rows] = oracle.project(step(x[rows], out.grad, rows), rows)
    rows = oracle.active(forwards=draws)
    if len(rows):
        keep(rows, oracle.loss(x[rows], rows, loss, draws=draws)[0])
    return settle(oracle, best)


def start(oracle: Oracle, x0: Tensor, *, random: bool, rng: RowStreams) -> Tensor:
    """Return the starting points: uniform in the ball, or copies of x0."""
    if not random:
        return x0.clone()
    return oracle.sample(torch.arange(len(x0), device=x0.device), rng=rng)


@dataclass(frozen=True)
class Pgd:
    """Signed gradient steps inside the L-inf ball.

    Args:
        steps: gradient steps.
        step: step size as a share of eps; the default 1/4 is PDSG's setting.
        random_start: whether to start at a uniform point of the ball (else at x0).
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.
        draws: noise draws averaged into one gradient (EOT); 0: 10 for stochastic victims, else 1.

    Cost: steps gradients, and 1 forward for the last iterate.
    """

    steps: int = 20
    step: float = 0.25
    random_start: bool = True
    estimator: str = "native"
    loss: str = "ce"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="pgd.linf",
        geometries=("linf",),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=(
            "Madry et al. 2018, arXiv:1706.06083. Differs: step is eps/4; the iterate with the largest "
            "loss is returned, and a sample stops at its first hit."
        ),
        cost="21 forwards + 20 backwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, steps=self.steps, step=self.step)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        size = self.step * oracle.radius
        return ascend(
            oracle,
            start(oracle, x0, random=self.random_start, rng=rng),
            steps=self.steps,
            step=lambda x, gradient, rows: x + size * gradient.sign(),
            loss=self.loss,
            estimator=self.estimator,
            draws=self.draws,
        )
