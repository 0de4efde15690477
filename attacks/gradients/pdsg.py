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

    It is kept per channel, pooled over space and time and, in scope "batch", over the batch. Sums of
    single steps are accumulated in float64, means relative to the first step's (shifted sums do not
    cancel): equal to the deviation of the stacked steps up to rounding, at O(T) instead of O(T^2) cost.

    Shape: u [T, N, ...]; returns sigma broadcastable over u, 1 where it is undefined, zero or not
        finite.
    """
    axes = pooled_axes(u.dim(), scope)
    means, within = u, torch.zeros_like(u[:1, :1], dtype=torch.float64)
    if axes:  # two plain passes: torch.var is 20 times slower on small inner axes
        means = u.mean(dim=axes, keepdim=True)
        within = (u - means).square_().sum(dim=axes, keepdim=True).double()
    n = math.prod(u.shape[axis] for axis in axes)
    steps = torch.arange(1, len(u) + 1, device=u.device).view(-1, *[1] * (u.dim() - 1))
    offset = means.double() - means[:1].double()
    between = offset.square().cumsum(dim=0) - offset.cumsum(dim=0).square() / steps
    squares = within.cumsum(dim=0) + n * between
    sigma = (squares / (n * steps - 1).clamp(min=1)).sqrt().to(u.dtype)
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
        sigma = running_deviation(u, self.scope)
        # exp(log(1 / (sqrt(2 pi) sigma)) - z^2) with z = (u - shift sigma) / (sqrt(2) sigma)
        z = (u * (math.sqrt(0.5) / sigma)).sub_(self.shift * math.sqrt(0.5))
        return torch.addcmul(-torch.log(math.sqrt(2 * math.pi) * sigma), z, z, value=-1, out=z).exp_()


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
