"""The fixed surrogates that the field trains and attacks with.

Source: methods collected in Y. Wu et al. 2018 (STBP), SpikingJelly's surrogate module, and the
released code of RGA, HART, SNN-RAT, PDSG and MDSE. `u` is the distance to the threshold in membrane
units. Every density integrates to one except the damped triangle and the fast sigmoid (2.0), which
are kept as published. Differs: none (formulas are the published ones; widths are parameters).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import SurrogateEstimator


@dataclass(frozen=True)
class ATan(SurrogateEstimator):
    """(alpha/2) / (1 + (pi alpha u / 2)^2)."""

    alpha: float = 2.0
    name: ClassVar[str] = "atan"
    source: ClassVar[str] = "SpikingJelly surrogate.ATan, alpha=2. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u).square())


@dataclass(frozen=True)
class Triangle(SurrogateEstimator):
    """max(0, gamma - |u|) / gamma^2."""

    gamma: float = 1.0
    name: ClassVar[str] = "triangle"
    source: ClassVar[str] = "ZIF of RGA / HART / SNN-RAT, gamma=1. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return (self.gamma - u.abs()).clamp(min=0) / self.gamma**2


@dataclass(frozen=True)
class Rectangle(SurrogateEstimator):
    """1/(2a) where |u| < a."""

    a: float = 0.5
    name: ClassVar[str] = "rectangle"
    source: ClassVar[str] = "STBP, Wu et al. 2018, arXiv:1706.02609 (a=0.5: ActFun). Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return (u.abs() < self.a).to(u.dtype) / (2 * self.a)


@dataclass(frozen=True)
class Sigmoid(SurrogateEstimator):
    """alpha s(alpha u) s(-alpha u), s the logistic function."""

    alpha: float = 4.0
    name: ClassVar[str] = "sigmoid"
    source: ClassVar[str] = "SpikingJelly surrogate.Sigmoid, alpha=4. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        s = torch.sigmoid(self.alpha * u)
        return self.alpha * s * (1 - s)


@dataclass(frozen=True)
class Erf(SurrogateEstimator):
    """alpha/sqrt(pi) exp(-alpha^2 u^2), a Gaussian of standard deviation 1/(sqrt(2) alpha)."""

    alpha: float = 2.0
    name: ClassVar[str] = "erf"
    source: ClassVar[str] = "SpikingJelly surrogate.Erf, alpha=2. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * torch.exp(-(self.alpha * u).square())


@dataclass(frozen=True)
class PiecewiseExp(SurrogateEstimator):
    """(alpha/2) exp(-alpha |u|)."""

    alpha: float = 1.0
    name: ClassVar[str] = "piecewise_exp"
    source: ClassVar[str] = "SpikingJelly surrogate.PiecewiseExp, alpha=1. Differs: none."

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 * torch.exp(-self.alpha * u.abs())
