"""SpikeFool: the vectorised solver against its loop, and linear victims."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustspike.attacks.spikes.spikefool import SpikeFool
from robustspike.attacks.spikes.spikefool import sparse_solution
from robustspike.bench.api import ConfigError
from robustspike.bench.api import generator


def loop(v: Tensor, n: Tensor, gap: float) -> Tensor:
    """The published solver: one coordinate after the other until the plane is crossed."""
    v, goal = v.clone(), float(n @ v) + gap
    rest = n.abs().clone()
    while float(n @ v) - goal < 0 and bool((rest > 0).any()):
        j = int(rest.argmax())
        move = max(abs(float(n @ v) - goal - 1e-3) / abs(float(n[j])), 1e-4)
        v[j] = float(torch.clamp(v[j] + move * n[j].sign(), 0, 1))
        rest[j] = 0
    return v


def test_vectorised_solver_equals_the_loop() -> None:
    rng = generator("solver")
    for case in range(100):
        v = (torch.rand(40, generator=rng) < 0.4).double()
        n = torch.randn(40, generator=rng, dtype=torch.float64)
        n[torch.rand(40, generator=rng) < 0.2] = 0
        gap = float(torch.rand(1, generator=rng)) * 12
        fast = sparse_solution(v[None], n[None], torch.tensor([gap], dtype=torch.float64))[0]
        assert torch.allclose(fast, loop(v, n, gap), rtol=0, atol=1e-9), case


def test_nothing_moves_where_the_box_is_full() -> None:
    v = torch.ones(1, 6, dtype=torch.float64)
    n = torch.arange(1.0, 7.0, dtype=torch.float64)[None]
    assert torch.equal(sparse_solution(v, n, torch.tensor([3.0], dtype=torch.float64)), v)


def test_linear_victim_loses_the_largest_gains(toys, grid, attacked) -> None:
    shape = (2, 1, 4, 4)
    gain = torch.randn(32, generator=generator("fool"), dtype=torch.float64)
    victim = toys.gains(gain, -9.0, shape)
    x = grid(8, shape, rate=0.4)
    y = torch.zeros(8, dtype=torch.int64)
    result = attacked(victim, SpikeFool(reach=1.0), x, y=y)
    wide = attacked(victim, SpikeFool(reach=2.0), x, y=y)
    checked = 0
    for i in range(8):
        toward = torch.where(x[i].flatten() == 0, gain, -gain)
        ordered = toward.sort(descending=True)
        start = float(victim.logits(x[i : i + 1])[0, 1])
        fewest = next((k for k in range(33) if start + float(ordered.values[:k].sum()) > 0), None)
        if fewest is None:
            continue
        checked += 1
        flips = int(result.distance[i])
        assert fewest <= flips <= fewest + 1
        chosen = (result.x_adv[i] != x[i]).flatten().nonzero().squeeze(1)
        assert set(chosen.tolist()) == set(ordered.indices[:flips].tolist())
        assert int(wide.distance[i]) >= flips
    assert checked >= 4


def test_a_longer_reach_needs_no_fewer_flips(toys, grid, attacked) -> None:
    victim = toys.spiking(seed=2)
    x = grid(12, victim.spec.shape)
    medians = []
    for reach in (1.0, 2.0, 4.0):
        result = attacked(victim, SpikeFool(reach=reach), x)
        assert result.errors == [] and bool(((result.x_adv == 0) | (result.x_adv == 1)).all())
        distance = torch.where(result.status == 1, result.distance, torch.inf)
        medians.append(float(distance.sort().values[[5, 6]].mean()))
    assert medians == sorted(medians) and medians[0] < medians[-1] < math.inf


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="reach"):
        SpikeFool(reach=0.0)
