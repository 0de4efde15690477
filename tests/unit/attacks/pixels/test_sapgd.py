"""SA-PGD: the schedule, the step rule, the guard, EOT, and what is returned."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import estimator_nets as nets
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.pixels.sapgd import SaPgd
from robustspike.attacks.pixels.sapgd import halvings
from robustspike.attacks.pixels.sapgd import normalised
from robustspike.attacks.pixels.sapgd import step_sizes
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Native
from robustspike.bench.api import Status
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import wrap
from robustspike.bench.victim.checks import refusal


class Affine(nn.Module):
    """Two classes, logit difference linear in x; its gradient is the same everywhere."""

    def __init__(self, weight: Tensor, noise: float = 0.0, shift: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.scale, self.shift = noise, shift
        self.draws_noise = noise > 0
        self.noise: Any = None

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.weight + self.shift
        if self.noise is not None:
            score = score + self.scale * self.noise.normal((1,)).squeeze(1)
        return torch.stack((score, torch.zeros_like(score)), dim=1)


def affine(weight: Tensor, noise: float = 0.0) -> ModuleVictim:
    return wrap(Affine(weight, noise), name="affine", shape=(1, 4, 4), classes=2, stochastic=noise > 0)


def run(victim: ModuleVictim, attack: SaPgd, x: Tensor, y: Tensor, eps: str = "1/10", **options: Any) -> Any:
    threat = ThreatModel(geometry="linf", eps=Fraction(eps), **options)
    return evaluate_shard(victim, attack, threat, x, y, torch.arange(len(x)))


def test_schedule_is_the_published_one_at_100_steps() -> None:
    assert halvings(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    sizes = step_sizes(1.0, 100)
    changes = [k for k in range(1, 100) if sizes[k] != sizes[k - 1]]
    assert changes == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sizes[0] == 1.0 and sizes[99] == 2.0**-8


@pytest.mark.parametrize("steps", (1, 2, 7, 20, 50, 333, 1000))
def test_schedule_scales_with_the_number_of_steps(steps: int) -> None:
    found = halvings(steps)
    assert len(found) == 8 and all(
        0 <= at - c * steps / 100 < 1 for at, c in zip(found, halvings(100), strict=True)
    )
    assert len(step_sizes(0.1, steps)) == steps


def test_normalised_moments_have_mean_one_at_any_scale() -> None:
    g = torch.randn(4, 2, 3, 3, generator=generator("g"))
    for scale in (1e-30, 1.0, 1e30):
        first, second = normalised(g * scale)
        torch.testing.assert_close(first.abs().mean(dim=(1, 2, 3)), torch.ones(4))
        torch.testing.assert_close(second.mean(dim=(1, 2, 3)), torch.ones(4))
        torch.testing.assert_close(first, g / g.abs().mean(dim=(1, 2, 3), keepdim=True))
        torch.testing.assert_close(second, g**2 / (g**2).mean(dim=(1, 2, 3), keepdim=True))


def test_unusable_gradients_become_zero_and_leave_others_alone() -> None:
    g = torch.randn(4, 1, 2, 2, generator=generator("g"))
    g[1], g[2, 0, 0, 0], g[3, 0, 1, 1] = 0.0, torch.nan, torch.inf
    first, second = normalised(g)
    assert torch.equal(first[1:], torch.zeros(3, 1, 2, 2)) and torch.equal(
        second[1:], torch.zeros(3, 1, 2, 2)
    )
    assert torch.equal(first[:1], normalised(g[:1])[0])


def test_a_sample_without_gradient_stays_finite_and_returns_the_clean_input() -> None:
    weight = torch.zeros(16)
    x, _ = nets.inputs(3)
    result = run(affine(weight), SaPgd(steps=30, estimator="native"), x, torch.zeros(3, dtype=torch.int64))
    assert result.count(Status.ROBUST) == 3 and not result.errors
    assert result.counts["zero_gradients"] == result.counts["zero_gradient_samples"] == 3, "asked once each"
    assert torch.equal(result.x_adv, x)


def test_no_element_moves_further_than_the_step_size() -> None:
    seen: list[Tensor] = []

    class Watch(Affine):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    victim = wrap(Watch(torch.full((16,), 0.5)), name="watch", shape=(1, 4, 4), classes=2)
    refusal(victim, Native())  # the harness looks at a victim once before it is attacked
    seen.clear()
    x = torch.full((2, 1, 4, 4), 0.5)
    run(victim, SaPgd(steps=100, estimator="native"), x, torch.zeros(2, dtype=torch.int64), eps="1/4")
    iterates = torch.stack([s for s in seen if len(s) == 2])[1:]  # without the clean pass
    sizes = step_sizes(0.25, 100)
    moves = (iterates[1:101] - iterates[:100]).abs().amax(dim=(1, 2, 3, 4))
    assert all(float(move) <= size + 1e-6 for move, size in zip(moves, sizes, strict=True))
    # the start touches the ball
    torch.testing.assert_close((iterates[0] - x).abs().amax(dim=(1, 2, 3)), torch.full((2,), 0.25))


def test_first_step_is_the_normalised_gradient_without_signs() -> None:
    g = torch.tensor([4.0, -1.0, 0.5] + [1.0] * 13)
    seen: list[Tensor] = []

    class Watch(Affine):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    victim = wrap(Watch(g).double(), name="watch", shape=(1, 4, 4), classes=2)
    refusal(victim, Native())
    seen.clear()
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    attack = SaPgd(steps=1, estimator="native")
    run(victim, attack, x, torch.zeros(1, dtype=torch.int64), eps="1/8")
    start, after = seen[1], seen[2]
    descent = (-g.double()).view_as(x)
    ratio = (descent / descent.abs().mean()) / (descent**2 / (descent**2).mean()).sqrt()
    expected = (start + 0.125 * ratio.clamp(-1, 1)).clamp(0.375, 0.625)
    torch.testing.assert_close(after, expected)


@pytest.mark.parametrize(("slack", "broken"), ((0.02, True), (-0.02, False)))
def test_reaches_the_optimum_of_a_linear_victim(slack: float, broken: bool) -> None:
    g = torch.randn(16, generator=generator("w"))
    x = torch.full((1, 1, 4, 4), 0.5)
    lowest = float(0.5 * g.sum() - 0.1 * g.abs().sum())  # the score at the best corner of the ball
    victim = wrap(Affine(g, shift=-lowest - slack), name="affine", shape=(1, 4, 4), classes=2)
    result = run(victim, SaPgd(estimator="native"), x, torch.zeros(1, dtype=torch.int64))
    assert (result.count(Status.BROKEN) == 1) == broken


def test_noise_draws_are_averaged_and_paid() -> None:
    victim = affine(torch.full((16,), 2.0), noise=0.1)
    x = torch.full((2, 1, 4, 4), 0.5)
    y = torch.zeros(2, dtype=torch.int64)
    budget = Budget(forwards=1000, backwards=1000)
    for draws, paid in ((0, 10), (3, 3)):
        result = run(victim, SaPgd(steps=5, estimator="native", draws=draws), x, y, budget=budget)
        assert result.forwards.tolist() == [6 * paid] * 2 and result.backwards.tolist() == [5 * paid] * 2


def test_ends_in_order_at_any_budget_and_at_eps_zero() -> None:
    victim = nets.victim("lif-hard")
    x, _ = nets.inputs(4)
    y = victim.logits(x).argmax(dim=1)
    for forwards, backwards in ((0, 0), (1, 0), (1, 1), (7, 3), (8, 7)):
        result = run(victim, SaPgd(steps=10), x, y, budget=Budget(forwards=forwards, backwards=backwards))
        assert not result.errors and int(result.forwards.max()) <= forwards
        assert int(result.backwards.max()) <= backwards
    result = run(victim, SaPgd(steps=10), x, y, eps="0")
    assert torch.equal(result.x_adv, x) and result.count(Status.ROBUST) == 4


@pytest.mark.parametrize("options", ({"steps": 0}, {"draws": -1}, {"momentum": 1.0}, {"decay": -0.1}))
def test_wrong_parameters_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"sapgd.linf"):
        SaPgd(**options)
