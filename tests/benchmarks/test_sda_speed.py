"""How much faster batched SDA is than the published one-sample loop, on a shipped event victim.

Run: python -m pytest tests/benchmarks/test_sda_speed.py --benchmark-only --benchmark-disable-gc
     --benchmark-json=FILE (the ratios are in `extra_info`).
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.sda import Sda
from robustspike.bench.api import Budget
from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.flips import FlipEngine

SAMPLES, CHUNK, K_INIT, TOL = 250, 64, 10, 1e-6


class Fire(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, sigma):
        ctx.save_for_backward(u, sigma)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        u, sigma = ctx.saved_tensors
        z = (u - 0.5 * sigma) / sigma
        return grad * torch.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * sigma), None


class StackedPdsg(nn.Module):
    """PDSG as published: all potentials are stacked again at every step, in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []

    def forward(self, u: Tensor) -> Tensor:
        self.history.append(u.detach())
        sigma = torch.stack(self.history).std(dim=(0, 1, 3, 4), keepdim=True)[0]
        return Fire.apply(u, torch.where(sigma == 0, torch.ones_like(sigma), sigma))


@contextmanager
def stacked(victim: ModuleVictim):
    rules = [StackedPdsg() for _ in victim.neurons]
    with ExitStack() as stack:
        for neuron, rule in zip(victim.neurons, rules, strict=True):
            stack.enter_context(neuron.spiking_by(rule))
        yield
    for rule in rules:
        rule.history.clear()


def plain(victim: ModuleVictim, x: Tensor, y: int, fill: RowStreams) -> tuple[Tensor, bool]:
    """SDA on one sample [1, T, C, H, W], as the published code does it."""

    def loss(z: Tensor) -> Tensor:
        others = torch.cat([z[:y], z[y + 1 :]])
        return torch.clamp(z[y] - others.max(), min=0)

    def forward(batch: Tensor) -> Tensor:
        with torch.no_grad(), stacked(victim):
            return victim.logits(batch)

    chosen = torch.zeros(x.numel(), dtype=torch.bool)
    effect = torch.full((x.numel(),), torch.inf)
    now = x.clone()
    for n in range(1, 501):
        leaf = now.clone().requires_grad_(True)
        with stacked(victim):
            value = loss(victim.logits(leaf)[0])
            (grad,) = torch.autograd.grad(value, leaf)
        grad, flat = grad.flatten(), now.flatten()
        size = torch.where((1 - 2 * flat) * grad <= 0, grad.abs(), 0.0)
        least = size[size > 0].min() if bool((size > 0).any()) else torch.tensor(1.0)
        noise = fill.fork("fill", n).uniform((len(size),))[0]
        size = torch.where(size == 0, noise * least, size)
        size[chosen] = 0.0
        order = size.sort(descending=True, stable=True).indices[: n * K_INIT].tolist()
        changes: list[float] = []
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK]
            batch = now.repeat(len(part), 1, 1, 1, 1)
            for i, at in enumerate(part):
                batch.view(len(part), -1)[i, at] = 1 - batch.view(len(part), -1)[i, at]
            logits = forward(batch)
            for i in range(len(part)):
                changes.append(float(loss(logits[i]) - value.detach()))
        for at, change in zip(order, changes, strict=True):
            if change <= TOL:
                chosen[at], effect[at] = True, abs(change) if abs(change) > TOL else 0.0
        now = torch.where(chosen.view_as(x), 1 - x, x)
        if int(forward(now).argmax()) != y:
            break
    else:
        return x, False
    order = effect.sort(stable=True).indices[: int(chosen.sum())]
    low, high, final = 0, len(order) - 1, now
    while low <= high:
        middle = (low + high) // 2
        trial = now.clone()
        trial.view(-1)[order[: middle + 1]] = x.view(-1)[order[: middle + 1]]
        if int(forward(trial).argmax()) != y:
            final, low = trial, middle + 1
        else:
            high = middle - 1
    return final, True


class Returned(Sda):
    """SDA that keeps what it returned, without the oracle's memory of closer hits, and its time."""

    def run(self, oracle, x0, y, *, rng):
        start = time.process_time()
        x = super().run(oracle, x0, y, rng=rng)
        object.__setattr__(self, "seconds", time.process_time() - start)
        object.__setattr__(self, "kept", x)
        return x


@pytest.mark.parametrize("patches", [True, False], ids=["patches", "whole passes"])
@pytest.mark.parametrize("name", ["lif_cnn.digits_events", "lif_cnn.digits_events_t8"])
def test_batched_sda_is_faster_than_the_published_loop(benchmark, monkeypatch, name: str, patches) -> None:
    victim = load_victim(name)
    if not patches:
        monkeypatch.setattr(FlipEngine, "of", classmethod(lambda *_: None))
    test = registry("datasets").get(name.removeprefix("lif_cnn.")).load("test")[:SAMPLES]
    right = victim.logits(test.x).argmax(dim=1) == test.y
    x, y, ids = test.x[right], test.y[right], test.ids[right]
    threat = ThreatModel(
        domain=Domain.SPIKES, geometry="l0", eps=None, budget=Budget(forwards=10**7, backwards=10**6)
    )
    attack = Returned(k_init=K_INIT, tol=TOL)
    evaluate_shard(victim, attack, threat, x[:2], y[:2], ids[:2])  # warm up

    # Processor time of this process: on a shared machine the wall clock measures the neighbours.
    # `ratio` compares the loop with the attack alone, since the loop verifies nothing afterwards;
    # `ratio_verified` compares it with the whole evaluation: clean pass, verification, gradient probe.
    loop, slow, wall = [], time.process_time(), time.perf_counter()
    for i in range(len(x)):
        fill = RowStreams.derive(ids[i : i + 1], 0, "attack", "sda.l0")
        loop.append(plain(victim, x[i : i + 1], int(y[i]), fill))
    slow, wall = time.process_time() - slow, time.perf_counter() - wall
    times, alone, walls = [], [], []
    for _ in range(3):
        start, began = time.process_time(), time.perf_counter()
        result = evaluate_shard(victim, attack, threat, x, y, ids)
        times.append(time.process_time() - start)
        walls.append(time.perf_counter() - began)
        alone.append(attack.seconds)
    assert result.errors == []
    benchmark.pedantic(evaluate_shard, args=(victim, attack, threat, x, y, ids), rounds=2)
    flips = torch.stack([(a != b).sum() for (a, _), b in zip(loop, x, strict=True)])
    batched = (attack.kept != x).flatten(1).sum(dim=1)
    benchmark.extra_info.update(
        ratio=slow / min(alone),
        ratio_verified=slow / min(times),
        wall_ratio_verified=wall / min(walls),
        loop_seconds=slow,
        batched_seconds=min(alone),
        verified_seconds=min(times),
        threads=torch.get_num_threads(),
        samples=len(x),
        loop_success=sum(ok for _, ok in loop),
        batched_success=int((result.status == 1).sum()),
        loop_median_l0=float(flips.double().median()),
        batched_median_l0=float(batched.double().median()),
        same_l0=int((flips == batched).sum()),
    )
    assert sum(ok for _, ok in loop) == int((result.status == 1).sum()) == len(x)
    assert int((flips - batched).abs().sum()) < 0.05 * int(flips.sum())
    assert slow / min(alone) > (7 if patches else 2)
