"""What attacks that climb a loss have in common: steps, starts, the best iterate kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
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
