"""The sensor as a threat that nobody chose: its noise, and its pixels' properties."""

from __future__ import annotations

import torch
from torch import Tensor

from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.threats.geometry import Bounds


class SensorChange:
    """Another sensor may have looked: with a budget of 1 or more any binary frames are legal.

    Its distance counts sensors: 1 where a cell differs, else 0.
    """

    name = "sensor"
    unit = "other sensor"
    natural = True

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        """Round to binary, or keep x0 below a budget of 1."""
        low, high = bounds
        return x0 if eps < 1 else torch.where(x > (low + high) / 2, high, low).to(x0.dtype)

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        return (x != x0).flatten(1).any(dim=1).double()

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        """Return frames whose every cell is drawn with equal chances."""
        low, high = bounds
        drawn = rng.uniform(x0.shape[1:], rows=rows).to(x0.device)
        return x0 if eps < 1 else torch.where(drawn < 0.5, low, high).to(x0.dtype)

    def largest(self, shape: tuple[int, ...]) -> int:
        """Return 1: there is one other sensor."""
        del shape
        return 1

    def legal(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        low, high = bounds
        binary = ((x == low) | (x == high)).flatten(1).all(dim=1)
        return binary & (self.distance(x0, x) <= eps)
