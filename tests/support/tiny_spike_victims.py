"""Small victims on [4, 1, 2, 2] binary frames with known answers, and a way to attack them."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from itertools import product

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Attack
from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ShardResult
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.meter import Meter
from robustspike.bench.testing.reference import Beside

SHAPE = (4, 1, 2, 2)
CELLS = 16


class Linear(nn.Module):
    """Two logits (0, bias - w.x): class 1 until the flips take away more than the slack."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, x: Tensor) -> Tensor:
        own = self.bias + (x * self.weight).flatten(1).sum(dim=1)
        return torch.stack([torch.zeros_like(own), own], dim=1)


class Bent(nn.Module):
    """A small smooth network of dyadic weights: no flip is exactly redundant, none is linear."""

    def __init__(self, seed: int, classes: int = 3) -> None:
        super().__init__()
        rng = RowStreams.derive([seed], "bent")
        self.first = nn.Parameter((rng.integers(33, (CELLS, 8))[0] - 16).double() / 16)
        self.second = nn.Parameter((rng.integers(33, (8, classes))[0] - 16).double() / 16)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).double() @ self.first).relu() @ self.second


class Constant(nn.Module):
    """Always answers class 0, with a zero gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.flatten(1)[:, :2] + torch.tensor([1.0, 0.0], dtype=x.dtype)


class Faulty(Bent):
    """Answers NaN wherever the first cell is set."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0, 0, 0, :1] > 0, torch.nan, super().forward(x))


class Rate(nn.Module):
    """Sees spike counts alone: no retiming can change its answer."""

    def __init__(self) -> None:
        super().__init__()
        weight = (RowStreams.derive([0], "rate").integers(33, (4, 3))[0] - 16).double() / 16
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.double().sum(dim=1).flatten(1) @ self.weight


def victim(module: nn.Module, classes: int = 2) -> ModuleVictim:
    return wrap(Beside(module), name="small", shape=SHAPE, classes=classes, steps=4, domain=Domain.SPIKES)


def frames(n: int, seed: int = 0, rate: float = 0.4) -> Tensor:
    return (RowStreams.derive(range(n), "controls", seed).uniform(SHAPE, dtype=torch.float64) < rate).double()


def threat(attack: Attack, geometry: str = "l0", eps: int | None = None, **kwargs) -> ThreatModel:
    return ThreatModel(
        domain=Domain.SPIKES,
        geometry=geometry,
        eps=None if eps is None else Fraction(eps),
        access=attack.spec.access,
        **kwargs,
    )


def judge(
    target: ModuleVictim, attack: Attack, x: Tensor, y: Tensor | None = None, *, seed: int = 0, **kwargs
) -> ShardResult:
    if y is None:
        y = target.logits(x).argmax(dim=1)
    result = evaluate_shard(target, attack, threat(attack, **kwargs), x, y, torch.arange(len(x)), seed=seed)
    assert not result.errors, result.errors
    return result


def oracle_for(target: ModuleVictim, x: Tensor, y: Tensor, model: ThreatModel) -> tuple[Oracle, Meter]:
    meter = Meter(
        target,
        model,
        registry("geometries").get(model.geometry),
        x,
        y,
        noise=RowStreams.derive(range(len(x)), "noise"),
        clean=target.logits(x).detach(),
        estimators=registry("estimators").get,
    )
    return Oracle(meter), meter


def smallest_flips(target: ModuleVictim, x: Tensor, y: Tensor, limit: int) -> int:
    """Find the true minimal L0 of one sample by exhaustive search; limit + 1 where it is larger."""
    for size in range(1, limit + 1):
        sets = list(combinations(range(CELLS), size))
        tried = x.flatten().repeat(len(sets), 1)
        index = torch.tensor(sets)
        tried.scatter_(1, index, 1 - tried.gather(1, index))
        with torch.no_grad():
            if (target.logits(tried.view(-1, *SHAPE)).argmax(dim=1) != y).any():
                return size
    return limit + 1


def legal_points(x0: Tensor) -> list[Tensor]:
    """All count-preserving rearrangements of x0 [T, L]."""
    steps, lines = x0.shape
    choices = [list(combinations(range(steps), int(x0[:, j].sum()))) for j in range(lines)]
    points = []
    for times in product(*choices):
        x = torch.zeros_like(x0)
        for j, chosen in enumerate(times):
            x[list(chosen), j] = 1.0
        points.append(x)
    return points
