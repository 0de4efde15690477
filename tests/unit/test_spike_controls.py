"""The reducer and the controls without gradients, on victims whose smallest perturbations are known."""

from __future__ import annotations

import pytest
import torch
from tiny_spike_victims import CELLS
from tiny_spike_victims import SHAPE
from tiny_spike_victims import Bent
from tiny_spike_victims import Constant
from tiny_spike_victims import Linear
from tiny_spike_victims import Rate
from tiny_spike_victims import frames
from tiny_spike_victims import judge
from tiny_spike_victims import oracle_for
from tiny_spike_victims import smallest_flips
from tiny_spike_victims import threat
from tiny_spike_victims import victim
from torch import Tensor

from robustspike.attacks.pointwise import Pointwise
from robustspike.attacks.random_changes import RandomFlips
from robustspike.attacks.random_changes import RandomRetiming
from robustspike.attacks.reduction import Reduced
from robustspike.attacks.reduction import reduce_changes
from robustspike.bench.api import Access
from robustspike.bench.api import Attack
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry


def is_one_minimal(target: ModuleVictim, x0: Tensor, x: Tensor, y: Tensor, geometry: str) -> bool:
    units = registry("geometries").get(geometry).units(x0[None], x[None])[0]
    for unit in range(int(units.max()) + 1):
        back = torch.where((units == unit).view_as(x), x0, x)
        if target.logits(back[None]).argmax(dim=1) != y:
            return False
    return True


# --- reducer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_score", [True, False])
@pytest.mark.parametrize("geometry", ["l0", "retime_l0"])
def test_reduction_keeps_success_and_is_one_minimal(by_score: bool, geometry: str) -> None:
    target = victim(Bent(1), classes=3)
    x = frames(40)
    y = target.logits(x).argmax(dim=1)
    shape = registry("geometries").get(geometry)
    rng = RowStreams.derive(range(40), "far")
    far = shape.sample(x, eps=8.0, bounds=(0.0, 1.0), rng=rng, rows=torch.arange(40))
    rows = (target.logits(far).argmax(dim=1) != y).nonzero().squeeze(1)
    assert len(rows) >= 5
    model = ThreatModel(domain=Domain.SPIKES, geometry=geometry, eps=None, access=Access.SCORE)
    oracle, meter = oracle_for(target, x, y, model)
    out = reduce_changes(oracle, x, far[rows], y, rows, rng=None if by_score else rng.fork("r"))
    assert out.minimal.all()
    assert (out.after <= out.before).all()
    assert torch.equal(out.before.double(), shape.distance(x[rows], far[rows]))
    assert torch.equal(out.after.double(), shape.distance(x[rows], out.x))
    for i, row in enumerate(rows):
        assert target.logits(out.x[i : i + 1]).argmax(dim=1) != y[row]
        assert is_one_minimal(target, x[row], out.x[i], y[row], geometry)
    assert meter.forwards[rows].max() <= 10 * CELLS
    others = torch.ones(40, dtype=torch.bool)
    others[rows] = False
    assert (meter.forwards[others] == 0).all()


def test_reduction_of_a_linear_victim_finds_the_true_minimum() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0] * 4, dtype=torch.float64).view(SHAPE)
    target = victim(Linear(weight, bias=-32.5))
    x, y = torch.ones(1, *SHAPE, dtype=torch.float64), torch.ones(1, dtype=torch.int64)  # 40 - 32.5 = 7.5
    oracle, _ = oracle_for(target, x, y, ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None))
    out = reduce_changes(oracle, x, torch.zeros_like(x), y, torch.tensor([0]))
    assert out.before.tolist() == [16]
    assert out.after.tolist() == [2]  # 4 + 4 > 7.5


@pytest.mark.parametrize("forwards", [0, 1, 5])
def test_reduction_stops_at_any_budget_with_a_legal_success(forwards: int) -> None:
    weight = torch.ones(SHAPE, dtype=torch.float64)
    target = victim(Linear(weight, bias=-12.5))
    x, y = torch.ones(2, *SHAPE, dtype=torch.float64), torch.ones(2, dtype=torch.int64)
    model = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None, budget=Budget(forwards=forwards))
    for rng in (None, RowStreams.derive(range(2), "r")):
        oracle, meter = oracle_for(target, x, y, model)
        out = reduce_changes(oracle, x, torch.zeros_like(x), y, torch.arange(2), rng=rng)
        assert (target.logits(out.x).argmax(dim=1) == 0).all()
        assert (meter.forwards <= forwards).all()
        assert not out.minimal.any()


def test_reduction_of_nothing() -> None:
    target = victim(Constant())
    x, y = frames(3), torch.zeros(3, dtype=torch.int64)
    oracle, meter = oracle_for(target, x, y, ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None))
    out = reduce_changes(oracle, x, x[:0], y, torch.zeros(0, dtype=torch.int64))
    assert len(out.x) == 0
    same = reduce_changes(oracle, x, x.clone(), y, torch.arange(3))
    assert torch.equal(same.x, x)
    assert (meter.forwards == 0).all()


def test_reduction_refuses_geometries_without_changes() -> None:
    target = victim(Constant())
    x, y = frames(1), torch.zeros(1, dtype=torch.int64)
    oracle, _ = oracle_for(target, x, y, ThreatModel(domain=Domain.SPIKES, geometry="linf"))
    with pytest.raises(ConfigError, match="no elementary changes"):
        reduce_changes(oracle, x, x.clone(), y, torch.arange(1))


@pytest.mark.parametrize("order", ["score", "random"])
@pytest.mark.parametrize("eps", [None, 12])
def test_reduced_wrapper_shrinks_what_the_inner_attack_found(order: str, eps: int | None) -> None:
    target = victim(Bent(2), classes=3)
    x = frames(30, seed=1)
    y = target.logits(x).argmax(dim=1)
    plain = judge(target, RandomFlips(restarts=5), x, eps=eps)
    short = judge(target, Reduced(attack=RandomFlips(restarts=5), order=order), x, eps=eps)
    broken = (plain.status == 1) & (short.status == 1)
    assert broken.sum() >= 10
    assert short.distance[broken].median() < plain.distance[broken].median()
    for i in (short.status == 1).nonzero().squeeze(1):
        assert is_one_minimal(target, x[i], short.x_adv[i], y[i], "l0")


def test_reduced_names_its_attack_and_raises_access_for_scores() -> None:
    assert Reduced(attack="flip.random").spec.name == "reduced.flip.random"
    assert Reduced(attack="flip.random").spec.access is Access.SCORE
    assert Reduced(attack="flip.random", order="random").spec.access is Access.LABEL
    with pytest.raises(ConfigError, match="order"):
        Reduced(order="size")


# --- random controls ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["any", "delete", "insert", "matched"])
def test_random_flips_are_exact_in_number_and_kind(mode: str) -> None:
    x = frames(200)
    rng = RowStreams.derive(range(200), "flips")
    flip = RandomFlips(mode=mode).flips(x, 4.0, rng, torch.arange(200))
    active = (x != 0).flatten(1)
    removed, added = (flip & active).sum(dim=1), (flip & ~active).sum(dim=1)
    have, room = active.sum(dim=1), (~active).sum(dim=1)
    want = {
        "any": removed + added,
        "delete": torch.minimum(have, torch.tensor(4)),
        "insert": torch.minimum(room, torch.tensor(4)),
        "matched": torch.full((200,), 4),
    }[mode]
    if mode == "any":
        assert (want == 4).all()
    if mode == "delete":
        assert torch.equal(removed, want) and (added == 0).all()
    if mode == "insert":
        assert torch.equal(added, want) and (removed == 0).all()
    if mode == "matched":
        assert torch.equal(removed, torch.minimum(have, torch.tensor(2)))
        assert torch.equal(removed + added, want)


def test_random_flips_are_uniform_over_the_cells() -> None:
    n, size = 8000, 3
    x = torch.zeros(n, *SHAPE, dtype=torch.float64)
    flip = RandomFlips().flips(x, float(size), RowStreams.derive(range(n), "uniform"), torch.arange(n))
    expected = n * size / CELLS
    chi2 = ((flip.sum(dim=0) - expected) ** 2 / expected).sum() / (1 - size / CELLS)
    assert chi2 < 37.7  # 99.9 % point of chi-square with 15 degrees of freedom


def test_random_flips_at_the_budget_are_at_the_budget() -> None:
    target = victim(Bent(3), classes=3)
    x = frames(20, seed=2)
    result = judge(target, RandomFlips(restarts=20), x, eps=5)
    broken = result.status == 1
    assert broken.any()
    assert (result.distance[broken] == 5).all()


def test_random_retiming_breaks_a_timing_victim_and_never_a_rate_victim() -> None:
    timing, rate = victim(Bent(4), classes=3), victim(Rate(), classes=3)
    x = frames(60, seed=3)
    for geometry, eps in (("retime_l0", 4), ("retime_l1", 6), ("retime_linf", 2)):
        assert (judge(timing, RandomRetiming(), x, geometry=geometry, eps=eps).status == 1).any()
        assert (judge(rate, RandomRetiming(), x, geometry=geometry, eps=eps).status == 0).all()
    for geometry in ("retime_l0", "retime_l1", "retime_linf"):
        assert (judge(rate, RandomRetiming(restarts=2), x, geometry=geometry).status == 0).all()


# --- pointwise ---------------------------------------------------------------------------------


def test_pointwise_is_one_minimal_and_near_the_exhaustive_minimum() -> None:
    target = victim(Bent(5), classes=3)
    x = frames(40, seed=4)
    y = target.logits(x).argmax(dim=1)
    result = judge(target, Pointwise(restarts=10), x)
    minima = torch.tensor([smallest_flips(target, x[i], y[i], 4) for i in range(40)])
    known = minima <= 4
    broken = result.status == 1
    assert known.sum() >= 20
    assert broken[known].all()
    assert (result.distance[broken] >= minima[broken]).all()
    share = (result.distance[known] == minima[known]).double().mean()
    assert share >= 0.9
    for i in broken.nonzero().squeeze(1):
        assert is_one_minimal(target, x[i], result.x_adv[i], y[i], "l0")


@pytest.mark.parametrize("geometry", ["retime_l0", "retime_l1", "retime_linf"])
def test_pointwise_moves_spikes_back(geometry: str) -> None:
    timing, rate = victim(Bent(4), classes=3), victim(Rate(), classes=3)
    x = frames(30, seed=5)
    y = timing.logits(x).argmax(dim=1)
    result = judge(timing, Pointwise(), x, geometry=geometry)
    assert (result.status == 1).any()
    for i in (result.status == 1).nonzero().squeeze(1):
        assert is_one_minimal(timing, x[i], result.x_adv[i], y[i], geometry)
    assert (judge(rate, Pointwise(tries=1, restarts=1), x, geometry=geometry).status == 0).all()


def test_pointwise_respects_a_bound() -> None:
    target = victim(Bent(5), classes=3)
    x = frames(30, seed=6)
    result = judge(target, Pointwise(), x, eps=2)
    assert (result.status == 1).any() and (result.status == 0).any()
    assert (result.distance <= 2).all()


# --- what every control must hold ----------------------------------------------------------------

CONTROLS: list[tuple[Attack, str]] = [
    (RandomFlips(restarts=3), "l0"),
    (Reduced(attack=RandomFlips(restarts=3)), "l0"),
    (Pointwise(restarts=1), "l0"),
    (RandomRetiming(restarts=3), "retime_l0"),
    (RandomRetiming(restarts=3), "retime_linf"),
    (Reduced(attack=RandomRetiming(restarts=3), order="random"), "retime_l1"),
    (Pointwise(restarts=1), "retime_l0"),
]
IDS = [f"{attack.spec.name}-{geometry}" for attack, geometry in CONTROLS]


@pytest.mark.parametrize(("attack", "geometry"), CONTROLS, ids=IDS)
@pytest.mark.parametrize("eps", [None, 3])
def test_rows_do_not_depend_on_batch_mates(attack: Attack, geometry: str, eps: int | None) -> None:
    target = victim(Bent(6), classes=3)
    x = frames(6, seed=7)
    y = target.logits(x).argmax(dim=1)
    together = judge(target, attack, x, geometry=geometry, eps=eps)
    model = threat(attack, geometry, eps)
    for i in range(6):
        alone = evaluate_shard(target, attack, model, x[i : i + 1], y[i : i + 1], torch.tensor([i]))
        assert torch.equal(alone.x_adv[0], together.x_adv[i])
        assert alone.forwards[0] == together.forwards[i]


@pytest.mark.parametrize(("attack", "geometry"), CONTROLS, ids=IDS)
def test_edges(attack: Attack, geometry: str) -> None:
    x = frames(4, seed=8)
    x[0] = 0  # no spikes
    x[1] = 1  # nothing but spikes
    bent, still = victim(Bent(6), classes=3), victim(Constant())
    unchanged = judge(bent, attack, x, geometry=geometry, eps=0)
    assert torch.equal(unchanged.x_adv, x)
    assert (unchanged.status == 0).all()
    for eps in (None, 2):
        assert (judge(still, attack, x, geometry=geometry, eps=eps).status == 0).all()
        for forwards in (0, 1, 7):
            budget = Budget(forwards=forwards)
            found = judge(bent, attack, x, geometry=geometry, eps=eps, budget=budget)
            assert (found.forwards <= forwards).all()


@pytest.mark.parametrize(("attack", "geometry"), CONTROLS, ids=IDS)
def test_same_seed_same_bytes(attack: Attack, geometry: str) -> None:
    target = victim(Bent(6), classes=3)
    x = frames(8, seed=9)
    one, two, other = (judge(target, attack, x, geometry=geometry, seed=s).x_adv for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
