"""The root mean square change: a budget for images of any size, which is a PSNR."""

from __future__ import annotations

import math

from torch import Tensor

from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.threats.geometry import L2
from robustspike.bench.threats.geometry import Bounds


class Rmse(L2):
    """The root mean square of the change is at most eps: a PSNR of at least -20 log10(eps) dB in [0, 1].

    eps = 1/100 is 40 dB, 1/1000 is 60 dB. It is the Euclidean norm over the root of the number of elements.
    """

    name = "rmse"
    unit = "root mean square change"

    def project(self, x0: Tensor, x: Tensor, *, eps: float, bounds: Bounds) -> Tensor:
        return super().project(x0, x, eps=eps * _root(x0), bounds=bounds)

    def distance(self, x0: Tensor, x: Tensor) -> Tensor:
        return super().distance(x0, x) / _root(x0)

    def sample(self, x0: Tensor, *, eps: float, bounds: Bounds, rng: RowStreams, rows: Tensor) -> Tensor:
        return super().sample(x0, eps=eps * _root(x0), bounds=bounds, rng=rng, rows=rows)


def _root(x: Tensor) -> float:
    """Return the root of the number of elements of one input."""
    return math.sqrt(x[0].numel()) if len(x) else 1.0
