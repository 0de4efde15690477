"""Gumbel and Bernoulli-PGD: sampling, slopes, annealing, and the order of flips."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from robustspike.attacks.spikes.gumbel import Gumbel
from robustspike.attacks.spikes.gumbel import RowAdam
from robustspike.attacks.spikes.gumbel import annealed
from robustspike.attacks.spikes.gumbel import relaxed
from robustspike.attacks.spikes.spike_pgd import BernoulliPgd
from robustspike.attacks.spikes.spike_pgd import RoundedPgd
from robustspike.attacks.timing.timestamp_pgd import TimestampPgd
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ShardResult
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry


def test_hard_samples_follow_the_log_odds() -> None:
    odds = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    n = 40_000
    draw = RowStreams.derive(range(n), "gumbel").uniform((4,), dtype=torch.float64)
    share = relaxed(odds.expand(n, 4), draw, 1.0)[0].mean(dim=0)
    for got, p in zip(share.tolist(), torch.sigmoid(odds).tolist(), strict=True):
        assert abs(got - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_slope_is_the_derivative_of_the_soft_sample() -> None:
    odds = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_(True)
    draw = torch.linspace(0.05, 0.95, 13, dtype=torch.float64)
    soft = torch.sigmoid((odds + torch.log(draw) - torch.log1p(-draw)) / 0.7)
    (expected,) = torch.autograd.grad(soft.sum(), odds)
    assert torch.allclose(relaxed(odds.detach(), draw, 0.7)[1], expected, atol=1e-12)


def test_straight_through_step_has_the_sign_of_the_true_derivative(toys, attacked, grid) -> None:
    """On a linear victim the most likely grid adds spikes with gains and removes those without."""
    shape = (2, 1, 4, 4)
    gain = torch.randn(32, generator=generator("sign"), dtype=torch.float64)
    victim = toys.gains(gain, 1e-6 - float(gain.clamp(min=0).sum()), shape)
    attack = Gumbel(steps=60, draws=2, price=0.0, rate=1.0)
    result = attacked(victim, attack, grid(3, shape), y=torch.zeros(3, dtype=torch.int64))
    assert result.status.tolist() == [1, 1, 1]
    assert torch.equal(result.x_adv.flatten(1), (gain > 0).double().expand(3, 32))


def test_without_gradient_and_noise_the_grid_stays(toys, grid, attacked) -> None:
    clean = torch.tensor([[0.0, 1.0]])
    odds = 4 * (2 * clean - 1)
    assert torch.equal(relaxed(odds, torch.full((1, 2), 0.5), 1e-3)[0], clean)


def test_annealing_runs_from_first_to_last() -> None:
    assert annealed(0, 100, 2.0, 0.1) == 2.0 and annealed(99, 100, 2.0, 0.1) == pytest.approx(0.1)
    values = [annealed(i, 100, 2.0, 0.1) for i in range(100)]
    assert values == sorted(values, reverse=True)


def test_row_adam_follows_its_equations_row_by_row() -> None:
    adam, rows = RowAdam(torch.zeros(2, 3, dtype=torch.float64)), torch.tensor([0, 1])
    first, second = torch.randn(2, 2, 3, generator=generator("adam"), dtype=torch.float64)
    assert torch.allclose(adam.step(rows, first, 0.1), 0.1 * first.sign(), atol=1e-6)
    got = adam.step(rows[:1], second[:1], 0.1)  # the other row waits
    mean = (0.09 * first + 0.1 * second) / (1 - 0.9**2)
    spread = ((0.000999 * first**2 + 0.001 * second**2) / (1 - 0.999**2)).sqrt()
    assert torch.allclose(got, (0.1 * mean / (spread + 1e-8))[:1], atol=1e-9)
    assert torch.allclose(adam.count, torch.tensor([[2.0], [1.0]], dtype=torch.float64))


@pytest.mark.parametrize("attack", [BernoulliPgd(steps=20, temperature=0.5), RoundedPgd(steps=20)])
def test_linear_victim_loses_its_largest_gains_first(toys, grid, attacked, attack) -> None:
    shape = (2, 1, 4, 4)
    gain = torch.randn(32, generator=generator("order"), dtype=torch.float64)
    victim = toys.gains(gain, -9.0, shape)
    x = grid(6, shape, rate=0.4)
    result = attacked(victim, attack, x, y=torch.zeros(6, dtype=torch.int64))
    for i in (result.status == 1).nonzero().flatten().tolist():
        toward = torch.where(x[i].flatten() == 0, gain, -gain)
        start = float(victim.logits(x[i : i + 1])[0, 1])
        ordered = toward.sort(descending=True).values
        fewest = next(k for k in range(33) if start + float(ordered[:k].sum()) > 0)
        assert fewest <= int(result.distance[i]) <= fewest + 4
    assert int((result.status == 1).sum()) >= 3


def test_projection_stays_in_ball_and_box() -> None:
    attack = BernoulliPgd()
    s = torch.zeros(2, 100)
    near = attack._near(s, s + torch.tensor([[0.5], [0.01]]))
    assert float(near[0].norm()) == pytest.approx(1.5, abs=1e-4) and float(near.max()) <= 1
    assert torch.allclose(near[1], torch.full((100,), 0.01))


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="cold"):
        Gumbel(cold=3.0)
    with pytest.raises(ConfigError, match="temperature"):
        RoundedPgd(temperature=0.0)


def test_further_starts_of_rounded_pgd_never_need_more_flips() -> None:
    split = registry("datasets").get("digits_events").load("validation")[:6]
    victim = load_victim("lif_cnn.digits_events")
    threat = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None)
    one, three = (
        evaluate(victim, RoundedPgd(steps=10, restarts=restarts), split.x, split.y, threat=threat).shards[0]
        for restarts in (1, 3)
    )
    assert bool((one.status == 1).all())
    assert bool((three.distance <= one.distance).all())
    assert float(three.distance.sum()) < float(one.distance.sum())


@pytest.mark.parametrize(
    ("attack", "geometry", "eps"),
    [(Gumbel(steps=6), "l0", 12), (TimestampPgd(steps=4), "retime_linf", 1)],
    ids=lambda value: value.spec.name if hasattr(value, "spec") else None,
)
def test_further_starts_go_to_survivors_and_lose_no_hit(
    attack: Gumbel | TimestampPgd, geometry: str, eps: int
) -> None:
    split = registry("datasets").get("digits_events").load("validation")
    victim = load_victim("lif_cnn.digits_events")
    threat = ThreatModel(domain=Domain.SPIKES, geometry=geometry, eps=Fraction(eps))

    def shard(restarts: int) -> ShardResult:
        found = evaluate(
            victim, replace(attack, restarts=restarts), split.x[:16], split.y[:16], threat=threat
        )
        return found.shards[0]

    one, three = shard(1), shard(3)
    broken = one.status == 1
    assert bool((three.status[broken] == 1).all())
    assert torch.equal(three.forwards[broken], one.forwards[broken])
    standing = three.status == 0
    assert bool(standing.any())
    assert torch.equal(three.forwards[standing], 3 * one.forwards[standing])


def test_restarts_that_would_repeat_one_search_are_refused() -> None:
    with pytest.raises(ConfigError, match="would repeat one search"):
        TimestampPgd(random_start=False, restarts=2)
