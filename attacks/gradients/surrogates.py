"""The fixed surrogates that the field trains and attacks with.

Source: methods collected in Y. Wu et al. 2018 (STBP), SpikingJelly's surrogate module, and the
released code of RGA, HART, SNN-RAT, PDSG and MDSE. `u` is the distance to the threshold in membrane
units. Every density integrates to one except the damped triangle (gamma * width), the fast sigmoid
(2 / alpha) and SLAYER (2), which are kept as published; straight-through is not a density. Differs:
none (formulas are the published ones; widths are parameters).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from dataclasses import fields
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import SurrogateEstimator


@dataclass(frozen=True)
class _Shaped(SurrogateEstimator):
    """A surrogate whose parameters are widths, slopes or heights: finite numbers above zero."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "detach_reset" and not 0 < float(value) < math.inf:
                raise ConfigError(f"{self.name}: {item.name} must be a finite number above 0, got {value}.")


@dataclass(frozen=True)
class ATan(_Shaped):
    """(alpha/2) / (1 + (pi alpha u / 2)^2)."""

    alpha: float = 2.0
    name: ClassVar[str] = "atan"
    source: ClassVar[str] = "SpikingJelly surrogate.ATan, alpha=2. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u).square())


@dataclass(frozen=True)
class Triangle(_Shaped):
    """max(0, gamma - |u|) / gamma^2."""

    gamma: float = 1.0
    name: ClassVar[str] = "triangle"
    source: ClassVar[str] = "ZIF of RGA / HART / SNN-RAT, gamma=1. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return (self.gamma - u.abs()).clamp(min=0) / self.gamma**2


@dataclass(frozen=True)
class Rectangle(_Shaped):
    """1/(2a) where |u| < a."""

    a: float = 0.5
    name: ClassVar[str] = "rectangle"
    source: ClassVar[str] = "STBP, Wu et al. 2018, arXiv:1706.02609 (a=0.5: ActFun). Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return (u.abs() < self.a).to(u.dtype) / (2 * self.a)


@dataclass(frozen=True)
class Sigmoid(_Shaped):
    """alpha s(alpha u) s(-alpha u), s the logistic function."""

    alpha: float = 4.0
    name: ClassVar[str] = "sigmoid"
    source: ClassVar[str] = "SpikingJelly surrogate.Sigmoid, alpha=4. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        z = self.alpha * u
        return self.alpha * torch.sigmoid(z) * torch.sigmoid(-z)


@dataclass(frozen=True)
class Erf(_Shaped):
    """alpha/sqrt(pi) exp(-alpha^2 u^2), a Gaussian of standard deviation 1/(sqrt(2) alpha)."""

    alpha: float = 2.0
    name: ClassVar[str] = "erf"
    source: ClassVar[str] = "SpikingJelly surrogate.Erf, alpha=2. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * torch.exp(-(self.alpha * u).square())


@dataclass(frozen=True)
class PiecewiseExp(_Shaped):
    """(alpha/2) exp(-alpha |u|)."""

    alpha: float = 1.0
    name: ClassVar[str] = "piecewise_exp"
    source: ClassVar[str] = "SpikingJelly surrogate.PiecewiseExp, alpha=1. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 * torch.exp(-self.alpha * u.abs())


@dataclass(frozen=True)
class FastSigmoid(_Shaped):
    """1 / (1 + alpha |u|)^2."""

    alpha: float = 1.0
    name: ClassVar[str] = "fast_sigmoid"
    source: ClassVar[str] = "Zenke & Ganguli 2018 (SuperSpike), arXiv:1705.11146, alpha=1. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return (1 + self.alpha * u.abs()).square().reciprocal()


@dataclass(frozen=True)
class DampedTriangle(_Shaped):
    """gamma max(0, 1 - |u| / width)."""

    gamma: float = 0.3
    width: float = 1.0
    name: ClassVar[str] = "damped_triangle"
    source: ClassVar[str] = "Bellec et al. 2018, arXiv:1803.09574, gamma=0.3. Differs: none at width=1."

    def derivative(self, u: Tensor) -> Tensor:
        return self.gamma * (1 - u.abs() / self.width).clamp(min=0)


@dataclass(frozen=True)
class Slayer(_Shaped):
    """exp(-|u| / width) / width."""

    width: float = 10.0
    name: ClassVar[str] = "slayer"
    source: ClassVar[str] = "SLAYER's spike density as in the released MDSE code, width=10. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return torch.exp(-u.abs() / self.width) / self.width


@dataclass(frozen=True)
class StraightThrough(SurrogateEstimator):
    """1 everywhere: the firing step is differentiated as if it were the identity."""

    name: ClassVar[str] = "straight_through"
    source: ClassVar[str] = "Bengio et al. 2013, arXiv:1308.3432. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)
