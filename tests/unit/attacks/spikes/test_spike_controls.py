"""The reducer and the controls without gradients, on victims whose smallest perturbations are known."""

from __future__ import annotations

import pytest
import torch
from tiny_spike_victims import CELLS
from tiny_spike_victims import SHAPE
from tiny_spike_victims import Bent
from tiny_spike_victims import Constant
from tiny_spike_victims import Faulty
from tiny_spike_victims import Linear
from tiny_spike_victims import Rate
from tiny_spike_victims import frames
from tiny_spike_victims import judge
from tiny_spike_victims import oracle_for
from tiny_spike_victims import smallest_flips
from tiny_spike_victims import threat
from tiny_spike_victims import victim
from torch import Tensor

from robustspike.attacks.spikes.flip_greedy import GreedyFlips
from robustspike.attacks.spikes.pointwise import Pointwise
from robustspike.attacks.spikes.random_changes import RandomFlips
from robustspike.attacks.spikes.random_changes import RandomRetiming
from robustspike.attacks.spikes.random_changes import smallest
from robustspike.attacks.spikes.reduced import Reduced
from robustspike.attacks.spikes.reduction import reduce_changes
from robustspike.attacks.spikes.refine import Refined
from robustspike.attacks.spikes.scar import Scar
from robustspike.attacks.spikes.scar import _Search as _ScarSearch
from robustspike.attacks.spikes.scar import boundary
from robustspike.attacks.spikes.scar import neighbours
from robustspike.attacks.spikes.sparse_rs import SparseRs
from robustspike.attacks.spikes.sparse_rs import _Sets
from robustspike.bench.api import Access
from robustspike.bench.api import Attack
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry
from robustspike.bench.attack.decide import target_classes


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


@pytest.mark.parametrize("geometry", ["l0", "retime_l0"])
def test_more_restarts_break_no_fewer_samples(geometry: str) -> None:
    kind = RandomFlips if geometry == "l0" else RandomRetiming
    x, target = frames(60, seed=4), victim(Bent(4), classes=3)
    found = [judge(target, kind(restarts=n), x, geometry=geometry, eps=3) for n in (1, 4, 16)]
    broken = [set((one.status == 1).nonzero().flatten().tolist()) for one in found]
    assert broken[0] < broken[1] < broken[2]


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


# --- score-based search ------------------------------------------------------------------------


def test_sparse_rs_keeps_the_size_of_its_sets_and_swaps_as_many_as_asked() -> None:
    x = frames(50)
    target = victim(Bent(1), classes=3)
    y = target.logits(x).argmax(dim=1)
    attack = SparseRs()
    oracle, _ = oracle_for(target, x, y, threat(attack, "l0", 5))
    sets = _Sets(oracle, x, y)
    rng = RowStreams.derive(range(50), "sets")
    size = torch.full((50,), 5)
    sets.members = smallest(sets.draw(rng, None), torch.ones_like(sets.members), size)
    swap = torch.arange(50) % 6
    after = sets.swapped(torch.arange(50), swap, rng)
    assert (after.sum(dim=1) == 5).all()
    assert torch.equal((after & ~sets.members).sum(dim=1), swap)
    sets.resize(torch.arange(50), torch.arange(50) % 17, rng)
    assert torch.equal(sets.members.sum(dim=1), torch.arange(50) % 17)


def test_sparse_rs_swaps_fewer_and_fewer_and_at_least_one() -> None:
    size = torch.tensor([1, 10, 100])
    counts = torch.stack([SparseRs(queries=100).swaps(size, turn) for turn in range(100)])
    assert counts[0].tolist() == [1, 3, 30]
    assert counts[-1].tolist() == [1, 1, 1]
    assert (counts[1:] <= counts[:-1]).all()


def test_sparse_rs_queries_and_bounded_distances_are_exact() -> None:
    x = frames(20, seed=2)
    still = judge(victim(Constant()), SparseRs(queries=37), x, eps=3)
    assert (still.forwards == 38).all()
    found = judge(victim(Bent(3), classes=3), SparseRs(queries=200), x, eps=3)
    assert (found.status == 1).any()
    assert (found.distance[found.status == 1] == 3).all()


@pytest.mark.parametrize("attack", [GreedyFlips(pool=0), Scar(pool=0, gain=1e-9)], ids=["greedy", "scar"])
def test_greedy_searches_find_the_minimum_of_a_linear_victim(attack: Attack) -> None:
    weight = (RowStreams.derive([11], "w").permutation(CELLS)[0] + 1).double().view(SHAPE) / 8
    target = victim(Linear(weight, bias=-4.0))
    x = frames(30, seed=6)
    y = torch.ones(30, dtype=torch.int64)
    result = judge(target, attack, x, y)
    attacked = (result.status < 2).nonzero().squeeze(1)
    assert len(attacked) >= 10
    for i in attacked:
        # Only deleting spikes helps; the largest weights first.
        slack = (x[i] * weight).sum() - 4.0
        drops = weight[x[i] == 1].sort(descending=True).values.cumsum(dim=0)
        need = int((drops < slack).sum()) + 1  # a draw of the logits is lost: argmax takes class 0
        if attack.spec.name == "flip.greedy":
            assert result.distance[i] == need
        else:
            assert result.status[i] == 1 and result.distance[i] >= need


def test_greedy_flips_spend_one_forward_per_cell_tried() -> None:
    x = frames(3)
    result = judge(victim(Constant()), GreedyFlips(pool=5), x, eps=4)
    assert (result.forwards == 20).all()
    everything = judge(victim(Constant()), GreedyFlips(pool=0), x)
    assert (everything.forwards == CELLS * (CELLS + 1) // 2).all()


def test_scar_never_flips_a_cell_twice_and_counts_its_queries() -> None:
    x = frames(20, seed=3)
    target = victim(Bent(5), classes=3)
    y = target.logits(x).argmax(dim=1)
    attack = Scar()
    oracle, meter = oracle_for(target, x, y, threat(attack))
    search = _ScarSearch(oracle, x, y, attack)
    search.begin()
    asked = torch.ones(20, dtype=torch.int64)
    for turn in range(1, 6):
        rows = search.standing()
        tried = ~search.flipped[rows] & (frames(20, seed=50 + turn)[rows].flatten(1) > 0)
        asked[rows] += tried.sum(dim=1)
        search.flip(rows, search.ask(rows, tried))
    assert torch.equal(meter.forwards, asked)
    assert torch.equal(search.flipped.sum(dim=1).double(), (search.x != x).flatten(1).sum(dim=1).double())
    kept = (~search.over).nonzero().squeeze(1)
    now = search.confidence(target.logits(search.x), torch.arange(20))
    assert torch.allclose(now[kept], search.score[kept])  # gains add up: they are never stale


def test_scar_pools_are_what_they_say() -> None:
    x = torch.zeros(1, 2, 1, 4, 5)
    x[0, 1, 0, 1, 2] = 1
    marked = boundary(x)[0]
    assert not marked[0].any()
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[0:3, 1:4] = True
    assert torch.equal(marked[1, 0], expected)
    shape = (3, 2, 2, 4)
    for flat in range(48):
        place = torch.tensor([flat // 16, flat // 8 % 2, flat // 4 % 2, flat % 4])
        near = neighbours(torch.tensor([flat]), shape)[0].view(shape)
        grid = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), dim=-1)
        assert torch.equal(near, (grid - place).abs().sum(dim=-1) == 1)
    assert not neighbours(torch.tensor([-1]), shape).any()


@pytest.mark.parametrize(
    "attack", [SparseRs(queries=400, start=4), GreedyFlips(pool=0), Scar(pool=0), RandomFlips()], ids=str
)
def test_no_control_reports_less_than_the_true_minimum(attack: Attack) -> None:
    target = victim(Bent(5), classes=3)
    x = frames(25, seed=4)
    y = target.logits(x).argmax(dim=1)
    result = judge(target, attack, x)
    minima = torch.tensor([smallest_flips(target, x[i], y[i], 3) for i in range(25)])
    assert (result.status == 1).double().mean() > 0.9
    assert (result.distance[result.status == 1] >= minima[result.status == 1]).all()
    known = minima <= 3
    share = (result.distance[known] == minima[known]).double().mean()
    if attack.spec.name in ("sparse_rs", "flip.greedy"):
        assert share >= 0.7


# --- refinement --------------------------------------------------------------------------------


def test_refinement_shrinks_one_minimal_sets_towards_the_true_minimum() -> None:
    target = victim(Bent(5), classes=3)
    x = frames(40, seed=4)
    y = target.logits(x).argmax(dim=1)
    inner = RandomFlips(restarts=3)
    reduced = judge(target, Reduced(attack=inner), x)
    refined = judge(target, Refined(attack=inner, pool=8, estimator="native"), x)
    assert (refined.status[reduced.status == 1] == 1).all()
    both = reduced.status == 1
    assert (refined.distance[both] < reduced.distance[both]).any()
    assert refined.distance[both].mean() < reduced.distance[both].mean()
    minima = torch.tensor([smallest_flips(target, x[i], y[i], 3) for i in range(40)])
    assert (refined.distance[both] >= minima[both]).all()
    known = (minima <= 3) & both
    assert (refined.distance[known] == minima[known]).double().mean() >= 0.9
    for i in both.nonzero().squeeze(1):
        assert is_one_minimal(target, x[i], refined.x_adv[i], y[i], "l0")


# --- what every control must hold ----------------------------------------------------------------

CONTROLS: list[tuple[Attack, str]] = [
    (RandomFlips(restarts=3), "l0"),
    (Reduced(attack=RandomFlips(restarts=3)), "l0"),
    (Pointwise(restarts=1), "l0"),
    (SparseRs(queries=40, start=4), "l0"),
    (GreedyFlips(pool=5), "l0"),
    (Refined(attack=RandomFlips(restarts=3), turns=4, pool=4, estimator="native"), "l0"),
    (Scar(pool=4), "l0"),
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


@pytest.mark.parametrize(("attack", "geometry"), CONTROLS, ids=IDS)
def test_nan_answers_are_never_successes(attack: Attack, geometry: str) -> None:
    target = victim(Faulty(6), classes=3)
    x = frames(12, seed=12)
    x[:, 0, 0, 0, 0] = 0
    x[:, 1, 0, 0, 0] = 1
    y = target.logits(x).argmax(dim=1)
    found = evaluate_shard(target, attack, threat(attack, geometry, 4), x, y, torch.arange(12))
    assert all("not finite" in message for message in found.errors), found.errors
    broken = found.status == 1
    answers = target.logits(found.x_adv[broken])
    assert torch.isfinite(answers).all()
    assert (answers.argmax(dim=1) != y[broken]).all()


@pytest.mark.parametrize(("attack", "geometry"), CONTROLS, ids=IDS)
def test_targeted_goals_reach_the_target_class(attack: Attack, geometry: str) -> None:
    target = victim(Bent(4), classes=3)
    x = frames(24, seed=9)
    y = target.logits(x).argmax(dim=1)
    result = judge(target, attack, x, geometry=geometry, goal=Goal.TARGETED)
    broken = result.status == 1
    assert broken.any()
    wanted = target_classes(y, torch.arange(24), 3)
    assert torch.equal(target.logits(result.x_adv[broken]).argmax(dim=1), wanted[broken])
