"""PDSG: a Gaussian surrogate whose width follows the spread of each neuron's own potential."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron
from robustspike.bench.api import SpikeRule

Scope = Literal["sample", "batch"]


class PotentialSpread:
    """The running standard deviation of the potentials of all steps so far.

    Kept per channel, pooled over space and time and, in scope "batch", over the batch. Step means
    and sums of squares are merged in float64 (Chan, Golub & LeVeque 1979): equal to the deviation
    of the stacked steps up to rounding, at O(T) instead of O(T^2) cost.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.count = 0
        self.mean: Tensor | None = None
        self.squares: Tensor | None = None

    def axes(self, u: Tensor) -> list[int]:
        """Return the axes of one step [N, ...] that are pooled."""
        pooled = [0] if self.scope == "batch" else []
        if u.dim() >= 4:  # [N, C, H, W]: per channel
            return pooled + list(range(2, u.dim()))
        if u.dim() == 3:  # [N, tokens, features]: per feature
            return [*pooled, 1]
        return pooled  # [N, features]: per feature

    def update(self, u: Tensor) -> Tensor:
        """Take one step [N, ...] in; return sigma, broadcastable over the step."""
        axes = self.axes(u)
        if axes:
            spread, mean = torch.var_mean(u, dim=axes, correction=0, keepdim=True)
            n = math.prod(u.shape[axis] for axis in axes)
            mean, squares = mean.double(), spread.double() * n
        else:
            mean, n = u.double(), 1
            squares = torch.zeros_like(mean)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = n, mean, squares
        else:
            total = self.count + n
            step = mean - self.mean
            self.squares = self.squares + squares + step.square() * (self.count * n / total)
            self.mean = self.mean + step * (n / total)
            self.count = total
        if self.count < 2:
            return torch.ones_like(mean, dtype=u.dtype)
        sigma = (self.squares / (self.count - 1)).sqrt().to(u.dtype)
        return torch.where(torch.isfinite(sigma) & (sigma > 0), sigma, torch.ones_like(sigma))


class _PdsgRule(SpikeRule):
    def __init__(self, spread: PotentialSpread, shift: float) -> None:
        super().__init__()
        self.spread = spread
        self.shift = shift

    def slope(self, u: Tensor) -> Tensor:
        inverse = self.spread.update(u).reciprocal()
        z = u * inverse - self.shift
        return torch.exp(z.square_().mul_(-0.5)).mul_(inverse / math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Pdsg(GradientEstimator):
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

    def rule(self, neuron: Neuron, memory: Memory) -> SpikeRule:
        return _PdsgRule(PotentialSpread(self.scope), self.shift)
