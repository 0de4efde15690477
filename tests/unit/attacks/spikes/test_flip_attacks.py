"""What every attack by spike flips must hold: legality, budgets, batch mates, dead and empty inputs."""

from __future__ import annotations

import pytest
import torch

from robustspike.attacks.spikes.gumbel import Gumbel
from robustspike.attacks.spikes.scg import Scg
from robustspike.attacks.spikes.scg import ScgThreshold
from robustspike.attacks.spikes.sda import Sda
from robustspike.attacks.spikes.spike_pgd import BernoulliPgd
from robustspike.attacks.spikes.spike_pgd import RoundedPgd
from robustspike.attacks.spikes.spikefool import SpikeFool
from robustspike.bench.api import Budget
from robustspike.bench.api import Goal

ATTACKS = {
    "sda": Sda(),
    "sda again": Sda(keep=1, accept_zero=False, early_candidate_exit=True, second_reduction_pass=True),
    "scg": Scg(iterations=8, scales=(1.0, 0.1)),
    "scg exact": Scg(iterations=8, scales=(0.1,), loss="mse", flipper="exact", norm="minmax"),
    "scg_thr": ScgThreshold(iterations=4, scales=(0.3,), loss="margin", thresholds=(0.5, 1.0)),
    "spikefool": SpikeFool(outer=5, inner=8),
    "bernoulli_pgd": BernoulliPgd(steps=6, draws=3),
    "rounded_pgd": RoundedPgd(steps=6),
    "gumbel": Gumbel(steps=8, draws=2),
}


@pytest.fixture(params=ATTACKS.values(), ids=ATTACKS.keys())
def attack(request: pytest.FixtureRequest):
    return request.param


def test_constant_victim_is_never_fooled(toys, grid, attacked, attack) -> None:
    shape = (3, 1, 4, 4)
    x = grid(3, shape)
    for eps in (None, 5):
        result = attacked(toys.constant(shape), attack, x, y=torch.zeros(3, dtype=torch.int64), eps=eps)
        assert result.errors == []
        assert result.status.tolist() == [0, 0, 0]
        assert torch.equal(result.x_adv, x)


def test_victim_with_a_dead_gradient_gives_no_error(toys, grid, attacked, attack) -> None:
    victim = toys.spiking((4, 1, 4, 4), threshold=1e9)
    result = attacked(victim, attack, grid(2, (4, 1, 4, 4)))
    assert result.errors == [] and result.status.tolist() == [0, 0]


def test_empty_samples_are_handled(toys, attacked, attack) -> None:
    victim = toys.spiking(seed=3)
    result = attacked(victim, attack, torch.zeros(2, *victim.spec.shape, dtype=torch.float64))
    assert result.errors == []
    assert bool(((result.x_adv == 0) | (result.x_adv == 1)).all())


def test_a_sample_alone_gets_the_same_bytes_as_in_a_batch(toys, grid, attacked, attack) -> None:
    victim = toys.spiking(seed=2)
    x = grid(4, victim.spec.shape)
    together = attacked(victim, attack, x)
    assert together.errors == []
    for i in (0, 3):
        alone = attacked(victim, attack, x[i : i + 1], ids=torch.tensor([i]))
        assert torch.equal(alone.x_adv[0], together.x_adv[i])
        assert alone.forwards[0] == together.forwards[i] and alone.backwards[0] == together.backwards[i]


@pytest.mark.parametrize(("forwards", "backwards"), [(0, 0), (1, 1), (9, 3), (30, 60)])
def test_budget_is_never_exceeded(toys, grid, attacked, attack, forwards, backwards) -> None:
    victim = toys.spiking(seed=2)
    x = grid(3, victim.spec.shape)
    for eps in (None, 4):
        budget = Budget(forwards=forwards, backwards=backwards)
        result = attacked(victim, attack, x, budget=budget, eps=eps)
        assert result.errors == []
        assert int(result.forwards.max()) <= forwards and int(result.backwards.max()) <= backwards


def test_bounded_threats_are_kept_and_zero_changes_nothing(toys, grid, attacked, attack) -> None:
    victim = toys.spiking(seed=2)
    x = grid(4, victim.spec.shape)
    for eps in (0, 3, 40):
        result = attacked(victim, attack, x, eps=eps)
        assert result.errors == []  # what run() returns is legal as well: an illegal tensor is an error
        assert bool((result.distance <= eps).all())
        changed = (result.x_adv != x).flatten(1).sum(dim=1)
        assert torch.equal(changed.double(), result.distance)
        if eps == 0:
            assert torch.equal(result.x_adv, x)


def test_most_samples_of_an_easy_victim_are_broken(toys, grid, attacked, attack) -> None:
    victim = toys.spiking(seed=5)  # a few flips are enough
    result = attacked(victim, attack, grid(8, victim.spec.shape))
    assert int((result.status == 1).sum()) >= 6


def test_targeted_attacks_reach_their_target(toys, grid, attacked, attack) -> None:
    if Goal.TARGETED not in attack.spec.goals:
        pytest.skip("untargeted by definition")
    victim = toys.linear((2, 1, 4, 4), classes=3, seed=1)
    result = attacked(victim, attack, grid(8, (2, 1, 4, 4), dtype=torch.float32), goal=Goal.TARGETED)
    assert result.errors == []
    assert int((result.status == 1).sum()) >= 4
