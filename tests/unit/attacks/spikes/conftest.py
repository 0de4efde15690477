"""Toy victims on binary grids whose answers are known, and a way to attack them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor
from torch import nn

from robustspike.bench.api import Budget
from robustspike.bench.api import Domain
from robustspike.bench.api import EventLists
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import ShardResult
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import wrap
from robustspike.bench.testing.reference import Beside

PLENTY = Budget(forwards=10**7, backwards=10**6)


class Linear(nn.Module):
    """Logits W x + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class Constant(nn.Module):
    """Logits that say class 0 whatever the input; the gradient exists and is zero."""

    def forward(self, x: Tensor) -> Tensor:
        zero = 0 * x.flatten(1).sum(dim=1)
        return torch.stack([zero + 1, zero, zero], dim=1)


class Spiking(nn.Module):
    """conv-LIF-pool-conv-LIF-pool-linear with weights on the grid 2^-6, so float64 sums are exact."""

    def __init__(self, shape: tuple[int, ...], classes: int, seed: int, threshold: float) -> None:
        super().__init__()
        rng = generator("toy", seed)
        _, c, h, w = shape

        def lif() -> nn.Module:
            return neuron.LIFNode(
                tau=2.0,
                v_threshold=threshold,
                decay_input=False,
                step_mode="m",
                surrogate_function=surrogate.ATan(),
            )

        self.body = nn.Sequential(
            layer.Conv2d(c, 6, 3, padding=1, bias=False, step_mode="m"),
            lif(),
            layer.AvgPool2d(2, step_mode="m"),
            layer.Conv2d(6, 8, 3, padding=1, bias=False, step_mode="m"),
            lif(),
            layer.AvgPool2d(2, step_mode="m"),
            layer.Flatten(step_mode="m"),
            layer.Linear(8 * (h // 4) * (w // 4), classes, bias=False, step_mode="m"),
        )
        with torch.no_grad():
            for p in self.parameters():
                p.copy_((torch.randn(p.shape, generator=rng) * 0.5 * 64).round() / 64)

    @property
    def time_mean_body(self) -> nn.Module:
        return self.body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(0, 1)).mean(dim=0)


def _wrapped(
    module: nn.Module, shape: tuple[int, ...], classes: int, *, spiking: bool = False
) -> ModuleVictim:
    """Wrap a module; one that has no spiking neurons of its own gets some beside it."""
    module = module if spiking else Beside(module)
    return wrap(module, name="toy", shape=shape, classes=classes, steps=shape[0], domain=Domain.SPIKES)


@pytest.fixture
def toys() -> SimpleNamespace:
    """Factories of toy victims."""

    def linear(shape: tuple[int, ...], *, classes: int = 2, seed: int = 0) -> ModuleVictim:
        size = int(torch.tensor(shape).prod())
        weight = torch.randn(classes, size, generator=generator("linear", seed))
        return _wrapped(Linear(weight, torch.zeros(classes)), shape, classes)

    def gains(gain: Tensor, bias: float, shape: tuple[int, ...]) -> ModuleVictim:
        """Two classes; each element adds `gain` to the margin of class 1, which starts at bias."""
        weight = torch.stack([torch.zeros_like(gain), gain])
        return _wrapped(Linear(weight, torch.tensor([0.0, bias], dtype=gain.dtype)), shape, 2)

    def constant(shape: tuple[int, ...]) -> ModuleVictim:
        return _wrapped(Constant(), shape, 3)

    def spiking(
        shape: tuple[int, ...] = (8, 2, 8, 8),
        *,
        classes: int = 4,
        seed: int = 0,
        threshold: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> ModuleVictim:
        return _wrapped(Spiking(shape, classes, seed, threshold).to(dtype), shape, classes, spiking=True)

    return SimpleNamespace(linear=linear, gains=gains, constant=constant, spiking=spiking, wrapped=_wrapped)


@pytest.fixture
def grid() -> Callable[..., Tensor]:
    """Draw binary grids [n, *shape] with a given share of ones."""

    def draw(
        n: int,
        shape: tuple[int, ...],
        *,
        rate: float = 0.15,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        return (torch.rand(n, *shape, generator=generator("grid", seed)) < rate).to(dtype)

    return draw


@pytest.fixture
def attacked() -> Callable[..., ShardResult]:
    """Run an attack on a batch under an L0 threat model and return the verdicts."""

    def run(
        victim: ModuleVictim,
        attack: Any,
        x: Tensor,
        *,
        y: Tensor | None = None,
        ids: Tensor | None = None,
        eps: int | None = None,
        budget: Budget = PLENTY,
        goal: Goal = Goal.UNTARGETED,
        seed: int = 0,
        events: EventLists | None = None,
    ) -> ShardResult:
        threat = ThreatModel(
            domain=Domain.SPIKES,
            geometry="l0",
            eps=None if eps is None else Fraction(eps),
            budget=budget,
            goal=goal,
            access=attack.spec.access,
        )
        y = victim.logits(x).argmax(dim=1) if y is None else y
        ids = torch.arange(len(x)) if ids is None else ids
        return evaluate_shard(victim, attack, threat, x, y, ids, seed=seed, events=lambda: events)

    return run
