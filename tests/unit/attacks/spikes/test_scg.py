"""SCG: the converter, the flipper, and where they lead on a linear victim."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from robustspike.attacks.pixels.scg_image import ScgImage
from robustspike.attacks.spikes.scg import ScaledThreshold
from robustspike.attacks.spikes.scg import Scg
from robustspike.attacks.spikes.scg import probability
from robustspike.attacks.spikes.scg import squared_error
from robustspike.attacks.spikes.scg import ternary
from robustspike.attacks.spikes.scg import turnover
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Native
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import margin
from robustspike.bench.api import registry
from robustspike.bench.attack.decide import target_classes
from robustspike.bench.attack.fitting import refused_gradient


def draws(n: int, size: int) -> torch.Tensor:
    return RowStreams.derive(range(n), "scg test").uniform((size,), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["max", "minmax"])
def test_changes_are_ternary_legal_and_never_against_the_gradient(norm) -> None:
    rng = generator("scg", 1)
    s = (torch.rand(20, 50, generator=rng) < 0.5).double()
    g = torch.randn(20, 50, generator=rng, dtype=torch.float64)
    change = ternary(g, s, draws(20, 50), norm=norm)
    assert set(change.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert set((s + change).unique().tolist()) == {0.0, 1.0}
    assert bool((change * g.sign() >= 0).all())


def test_sampling_follows_the_gradient_size() -> None:
    g = torch.tensor([[4.0, -2.0, 1.0, 0.0]], dtype=torch.float64)
    assert probability(g, scale=0.6).flatten().tolist() == pytest.approx([0.6, 0.3, 0.15, 0.0])
    n = 40_000
    s = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64).expand(n, 4)
    share = ternary(g.expand(n, 4), s, draws(n, 4), scale=0.6).abs().mean(dim=0)
    for i, p in enumerate((0.6, 0.3, 0.15)):
        assert abs(float(share[i]) - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_minmax_gives_one_for_equal_sizes_and_zero_for_the_smallest() -> None:
    assert probability(torch.tensor([[2.0, -2.0]]), norm="minmax").tolist() == [[1.0, 1.0]]
    assert probability(torch.zeros(1, 3), norm="minmax").tolist() == [[0.0, 0.0, 0.0]]
    assert probability(torch.tensor([[3.0, -1.0]]), norm="minmax").tolist() == [[1.0, 0.0]]


def test_single_nonzero_gradient_moves_that_element_only_where_legal() -> None:
    g = torch.zeros(2, 5, dtype=torch.float64)
    g[:, 2] = 1e-30
    s = torch.zeros(2, 5, dtype=torch.float64)
    s[1, 2] = 1.0
    change = ternary(g, s, draws(2, 5))
    assert change[0].tolist() == [0, 0, 1, 0, 0]
    assert change[1].tolist() == [0, 0, 0, 0, 0]
    assert bool((ternary(-g, 1 - s, draws(2, 5))[0] == torch.tensor([0, 0, -1, 0, 0])).all())


def test_flipper_turns_over_its_share_in_both_directions() -> None:
    s = (torch.arange(1000) % 2).double().expand(100, 1000)
    change = turnover(s, draws(100, 1000), gamma=0.05)
    sigma = math.sqrt(0.05 * 0.95 / s.numel())
    assert abs(float(change.abs().mean()) - 0.05) < 4 * sigma
    assert bool((change > 0).any()) and bool((change < 0).any())
    exact = turnover(s, draws(100, 1000), gamma=0.0509, flipper="exact")
    assert exact.abs().sum(dim=1).tolist() == [50.0] * 100


def test_linear_victim_reaches_its_best_corner(toys, grid, attacked) -> None:
    shape = (2, 1, 4, 4)
    gain = torch.randn(32, generator=generator("corner"), dtype=torch.float64)
    best = float(gain.clamp(min=0).sum())
    victim = toys.gains(gain, 1e-6 - best, shape)  # only the corner is enough
    y = torch.zeros(4, dtype=torch.int64)
    result = attacked(victim, Scg(iterations=400, scales=(1.0,)), grid(4, shape), y=y)
    assert result.status.tolist() == [1] * 4
    assert torch.equal(result.x_adv.flatten(1), (gain > 0).double().expand(4, 32))


def test_a_targeted_step_goes_toward_the_target_and_an_untargeted_one_away_from_the_label(toys, grid) -> None:
    shape = (2, 1, 4, 4)
    victim = toys.linear(shape, classes=4, seed=1)
    x = grid(6, shape, dtype=torch.float32)
    logits = victim.logits(x)
    y, ids = logits.argmax(dim=1), torch.arange(6)
    weight = victim.module.inner.weight
    attack = Scg(iterations=1, scales=(1.0,), loss="margin")
    asked: list[torch.Tensor] = []
    assert refused_gradient(attack, victim) is None  # a check that asks the victim, once
    victim.module.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach().clone()))
    for goal in (Goal.TARGETED, Goal.UNTARGETED):
        aim = target_classes(y, ids, 4) if goal is Goal.TARGETED else y
        rival = logits.scatter(1, aim[:, None], -torch.inf).argmax(dim=1)
        toward = (weight[aim] - weight[rival]) * (1 if goal is Goal.TARGETED else -1)
        asked.clear()
        threat = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None, goal=goal)
        assert evaluate_shard(victim, attack, threat, x, y, ids).errors == []
        change = (asked[2] - x).flatten(1)  # after the clean answer and the gradient
        assert bool((change != 0).any(dim=1).all())
        assert bool((change * toward >= 0).all())


class Gated(nn.Module):
    """A linear victim whose gradient is zero for inputs without the first spike."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(16, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        rise = flat[:, 0].detach() * (flat @ self.gain) - 100
        return torch.stack([torch.zeros_like(rise), rise], dim=1)


def test_sample_with_zero_gradient_is_flipped_beside_a_live_one(toys) -> None:
    shape = (1, 1, 4, 4)
    victim = toys.wrapped(Gated(), shape, 2)
    threat = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None)
    x = torch.zeros(2, *shape, dtype=torch.float64)
    x[1, 0, 0, 0, 0] = 1
    attack = Scg(iterations=2, scales=(1.0,), gamma=0.25, flipper="exact")
    asked: list[torch.Tensor] = []
    assert refused_gradient(attack, victim) is None  # a check that asks the victim, once
    victim.module.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach().clone()))
    result = evaluate_shard(victim, attack, threat, x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    assert result.counts["zero_gradients"] >= 1
    second = asked[2]  # clean, first gradient, second gradient
    assert int(second[0].sum()) == 4  # a quarter of 16, at random
    assert int(second[1].sum()) == 16  # every element adds to the goal with equal strength


def test_scaled_threshold_changes_the_gradient_and_not_the_answer(toys, grid) -> None:
    victim = toys.spiking(seed=2)
    x = grid(3, victim.spec.shape)
    y = victim.logits(x).argmax(dim=1)
    plain = victim.loss_and_grad(x, y, margin, Native())
    scaled = victim.loss_and_grad(x, y, margin, ScaledThreshold(Native(), 0.5))
    assert torch.equal(scaled.logits, plain.logits) and torch.equal(scaled.loss, plain.loss)
    assert not torch.equal(scaled.grad, plain.grad)
    assert [n.threshold for n in victim.neurons] == [1.0, 1.0]


def test_a_learned_threshold_is_scaled_and_put_back(toys, grid) -> None:
    victim = toys.spiking(seed=2)
    x = grid(3, victim.spec.shape)
    y = victim.logits(x).argmax(dim=1)
    expected = victim.loss_and_grad(x, y, margin, ScaledThreshold(Native(), 0.5))
    last = victim.neurons[-1].module
    learned = nn.Parameter(torch.tensor(1.0, dtype=torch.float64), requires_grad=False)
    del last.v_threshold
    last.v_threshold = learned
    found = victim.loss_and_grad(x, y, margin, ScaledThreshold(Native(), 0.5))
    assert torch.equal(found.grad, expected.grad) and torch.equal(found.logits, expected.logits)
    assert last.v_threshold is learned and float(learned) == 1.0


def test_squared_error_is_measured_from_the_one_hot_label() -> None:
    assert squared_error(torch.tensor([[0.5, 0.0]]), torch.tensor([0])).tolist() == [0.125]


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="gamma"):
        Scg(gamma=2.0)
    with pytest.raises(ConfigError, match="loss"):
        Scg(loss="hinge")


@pytest.mark.parametrize(("estimator", "fires"), [("native", False), ("rectangle(a=0.005)", True)])
def test_the_gradient_trigger_fires_on_a_sharp_surrogate_and_is_counted(estimator: str, fires: bool) -> None:
    """A window of 1/100 around the threshold holds no potential of some samples: their gradient is zero."""
    split = registry("datasets").get("digits_events").load("validation")[:16]
    victim = load_victim("lif_cnn.digits_events")
    threat = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None)
    broken = {}
    for gamma in (0.05, 0.0):  # as published, and without the trigger
        attack = Scg(iterations=20, scales=(1.0,), loss="mse", estimator=estimator, gamma=gamma)
        shard = evaluate_shard(victim, attack, threat, split.x, split.y, torch.arange(16))
        assert shard.counts["trigger_firings"] == shard.counts["zero_gradients"]
        assert (shard.counts["trigger_firings"] > 0) == fires
        broken[gamma] = shard.count(Status.BROKEN)
    assert (broken[0.05] > broken[0.0]) == fires, "what the trigger is for: a stuck sample moves on"


def test_firings_on_images_are_counted_for_every_time_step() -> None:
    split = registry("datasets").get("digits").load("validation")[:8]
    threat = ThreatModel(geometry="linf", eps=Fraction(1, 10))
    for estimator, fires in (("native", False), ("rectangle(a=0.001)", True)):
        attack = ScgImage(iterations=4, estimator=estimator)
        shard = evaluate_shard(
            load_victim("lif_cnn.digits"), attack, threat, split.x, split.y, torch.arange(8)
        )
        assert (shard.counts["trigger_firings"] > 0) == fires
