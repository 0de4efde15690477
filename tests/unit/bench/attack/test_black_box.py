"""Attacks without gradients of the target, and the minimum-norm L2 attack."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.ensembles.transfer import Transfer
from robustspike.attacks.ensembles.transfer import usable_sources
from robustspike.attacks.pixels.cw import CarliniWagner
from robustspike.attacks.pixels.rays import Rays
from robustspike.attacks.pixels.square import Square
from robustspike.attacks.pixels.square import share
from robustspike.bench.api import Access
from robustspike.bench.api import AccessDenied
from robustspike.bench.api import Attack
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.meter import Meter


class Linear(nn.Module):
    """Two classes, logits +-(w x + b): distances to the boundary are known in every norm."""

    def __init__(self) -> None:
        super().__init__()
        w = RowStreams.derive([0], "w").normal((16,))[0]
        self.register_buffer("w", w)
        self.register_buffer("b", -w.sum() / 2)

    def forward(self, x: Tensor) -> Tensor:
        out = x.flatten(1) @ self.w + self.b
        return torch.stack([-out, out], dim=1)


@pytest.fixture
def victim() -> ModuleVictim:
    return wrap(Linear(), name="linear", shape=(1, 4, 4), classes=2)


def inputs(victim: ModuleVictim, n: int = 16) -> tuple[Tensor, Tensor]:
    x = 0.4 + 0.2 * RowStreams.derive(range(n), "x").uniform(victim.spec.shape)
    return x, victim.logits(x).argmax(dim=1)


def distances(victim: ModuleVictim, x: Tensor, norm: float) -> Tensor:
    """Distance to the boundary where the bounds do not interfere: |w x + b| / |w|_dual."""
    w: Tensor = victim.module.w  # type: ignore[assignment]
    return victim.logits(x)[:, 0].abs() / w.norm(p=norm)


def oracle_for(victim: ModuleVictim, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Oracle, Meter]:
    meter = Meter(
        victim,
        threat,
        registry("geometries").get(threat.geometry),
        x,
        y,
        noise=RowStreams.derive(range(len(x)), "noise"),
        clean=torch.zeros(len(x), victim.spec.classes),
        estimators=registry("estimators").get,
        targets=1 - y if threat.goal is Goal.TARGETED else None,
    )
    return Oracle(meter), meter


def minimum_norm(attack: Attack, victim: ModuleVictim, goal: Goal = Goal.UNTARGETED) -> Tensor:
    x, y = inputs(victim)
    threat = ThreatModel(geometry=attack.spec.geometries[0], eps=None, access=attack.spec.access, goal=goal)
    oracle, meter = oracle_for(victim, x, y, threat)
    found = attack.run(oracle, x, y, rng=RowStreams.derive(range(len(x)), "rng"))
    assert bool(meter.hit.all())
    assert bool((victim.logits(found).argmax(dim=1) != y).all())
    return oracle.geometry.distance(x, found).float()


@pytest.mark.parametrize("goal", [Goal.UNTARGETED, Goal.TARGETED])
def test_cw_reaches_the_distance_to_the_boundary_of_a_linear_victim(victim: ModuleVictim, goal: Goal) -> None:
    found = minimum_norm(CarliniWagner(), victim, goal)
    exact = distances(victim, inputs(victim)[0], 2)
    assert bool((found >= exact - 1e-5).all())
    assert float((found / exact).median()) < 1.05, "within 5 % for half of the samples"
    assert bool((found <= exact + 3e-3).all())


def test_cw_finds_nearer_points_with_more_values_of_c(victim: ModuleVictim) -> None:
    one = minimum_norm(CarliniWagner(searches=1, weight=100.0), victim)
    many = minimum_norm(CarliniWagner(searches=6, weight=100.0), victim)
    assert bool((many <= one + 1e-6).all())
    assert float(many.mean()) < float(one.mean())


@pytest.mark.parametrize("goal", [Goal.UNTARGETED, Goal.TARGETED])
def test_rays_reaches_the_distance_to_the_boundary_of_a_linear_victim(
    victim: ModuleVictim, goal: Goal
) -> None:
    found = minimum_norm(Rays(queries=600), victim, goal)
    exact = distances(victim, inputs(victim)[0], 1)
    assert bool((found >= exact - 1e-5).all())
    assert bool((found <= exact + 2e-3).all()), "every sign is found; the bisection stops at 1e-3"


def test_rays_sees_labels_only(victim: ModuleVictim) -> None:
    assert Rays().spec.access is Access.LABEL
    x, y = inputs(victim)
    oracle, _ = oracle_for(victim, x, y, ThreatModel(access=Access.LABEL))
    with pytest.raises(AccessDenied):
        oracle.logits(x, torch.arange(len(x)))


def test_square_follows_the_published_schedule() -> None:
    at = {0: 0.8, 10: 0.8, 11: 0.4, 50: 0.4, 51: 0.2, 201: 0.1, 501: 0.05, 1001: 0.025, 2001: 0.0125}
    at |= {4001: 0.00625, 6001: 0.003125, 8001: 0.0015625}
    assert {query: share(query, 0.8) for query in at} == pytest.approx(at)


def test_square_squares_cover_every_place_and_have_the_asked_side() -> None:
    rows = torch.arange(4000)
    masks = Square()._square(rows, 3, (8, 6), RowStreams.derive(range(4000), "rng"))
    assert masks.shape == (4000, 1, 8, 6)
    assert (masks.flatten(1).sum(dim=1) == 9).all()
    frequency = masks.float().mean(dim=0)[0]
    corner, middle = 1 / 6 / 4, 9 / 6 / 4  # 6 x 4 positions
    assert float(frequency[0, 0]) == pytest.approx(corner, abs=0.012)
    assert float(frequency[7, 5]) == pytest.approx(corner, abs=0.012)
    assert float(frequency[4, 2]) == pytest.approx(middle, abs=0.04)


def test_square_margin_never_falls_and_reaches_the_optimum(victim: ModuleVictim) -> None:
    x, y = inputs(victim)
    oracle, meter = oracle_for(victim, x, y, ThreatModel(eps=Fraction(1, 1000), access=Access.SCORE))
    found = Square(queries=800).run(oracle, x, y, rng=RowStreams.derive(range(len(x)), "rng"))
    w: Tensor = victim.module.w  # type: ignore[assignment]
    sign = torch.where(y == 1, -1.0, 1.0)[:, None]
    best = x + 1e-3 * (sign * w.sign()).view_as(x)
    rest = ~meter.hit
    assert bool(rest.any())
    gap = (victim.logits(found) - victim.logits(best))[rest].abs().max()
    assert float(gap) < 0.1 * float((victim.logits(x) - victim.logits(best))[rest].abs().max())


def digits(n: int = 40) -> tuple[Tensor, Tensor]:
    test = registry("datasets").get("digits").load("test")
    return test.x[:n], test.y[:n]


def test_transfer_spends_one_label_query_a_source_and_beats_noise() -> None:
    victim = load_victim("qcfs_cnn.digits")
    x, y = digits()
    moved = evaluate(victim, Transfer(), x, y, eps="1/10")
    random = evaluate(victim, "noise(draws=2)", x, y, eps="1/10")
    assert moved.errors == 0
    assert moved.robust < random.robust
    assert int(moved.shards[0].forwards.max()) <= 2
    assert int(moved.shards[0].backwards.sum()) == 0


def test_transfer_never_uses_the_target_as_its_own_source() -> None:
    victim = load_victim("lif_cnn.digits")
    x, y = digits(4)
    oracle, _ = oracle_for(victim, x, y, ThreatModel(access=Access.LABEL))
    names = [v.spec.name for v in usable_sources(oracle, ("lif_cnn.digits", "ann_cnn.digits"))]
    assert names == ["ann_cnn.digits"]


def test_transfer_without_a_fitting_source_says_so(victim: ModuleVictim) -> None:
    assert "no source" in str(Transfer().fits(victim.spec))
    x, y = inputs(victim)
    with pytest.raises(ConfigError, match="no source takes its inputs"):
        evaluate(victim, Transfer(), x, y)


def test_local_passes_cost_the_target_nothing_and_go_on_after_a_hit() -> None:
    victim, source = load_victim("lif_cnn.digits"), load_victim("ann_cnn.digits")
    x, y = digits(8)
    oracle, meter = oracle_for(victim, x, y, ThreatModel(eps=Fraction(1, 2), access=Access.LABEL))
    rows = torch.tensor([1, 5])
    local = oracle.local(source, rows, rng=RowStreams.derive([1, 5], "source"))
    pgd: Attack = registry("attacks").get("pgd.linf(steps=5)")
    x_adv = pgd.run(local, x[rows], y[rows], rng=RowStreams.derive([1, 5], "rng"))
    assert int(meter.forwards.sum()) == 0
    assert x_adv.shape == x[rows].shape
    assert local.best()[1].all() and len(local.active()) == 2
