"""SCG: gradients turned into spikes, so that an attack adds and removes whole spikes."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.api import LOSSES
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Loss
from robustspike.bench.api import LossGrad
from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

Norm = Literal["max", "minmax"]
Flipper = Literal["bernoulli", "exact"]


def squared_error(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared distance of the read-out from the one-hot label [N]."""
    return (logits - functional.one_hot(y, logits.shape[1])).square().mean(dim=1)


def probability(grad: Tensor, *, norm: Norm = "max", scale: float = 1.0) -> Tensor:
    """Return how likely each element is to be sampled: scale * |g| / max |g|, per sample.

    "minmax" uses (|g| - min) / (max - min), and 1 where all |g| are equal. Shape: [n, ...] -> same.
    """
    size = grad.abs().flatten(1)
    top = size.amax(dim=1, keepdim=True)
    low = torch.zeros_like(top) if norm == "max" else size.amin(dim=1, keepdim=True)
    span = top - low
    p = torch.where(span > 0, (size - low) / torch.where(span > 0, span, 1.0), (top > 0).to(size))
    return (scale * p).view_as(grad)


def ternary(
    grad: Tensor, s: Tensor, draw: Tensor, *, norm: Norm = "max", scale: float = 1.0, most: float = 1.0
) -> Tensor:
    """Convert gradients to legal spike changes in {-1, 0, +1}: sample, take the sign, drop overflows.

    Args:
        grad: gradient of what is increased [n, ...].
        s: spikes 0 or 1, or event counts.
        draw: uniform numbers in [0, 1).
        most: the most that an element may hold.
    """
    change = (draw < probability(grad, norm=norm, scale=scale)).to(s) * grad.sign()
    return torch.where((s + change >= 0) & (s + change <= most), change, 0.0)


def turnover(
    s: Tensor, draw: Tensor, *, gamma: float, flipper: Flipper = "bernoulli", most: float = 1.0
) -> Tensor:
    """Flip a share gamma of the spikes at random: each with that probability, or exactly that many.

    A count (most > 1) gains or loses one event, as a lower bit of its draw says; an empty one gains, a
    full one loses.
    """
    if flipper == "bernoulli":
        chosen = draw < gamma
    else:
        count = int(gamma * s[0].numel()) if len(s) else 0
        order = draw.flatten(1).argsort(dim=1, stable=True)[:, :count]
        chosen = torch.zeros_like(draw.flatten(1), dtype=torch.bool).scatter_(1, order, True).view_as(s)
    if most == 1:
        return torch.where(chosen, 1 - 2 * s, 0.0)
    gains = ((draw * 2**16).floor() % 2 == 0) | (s == 0)
    return torch.where(chosen, torch.where(gains & (s < most), 1.0, -1.0), 0.0).to(s)


@dataclass(frozen=True)
class ScaledThreshold(GradientEstimator):
    """Another estimator's gradient, taken while the last spiking layer fires at a scaled threshold.

    The returned loss and logits are those of the victim as it is.
    """

    base: GradientEstimator
    factor: float
    name: ClassVar[str] = "scaled_threshold"
    source: ClassVar[str] = "Threshold tuning of arXiv:2001.01587, at attack time. Differs: see Scg."
    forwards: ClassVar[int] = 2

    def fits(self, module: nn.Module, neurons: Sequence[Neuron]) -> str | None:
        return super().fits(module, neurons) or self.base.fits(module, neurons)

    def loss_and_grad(
        self,
        module: nn.Module,
        call: Callable[[Tensor], Tensor],
        x: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        neurons: Sequence[Neuron],
        memories: Sequence[Memory],
    ) -> LossGrad:
        last: Any = neurons[-1].module if neurons else None
        own = None if last is None else last.v_threshold
        try:
            if isinstance(own, nn.Parameter):  # a learned threshold may only be replaced by a parameter
                last.v_threshold = nn.Parameter(own.detach() * self.factor, requires_grad=False)
            elif own is not None:
                last.v_threshold = own * self.factor
            scaled = self.base.loss_and_grad(module, call, x, loss, neurons=neurons, memories=memories)
        finally:
            if last is not None:
                last.v_threshold = own
        with torch.no_grad():
            logits = call(x)
            return LossGrad(loss(logits), scaled.grad, logits)


@dataclass(frozen=True)
class Scg:
    """Ternary spike-compatible gradient: sample elements by gradient size, flip those it points at.

    A sample whose gradient is zero everywhere gets random flips instead (the gradient trigger; the record
    counts how often: trigger_firings). Every combination of scale and
    threshold is an attack of its own from the clean input; the harness keeps the nearest result.

    Args:
        iterations: gradient steps of one attack.
        scales: sampling scales c; 1 is the published one, smaller ones flip fewer spikes a step.
        gamma: share of the elements flipped where the gradient is zero.
        flipper: "bernoulli" flips each with probability gamma, "exact" flips floor(gamma * elements).
        loss: "mse" (read-out against one-hot), "ce" or "margin".
        norm: "max" (|g| / max) or "minmax".
        thresholds: factors on the threshold of the last spiking layer while gradients are taken.
        estimator: registry name of the gradient estimator.

    Cost: per scale and threshold at most iterations + 1 forwards and iterations backwards; twice the
    forwards for thresholds other than 1.
    """

    iterations: int = 50
    scales: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)
    gamma: float = 0.05
    flipper: Flipper = "bernoulli"
    loss: str = "ce"
    norm: Norm = "max"
    thresholds: tuple[float, ...] = (1.0,)
    estimator: str = "native"
    own_losses: ClassVar[tuple[str, ...]] = ("mse",)
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="scg.l0",
        geometries=("l0", "count_l0", "count_l1"),
        domains=(Domain.SPIKES, Domain.EVENTS),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Liang et al. 2020, arXiv:2001.01587. Differs: sampling scales as an option (c=1 is the "
            "paper's); cross-entropy by default; the zero test is made per sample. A step that would "
            "leave a bounded threat model ends that attempt, as published. On counts a step is one event."
        ),
        cost="per scale 51 forwards + 50 backwards at most",
    )

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 0 <= self.gamma <= 1 or not self.scales or not self.thresholds:
            raise ConfigError(
                f"{self.spec.name}: expected iterations >= 1, gamma in [0, 1] and at least one scale and "
                f"threshold, got {self.iterations}, {self.gamma}, {self.scales} and {self.thresholds}."
            )
        if self.loss not in ("mse", *LOSSES) or self.norm not in ("max", "minmax"):
            raise ConfigError(
                f"{self.spec.name}: expected loss 'mse', 'ce' or 'margin' and norm 'max' or 'minmax', got "
                f"'{self.loss}' and '{self.norm}'."
            )

    def needs(self) -> tuple[GradientEstimator, ...]:
        base: GradientEstimator = registry("estimators").get(self.estimator)
        return tuple(base if factor == 1 else ScaledThreshold(base, factor) for factor in self.thresholds)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = x0
        for t, rule in enumerate(self.needs()):
            for c, scale in enumerate(self.scales):
                streams = rng.fork("attempt", t, c)
                x = self._attempt(oracle, x0, scale, rule, streams)
        best, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), best, oracle.project(x, _everyone(x0)))

    def _attempt(
        self, oracle: Oracle, x0: Tensor, scale: float, rule: GradientEstimator, rng: RowStreams
    ) -> Tensor:
        loss: Loss | str = squared_error if self.loss == "mse" else self.loss
        low, high = oracle.threat.bounds
        unit = 1.0 if oracle.spec.domain is Domain.EVENTS else high - low
        most = (high - low) / unit
        x, going = x0.clone(), torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        for _ in range(self.iterations):
            rows = oracle.active(forwards=rule.forwards, backwards=rule.backwards)
            rows = rows[going[rows]]
            if not len(rows):
                break
            out = oracle.loss_and_grad(x[rows], rows, loss, estimator=rule)
            done = oracle.reached(out.logits, rows)
            going[rows[done]] = False
            rows, grad = rows[~done], out.grad[~done]
            s = (x[rows] - low) / unit
            draw = rng.uniform(x0.shape[1:], rows=rows, dtype=x0.dtype)
            dead = (grad.flatten(1) == 0).all(dim=1)
            change = ternary(grad, s, draw, norm=self.norm, scale=scale, most=most)
            oracle.tally("trigger_firings", int(dead.sum()))
            flips = turnover(s, draw, gamma=self.gamma, flipper=self.flipper, most=most)
            change = torch.where(dead.view(-1, *[1] * (x.dim() - 1)), flips, change)
            after = s + change
            step = torch.where(after >= most, high, torch.where(after <= 0, low, x[rows] + change * unit))
            inside = oracle.geometry.distance(x0[rows], step) <= oracle.radius
            going[rows[~inside]] = False
            x[rows[inside]] = step[inside]
        rows = oracle.active(forwards=1)
        rows = rows[going[rows]]
        if len(rows):
            oracle.logits(x[rows], rows)
        return x


@dataclass(frozen=True)
class ScgThreshold(Scg):
    """SCG with gradients taken at several thresholds of the last spiking layer ("SCG+thr").

    The paper studies that threshold as a property of the victim; sweeping it at attack time exceeds it.
    """

    thresholds: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0)
    spec: ClassVar[AttackSpec] = replace(
        Scg.spec,
        name="scg_thr.l0",
        source=Scg.spec.source + " The threshold sweep is ours.",
        cost="per scale and threshold 102 forwards + 50 backwards at most",
    )


def _everyone(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)
