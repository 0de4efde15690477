"""What attacks that climb a loss have in common: steps, starts, the best iterate kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import generator

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""How an optimiser moves: (x, gradient, rows) -> the next x, before projection."""

EOT_DRAWS = 10
"""Noise draws averaged into one gradient of a stochastic victim (ASSG's setting)."""


_MARKED = 1 << 22
"""Elements whose products are held at once when points are marked."""


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


def vanishes(gradient: Tensor) -> Tensor:
    """Say of each row whether its gradient is zero everywhere."""
    return (gradient == 0).flatten(1).all(dim=1)


class Been:
    """Where each sample has been: 128 bits of every point, two of which agree by chance once in 10^19 times.

    The bits are two sums of the point's elements, read as whole numbers, times fixed odd 64-bit numbers.

    Args:
        x: where all samples begin [N, ...].
        steps: how often `again` will be asked.
    """

    def __init__(self, x: Tensor, steps: int) -> None:
        rng = generator("been")
        most = torch.iinfo(torch.int64)
        self._factors = torch.randint(most.min, most.max, (2, x[:1].numel()), generator=rng).bitwise_or_(1)
        self._factors = self._factors.to(x.device)
        self._known = torch.zeros(len(x), steps + 1, 2, dtype=torch.int64, device=x.device)
        self._known[:, 0] = self._marks(x)
        self._asked = 0

    def again(self, x: Tensor, rows: Tensor) -> Tensor:
        """Say of each of the rows, now at x [n, ...], whether it has been there; and remember that it has."""
        marks = self._marks(x)
        self._asked += 1
        known = self._known[rows, : self._asked]
        self._known[rows, self._asked] = marks
        return (known == marks[:, None]).all(dim=2).any(dim=1)

    def _marks(self, x: Tensor) -> Tensor:
        """Return the bits of points [n, ...]: [n, 2] int64."""
        whole = {4: torch.int32, 8: torch.int64}[x.element_size()]
        flat = (x + 0.0).flatten(1).view(whole)  # + 0.0: no negative zeros
        parts = flat.split(max(1, _MARKED // max(1, flat.shape[1])))
        sums = [torch.cat([(part * factors).sum(dim=1) for part in parts]) for factors in self._factors]
        return torch.stack(sums, dim=1)


def ascend(
    oracle: Oracle,
    x: Tensor,
    *,
    steps: int,
    step: Step,
    loss: str,
    estimator: str,
    draws: int = 0,
    repeats: bool = False,
) -> tuple[Tensor, Tensor]:
    """Climb the loss by projected gradient steps; return the iterates of largest loss, and that loss.

    Args:
        x: legal starting points of all samples; changed in place.
        step: how to move; called with the rows that still stand.
        loss, estimator, draws: see `Oracle.loss_and_grad`; draws 0 means the default of `eot`.
        repeats: whether a step depends on the point and its gradient alone. A sample then stops as soon as
            it comes to a point that it has been to, as all that follows would repeat (unless the victim
            draws noise or the estimator remembers).

    Under the same conditions a sample whose gradient is zero at its start, and which does not move, stops
    there whatever `repeats` says: it would be asked for the same gradient again and again.

    Cost: per active row `steps` gradients, and `draws` forwards for the last iterate.
    """
    draws = eot(oracle, draws)
    best = x.clone()
    top = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    fixed = not oracle.spec.stochastic
    repeated = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    been = Been(x, steps) if fixed and repeats else None

    def keep(rows: Tensor, value: Tensor) -> None:
        better = (value > top[rows]).view(-1, *[1] * (x.dim() - 1))
        best[rows] = torch.where(better, x[rows], best[rows])
        top[rows] = torch.maximum(top[rows], value)

    for done in range(1, steps + 1):
        rows = oracle.differentiable(estimator, draws=draws, among=~repeated)
        if not len(rows):
            break
        here = x[rows]
        out = oracle.loss_and_grad(here, rows, loss, estimator=estimator, draws=draws)
        keep(rows, out.loss)
        x[rows] = moved = oracle.project(step(here, out.grad, rows), rows)
        if oracle.remembers(estimator):
            continue
        if been is not None:
            repeated[rows] = been.again(moved, rows)
        elif fixed and done == 1:
            repeated[rows] = vanishes(out.grad) & (moved == here).flatten(1).all(dim=1)
    rows = oracle.active(forwards=draws, among=~repeated)
    if len(rows):
        keep(rows, oracle.loss(x[rows], rows, loss, draws=draws)[0])
    return best, top


def from_starts(
    oracle: Oracle, x0: Tensor, climb: Callable[[int], tuple[Tensor, Tensor]], *, restarts: int
) -> Tensor:
    """Climb from several starts, each on the samples still standing; return hits, or the best iterates.

    Args:
        climb: number of the start, from 0 -> (best iterates, their losses; -inf where nothing was computed).
    """
    best = x0.clone()
    top = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
    for number in range(restarts):
        if number:
            if not len(oracle.active()):
                break
            oracle.forget()
        found, value = climb(number)
        better = value > top
        best[better], top[better] = found[better], value[better]
    return settle(oracle, best)


def last_of_starts(oracle: Oracle, attempt: Callable[[int], Tensor], *, restarts: int) -> Tensor:
    """Run an attack that returns its last iterate from several starts, each on the samples still standing.

    Args:
        attempt: number of the start, from 0 -> the last iterates.
    Returns: hits, and the last start's iterates elsewhere.
    """
    x = attempt(0)
    for number in range(1, restarts):
        if not len(oracle.active()):
            break
        oracle.forget()
        x = attempt(number)
    return settle(oracle, x)


def start(oracle: Oracle, x0: Tensor, *, random: bool, rng: RowStreams) -> Tensor:
    """Return starting points: uniform in the ball, or copies of x0."""
    if not random:
        return x0.clone()
    return oracle.sample(torch.arange(len(x0), device=x0.device), rng=rng)
