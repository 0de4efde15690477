"""Threat geometries: how a perturbation is measured, projected, drawn and judged.

All functions take batches `[N, ...]` and treat rows independently. `eps` is a float in input units
(a count for "l0"). A geometry is stateless; third parties register theirs under the entry-point
group `robustspike.geometries`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Protocol
from typing import runtime_checkable

import torch
from torch import Tensor

from robustspike.bench.numbers.rng import RowStreams

Bounds = tuple[float, float]

TOLERANCE = 1e-6
"""Slack on real-valued budgets: float32 rounding of x0 + eps for inputs of order one."""


@runtime_checkable
class Geometry(Protocol):
    """How perturbations are measured and limited.

    What tables say of it, it may declare as class attributes: `unit`, what a distance counts ("distance"
    without it); `everywhere`, whether a large enough budget reaches every input (true without it); `moves`,
    whether every change moves something, so that as much is added as is removed (false without it);
    `domains`, the input domains that it is for (any without it);
    `natural`, whether nobody chooses the changes (false without it).
    """

    name: str

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Return the legal point nearest to x (eps may be inf); eps = 0 gives x0 bit for bit."""
        ...

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        """Return the size of each perturbation: [N] float64."""
        ...

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Return one random legal point per row; rows are the positions of x0's rows in rng."""
        ...

    def legal(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Say for each row whether x is a legal perturbed input: [N] bool."""
        ...


@runtime_checkable
class DiscreteGeometry(Geometry, Protocol):
    """A geometry whose perturbations are sets of elementary changes (flips, moves)."""

    def units(self, x0: Tensor, x: Tensor) -> Tensor:
        """Number the elementary changes between x0 and a legal x, row by row.

        Undoing any subset of them gives a legal input that is no farther from x0.

        Shape: returns [N, elements per row] int64: the number 0, 1, ... of the change an element
        belongs to, -1 where it did not change. Elements that change together share a number.
        """
        ...

    def largest(self, shape: tuple[int, ...]) -> int:
        """Return the largest distance between two inputs of this shape (without the batch axis)."""
        ...


def _per_row(value: Tensor) -> Tensor:
    return value.flatten(1)


def _finite(x: Tensor) -> Tensor:
    return torch.isfinite(_per_row(x)).all(dim=1)


def _inside(x: Tensor, bounds: Bounds) -> Tensor:
    low, high = bounds
    return ((_per_row(x) >= low) & (_per_row(x) <= high)).all(dim=1)


def on_grid(geometry: Geometry, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds, levels: int) -> Tensor:
    """Round inputs to a grid of `levels` steps over the bounds without leaving the budget.

    A row whose nearest grid point is illegal is rounded towards x0: by whole steps from it, or, where x0
    itself lies between two steps, to the grid's own points. Where that fails too, it is x0.
    """
    low, high = bounds
    unit = (high - low) / levels

    def rounded(values: Tensor) -> Tensor:
        return low + ((values - low) * (levels / (high - low))).round() / levels * (high - low)

    steps = (x - low) / unit
    slack = 1e-4  # of a step, for rounding errors; well below the geometry's own tolerance
    towards = rounded(low + torch.where(x > x0, (steps + slack).floor(), (steps - slack).ceil()) * unit)
    inward = rounded(x0 + ((x - x0) / unit + 1e-3 * (x - x0).sign()).trunc() * unit)
    out = x0.clone()
    for candidate in (towards, inward, rounded(x)):
        legal = geometry.legal(x0, candidate, eps=eps, bounds=bounds)
        out = torch.where(legal.view(-1, *[1] * (x.dim() - 1)), candidate, out)
    return out


class _RealValued:
    """What L-inf and L2 share: real inputs in a box, a distance, a tolerance."""

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        raise TypeError("distance is defined by the geometry")  # pragma: no cover

    def legal(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        return _finite(x) & _inside(x, bounds) & (self.distance(x0, x) <= eps + TOLERANCE)


class Linf(_RealValued):
    """Every element moves by at most eps."""

    name = "linf"
    usual_eps = Fraction(8, 255)
    """The radius that papers on images use; of the other geometries none has one."""
    unit = "largest change of an element"

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        return torch.minimum(torch.maximum(x, x0 - eps), x0 + eps).clamp(*bounds)

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        return _per_row(x.double() - x0.double()).abs().amax(dim=1)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        noise = rng.uniform(x0.shape[1:], rows=rows, dtype=x0.dtype) * 2 - 1
        radius = min(eps, bounds[1] - bounds[0])
        return self.project(x0, x0 + radius * noise, eps=eps, bounds=bounds)


class L2(_RealValued):
    """The Euclidean norm of the perturbation is at most eps."""

    name = "l2"
    unit = "Euclidean norm of the change"

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        delta = x - x0
        norm = _per_row(delta).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
        shrunk = x0 + delta * (eps / norm.clamp(min=1e-12)).clamp(max=1.0)
        return shrunk.clamp(*bounds)

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        return _per_row(x.double() - x0.double()).norm(dim=1)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        noise = rng.normal(x0.shape[1:], rows=rows, dtype=x0.dtype)
        norm = _per_row(noise).norm(dim=1).view(-1, *[1] * (x0.dim() - 1))
        size = x0[0].numel()
        radius = rng.uniform((1,), rows=rows, dtype=x0.dtype) ** (1.0 / size)
        reach = min(eps, (bounds[1] - bounds[0]) * size**0.5)
        step = noise / norm.clamp(min=1e-12) * radius.view_as(norm) * reach
        return self.project(x0, x0 + step, eps=eps, bounds=bounds)


class L0:
    """At most eps elements of a binary tensor flip."""

    name = "l0"
    unit = "flipped cells"
    domains = ("static", "spikes")

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Round to binary; keep the floor(eps) largest changes (ties: the lower index)."""
        low, high = bounds
        middle = (low + high) / 2
        binary = torch.where(x > middle, high, low).to(x0.dtype)
        changed = _per_row(binary != x0)
        limit = int(min(eps, changed.shape[1]))
        strength = _per_row((x - x0).abs()).masked_fill(~changed, -1.0)
        order = strength.sort(dim=1, descending=True, stable=True).indices
        rank = torch.empty_like(order)
        rank.scatter_(1, order, torch.arange(order.shape[1], device=x.device).expand_as(order))
        keep = (changed & (rank < limit)).view_as(x0)
        return torch.where(keep, binary, x0)

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        return _per_row(x != x0).sum(dim=1).double()

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        size = x0[0].numel()
        order = rng.permutation(size, rows=rows)
        flip = torch.zeros(len(x0), size, dtype=torch.bool, device=x0.device)
        flip.scatter_(1, order[:, : int(min(eps, size))], True)
        return torch.where(flip.view_as(x0), bounds[0] + bounds[1] - x0, x0)

    def units(self, x0: Tensor, x: Tensor) -> Tensor:
        """Number the changes that can be undone one by one: each changed element is one."""
        changed = _per_row(x != x0)
        return (changed.cumsum(dim=1) - 1).masked_fill(~changed, -1)

    def largest(self, shape: tuple[int, ...]) -> int:
        """Return the number of elements."""
        return math.prod(shape)

    def legal(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        low, high = bounds
        binary = _per_row((x == low) | (x == high)).all(dim=1)
        return binary & (self.distance(x0, x) <= eps)
