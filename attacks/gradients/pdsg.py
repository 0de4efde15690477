"""PDSG: a Gaussian surrogate whose width follows the spread of each neuron's own potential."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor

from robustspike.bench.api import BpttEstimator
from robustspike.bench.api import ConfigError
from robustspike.bench.api import DeferredRule
from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron

Scope = Literal["sample", "batch"]


def running_deviation(u: Tensor, scope: Scope) -> Tensor:
    """Return sigma_t, the unbiased standard deviation of the potentials of steps 1..t, for every t.

    It is kept per channel, pooled over space and time and, in scope "batch", over the batch. Means
    and sums of squares of single steps are merged in float64 (Chan, Golub & LeVeque 1979): equal to
    the deviation of the stacked steps up to rounding, at O(T) instead of O(T^2) cost.

    Shape: u [T, N, ...]; returns sigma broadcastable over u, 1 where it is undefined, zero or not
        finite.
    """
    axes = pooled_axes(u.dim(), scope)
    if axes:
        variances, means = torch.var_mean(u, dim=axes, correction=0, keepdim=True)
        n = math.prod(u.shape[axis] for axis in axes)
        means, within = means.double(), variances.double() * n
    else:
        n, means = 1, u.double()
        within = torch.zeros_like(means)
    mean, squares, sigmas = means[0], within[0], []
    for t in range(len(u)):
        if t:
            step = means[t] - mean
            squares = squares + within[t] + step.square() * (n * t / (t + 1))
            mean = mean + step / (t + 1)
        sigmas.append(squares / max((t + 1) * n - 1, 1))
    sigma = torch.stack(sigmas).sqrt().to(u.dtype)
    return torch.where((sigma > 0) & torch.isfinite(sigma), sigma, 1.0)


def pooled_axes(dims: int, scope: Scope) -> list[int]:
    """Return the axes of [T, N, ...] that one step's statistics pool over."""
    batch = [1] if scope == "batch" else []
    if dims >= 5:  # [T, N, C, H, W]: per channel
        return batch + list(range(3, dims))
    if dims == 4:  # [T, N, tokens, features]: per feature
        return [*batch, 2]
    return batch  # [T, N, features]: per feature


class _PdsgRule(DeferredRule):
    def __init__(self, scope: Scope, shift: float) -> None:
        super().__init__()
        self.scope: Scope = scope
        self.shift = shift

    def slopes(self, u: Tensor) -> Tensor:
        inverse = running_deviation(u, self.scope).reciprocal()
        z = (u * inverse).sub_(self.shift)
        return z.square_().mul_(-0.5).exp_().mul_(inverse / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Pdsg(BpttEstimator):
    """Potential-dependent surrogate gradient.

    g(u) = exp(-(u - b)^2 / (2 sigma_t^2)) / (sqrt(2 pi) sigma_t), with b = shift * sigma_t, where
    sigma_t is the unbiased standard deviation of the potentials of steps 1..t (1 where it is
    undefined or zero) and is a constant for autograd. The reset path is the neuron's own.

    Args:
        shift: right shift of the peak in units of sigma.
        scope: "sample" pools over each sample alone, so a result does not depend on batch mates
            (and equals the reference at batch size 1); "batch" pools over the batch as the
            released code does.

    Cost: 1 forward + 1 backward; nothing is computed when no gradient is asked for.
    """

    shift: float = 0.5
    scope: Scope = "sample"
    name: ClassVar[str] = "pdsg"
    source: ClassVar[str] = (
        "Lun et al., CVPR 2025, arXiv:2503.03272. Differs: sample scope by default; running sums; "
        "sigma=1 for undefined deviations (the release yields NaN); non-square maps are per channel; "
        "any neuron keeps its own dynamics, where the release replaces LIF nodes only."
    )

    def __post_init__(self) -> None:
        if self.scope not in ("sample", "batch"):
            raise ConfigError(f"pdsg: scope must be 'sample' or 'batch', got '{self.scope}'.")
        if not math.isfinite(self.shift):
            raise ConfigError(f"pdsg: shift must be finite, got {self.shift}.")

    def rule(self, neuron: Neuron, memory: Memory) -> DeferredRule:
        return _PdsgRule(self.scope, self.shift)
