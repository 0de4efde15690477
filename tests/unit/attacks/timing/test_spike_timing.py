"""Attacks that move spikes in time: their parts against literal versions, the whole against exhaustion."""

from __future__ import annotations

import pytest
import torch
from tiny_spike_victims import SHAPE
from tiny_spike_victims import Bent
from tiny_spike_victims import Constant
from tiny_spike_victims import Faulty
from tiny_spike_victims import Linear
from tiny_spike_victims import Rate
from tiny_spike_victims import frames
from tiny_spike_victims import judge
from tiny_spike_victims import legal_points
from tiny_spike_victims import oracle_for
from tiny_spike_victims import threat
from tiny_spike_victims import victim
from torch import Tensor

from robustspike.attacks.timing.retime_greedy import RetimeGreedy
from robustspike.attacks.timing.retime_greedy import _Search as _GreedySearch
from robustspike.attacks.timing.retime_greedy import pair_moves
from robustspike.attacks.timing.retime_lines import Lines
from robustspike.attacks.timing.retime_lines import within
from robustspike.attacks.timing.retime_pgd import RetimePgd
from robustspike.attacks.timing.retime_pil import RetimePil
from robustspike.attacks.timing.retime_pil import _Problem
from robustspike.attacks.timing.retime_pil import strict_budget
from robustspike.attacks.timing.retime_pil import strict_windows
from robustspike.attacks.timing.timestamp_pgd import TimestampPgd
from robustspike.attacks.timing.timestamp_pgd import kernel_frames
from robustspike.attacks.timing.timestamp_pgd import time_slope
from robustspike.bench.api import Attack
from robustspike.bench.api import Budget
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry

GEOMETRIES = ("retime_linf", "retime_l1", "retime_l0")
ALL: list[tuple[Attack, str]] = [
    (attack, geometry)
    for attack in (RetimePil(steps=8), RetimeGreedy(rounds=4), RetimePgd(steps=8))
    for geometry in GEOMETRIES
] + [(TimestampPgd(steps=8), "retime_linf")]
IDS = [f"{attack.spec.name}-{geometry}" for attack, geometry in ALL]
MINIMUM = [(attack, geometry) for attack, geometry in ALL if attack.spec.minimum_norm]
MINIMUM_IDS = [f"{attack.spec.name}-{geometry}" for attack, geometry in MINIMUM]


def random_lines(seed: int, lines: int, steps: int) -> tuple[Tensor, Tensor]:
    rng = RowStreams.derive([seed], "lines")
    origin = rng.uniform((lines, steps))[0] < 0.5
    pi = rng.uniform((lines, steps, steps), dtype=torch.float64)[0]
    return pi * origin[:, :, None], origin


# --- strict projection -----------------------------------------------------------------------------


def literal_windows(pi: Tensor, origin: Tensor, reach: int) -> Tensor:
    """One line [T, T], [T]: place the best feasible (spike, time) until all are placed."""
    steps = len(origin)
    waiting, placed = {s for s in range(steps) if origin[s]}, set()
    while waiting:
        choices = [
            (-pi[s, t].item(), s, t)
            for s in waiting
            for t in range(steps)
            if abs(s - t) <= reach and t not in placed and (t == s or t not in waiting)
        ]
        _, s, t = min(choices)
        waiting.remove(s)
        placed.add(t)
    return torch.tensor([t in placed for t in range(steps)])


@pytest.mark.parametrize("reach", [0, 1, 2, 5])
def test_window_projection_equals_the_literal_rule(reach: int) -> None:
    for steps in (1, 3, 5):
        pi, origin = random_lines(steps, 60, steps)
        shift = Lines(torch.ones(1, steps, 1)).shift
        allowed = (shift <= reach).expand_as(pi)
        found = strict_windows(pi, origin, allowed)
        for m in range(60):
            assert torch.equal(found[m], literal_windows(pi[m], origin[m], reach))
        assert torch.equal(found.sum(dim=1), origin.sum(dim=1))
        if reach == 0:
            assert torch.equal(found, origin)


def literal_budget(pi: Tensor, origin: Tensor, cost: Tensor, budget: float, spend: bool) -> Tensor:
    """All lines of one row [M, T, T], [M, T]: scan the moves in descending probability."""
    hard, moved = origin.clone(), torch.zeros_like(origin)
    lines, steps = origin.shape
    moves = sorted(
        (-pi[m, s, t].item(), m, s, t)
        for m in range(lines)
        for s in range(steps)
        for t in range(steps)
        if origin[m, s] and s != t and pi[m, s, t] > (0 if spend else pi[m, s, s])
    )
    for _, m, s, t in moves:
        price = cost[s, t].item()
        if moved[m, s] or hard[m, t] or price > budget:
            continue
        hard[m, s], hard[m, t], moved[m, s] = False, True, True
        budget -= price
    return hard


@pytest.mark.parametrize("budget", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("spend", [True, False])
def test_budget_projection_equals_the_literal_rule(budget: int, unit: bool, spend: bool) -> None:
    rows, lines, steps = 5, 4, 5
    pi, origin = random_lines(7, rows * lines, steps)
    shift = Lines(torch.ones(1, steps, 1)).shift
    cost = (shift > 0).long() if unit else shift
    row = torch.arange(rows).repeat_interleave(lines)
    allowed = torch.ones_like(pi, dtype=torch.bool)
    budgets = torch.full((rows,), float(budget), dtype=torch.float64)
    found = strict_budget(pi, origin, allowed, cost, row, budgets, spend=spend)
    for r in range(rows):
        mine = row == r
        assert torch.equal(found[mine], literal_budget(pi[mine], origin[mine], cost, budget, spend))


def test_certain_stayers_stay_and_full_lines_cannot_change() -> None:
    _, origin = random_lines(1, 20, 5)
    stay = torch.eye(5, dtype=torch.float64) * origin[:, :, None]
    everywhere = torch.ones_like(stay, dtype=torch.bool)
    shift = Lines(torch.ones(1, 5, 1)).shift
    row, budget = torch.zeros(20, dtype=torch.int64), torch.full((1,), 50.0, dtype=torch.float64)
    assert torch.equal(strict_windows(stay, origin, everywhere), origin)
    for spend in (True, False):
        moved = strict_budget(stay, origin, everywhere, shift, row, budget, spend=spend)
        assert torch.equal(moved, origin)
    pi, _ = random_lines(2, 20, 5)
    full = torch.ones_like(origin)
    pi = pi + 0.01
    assert torch.equal(strict_windows(pi, full, everywhere), full)
    assert torch.equal(strict_budget(pi, full, everywhere, shift, row, budget), full)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rate_victims_give_the_logits_of_times_no_slope(geometry: str) -> None:
    x = frames(6)
    target = victim(Rate(), classes=3)
    y = target.logits(x).argmax(dim=1)
    model = ThreatModel(domain=Domain.SPIKES, geometry=geometry, eps=2)
    oracle, _ = oracle_for(target, x, y, model)
    lines = Lines(x)
    problem = _Problem(oracle, lines, RetimePil(capacity=0.0, spending=0.0))
    rows = torch.arange(6)
    grad = oracle.loss_and_grad(x, rows, "ce").grad
    at = lines.of(rows)
    slope = problem.slope(problem.probabilities(at), lines.gradients(grad, rows), at)
    assert grad.abs().max() > 1e-3
    assert slope.abs().max() < 1e-15


# --- parts of the greedy attack ----------------------------------------------------------------------


def test_pairs_are_the_best_first() -> None:
    key = RowStreams.derive([3], "pairs").normal((30, 5, 5), dtype=torch.float64)[0]
    key = key.masked_fill(key < -0.5, -torch.inf)
    line, source, target = pair_moves(key)
    found = {(int(m), int(s), int(t)) for m, s, t in zip(line, source, target, strict=True)}
    expected = set()
    for m in range(30):
        used_s: set[int] = set()
        used_t: set[int] = set()
        order = sorted((-key[m, s, t].item(), s, t) for s in range(5) for t in range(5))
        for value, s, t in order:
            if value < float("inf") and s not in used_s and t not in used_t:
                expected.add((m, s, t))
                used_s.add(s)
                used_t.add(t)
    assert found == expected


def test_within_spends_each_row_on_its_largest_keys() -> None:
    row = torch.tensor([0, 0, 0, 2, 2, 2])
    key = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 9.0])
    cost = torch.tensor([1, 2, 2, 1, 1, 1])
    budget = torch.tensor([4.0, 0.0, 2.0], dtype=torch.float64)
    assert within(row, key, cost, budget).tolist() == [False, True, True, True, False, True]


def test_greedy_raises_the_loss_of_a_linear_victim_by_the_sum_of_gains() -> None:
    weight = (RowStreams.derive([5], "w").integers(65, SHAPE)[0] - 32).double() / 16
    target = victim(Linear(weight, bias=100.0))  # never broken: 16 cells of at most 2
    x, y = frames(20), torch.ones(20, dtype=torch.int64)
    shape = registry("geometries").get("retime_l0")
    for eps in (1, 2, 4):
        result = judge(target, RetimeGreedy(rounds=1), x, y, geometry="retime_l0", eps=eps)
        assert (result.status == 0).all()
        model = threat(RetimeGreedy(rounds=1), "retime_l0", eps)
        oracle, _ = oracle_for(target, x, y, model)
        x_adv = RetimeGreedy(rounds=1).run(oracle, x, y, rng=RowStreams.derive(range(20), "a"))
        best = shape.project(x, -weight.expand_as(x), eps=eps, bounds=(0.0, 1.0))

        def loss(z: Tensor) -> Tensor:
            return -(z * weight).flatten(1).sum(dim=1)

        assert torch.equal(loss(x_adv), loss(best))  # the projection is the exact linear maximiser
        assert (loss(x_adv) >= loss(x)).all() and (loss(x_adv) > loss(x)).any()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_greedy_moves_every_spike_at_most_once_and_into_an_empty_cell(geometry: str, monkeypatch) -> None:
    moves = 0
    own = _GreedySearch.advance

    def advance(self: _GreedySearch, budget: Tensor, *, reach: float) -> None:
        nonlocal moves
        hard, still = self.hard != 0, self.still.clone()
        own(self, budget, reach=reach)
        vacated, filled = hard & (self.hard == 0), (self.hard != 0) & ~hard
        assert bool((still | ~vacated).all())  # only spikes that never moved leave their cells
        assert bool((~self.still | ~vacated).all()) and bool((~self.still | ~filled).all())
        assert torch.equal(vacated.sum(dim=1), filled.sum(dim=1))
        moves += int(vacated.sum())

    monkeypatch.setattr(_GreedySearch, "advance", advance)
    weight = (RowStreams.derive([5], "w").integers(65, SHAPE)[0] - 32).double() / 16
    target = victim(Linear(weight, bias=100.0))  # never broken: all rounds are run
    x, y = frames(20), torch.ones(20, dtype=torch.int64)
    judge(target, RetimeGreedy(rounds=4), x, y, geometry=geometry, eps=3)
    assert moves >= 20


@pytest.mark.parametrize("window", [2, 3])
def test_window_preserving_moves_leave_merged_frames_alone(window: int) -> None:
    x = frames(30, seed=2)
    result = judge(victim(Bent(4), classes=3), RetimeGreedy(window=window), x, geometry="retime_l0", eps=6)
    assert (result.status == 1).any()
    for begin in range(0, 4, window):
        merged = slice(begin, begin + window)
        assert torch.equal(x[:, merged].sum(dim=1), result.x_adv[:, merged].sum(dim=1))


# --- timestamps --------------------------------------------------------------------------------------


def test_kernel_frames_of_whole_times_are_the_spikes() -> None:
    _, spikes = random_lines(4, 10, 6)
    time = torch.arange(6, dtype=torch.float64).expand(10, 6)
    assert torch.equal(kernel_frames(time, spikes), spikes.double())


def test_time_slope_is_the_derivative_between_steps() -> None:
    rng = RowStreams.derive(range(10), "slope")
    gradient = rng.normal((6,), dtype=torch.float64)
    time = (rng.uniform((6,), dtype=torch.float64) * 5).clamp(0.01, 4.99)
    time = torch.where((time - time.round()).abs() < 0.01, time + 0.05, time).clamp(max=4.9)
    step = 1e-6
    spikes = torch.ones(10, 6, dtype=torch.bool)
    slope = time_slope(gradient, time)
    for s in range(6):
        bump = torch.zeros_like(time)
        bump[:, s] = step
        up, down = (kernel_frames(time + sign * bump, spikes) for sign in (1, -1))
        measured = ((up - down) * gradient).sum(dim=1) / (2 * step)
        assert torch.allclose(measured, slope[:, s], atol=1e-6)


# --- whole attacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("attack", "geometry"), MINIMUM, ids=MINIMUM_IDS)
def test_minimum_norm_matches_exhaustive_search(attack: Attack, geometry: str) -> None:
    weight = (RowStreams.derive([8], "temporal").integers(65, SHAPE)[0] - 32).double() / 16
    target = victim(Linear(weight, bias=1.5))
    x = frames(60, seed=3)
    y = torch.ones(60, dtype=torch.int64)
    result = judge(target, attack, x, y, geometry=geometry)
    shape = registry("geometries").get(geometry)
    exact = 0
    attacked = (result.status < 2).nonzero().squeeze(1)
    assert len(attacked) >= 20
    for i in attacked:
        points = torch.stack(legal_points(x[i].flatten(1))).view(-1, *SHAPE)
        wrong = target.logits(points).argmax(dim=1) != 1
        sizes = shape.distance(x[i].expand_as(points), points)[wrong]
        if not len(sizes):
            assert result.status[i] == 0
            exact += 1
            continue
        assert result.status[i] == 0 or result.distance[i] >= sizes.min()
        exact += int(result.status[i] == 1 and result.distance[i] == sizes.min())
    assert exact >= 0.9 * len(attacked)


@pytest.mark.parametrize(("attack", "geometry"), ALL, ids=IDS)
def test_rate_victims_are_immune_and_timing_victims_are_not(attack: Attack, geometry: str) -> None:
    x = frames(40, seed=5)
    rate = judge(victim(Rate(), classes=3), attack, x, geometry=geometry, eps=3)
    assert (rate.status == 0).all()
    found = judge(victim(Bent(4), classes=3), attack, x, geometry=geometry, eps=3)
    assert (found.status == 1).any()
    assert torch.equal(found.x_adv.sum(dim=1), x.sum(dim=1))
    shape = registry("geometries").get(geometry)
    assert torch.equal(shape.distance(x, found.x_adv), found.distance)
    assert (found.distance <= 3).all()


@pytest.mark.parametrize(("attack", "geometry"), ALL, ids=IDS)
def test_rows_do_not_depend_on_batch_mates(attack: Attack, geometry: str) -> None:
    target = victim(Bent(6), classes=3)
    x = frames(5, seed=7)
    y = target.logits(x).argmax(dim=1)
    for eps in (None, 2) if attack.spec.minimum_norm else (2,):
        together = judge(target, attack, x, geometry=geometry, eps=eps)
        for i in range(5):
            alone = evaluate_shard(
                target, attack, threat(attack, geometry, eps), x[i : i + 1], y[i : i + 1], torch.tensor([i])
            )
            assert torch.equal(alone.x_adv[0], together.x_adv[i])
            assert alone.forwards[0] == together.forwards[i]


@pytest.mark.parametrize(("attack", "geometry"), ALL, ids=IDS)
def test_edges(attack: Attack, geometry: str) -> None:
    x = frames(4, seed=8)
    x[0] = 0  # no spikes
    x[1] = 1  # nothing but spikes
    bent, still = victim(Bent(6), classes=3), victim(Constant())
    unchanged = judge(bent, attack, x, geometry=geometry, eps=0)
    assert torch.equal(unchanged.x_adv, x)
    assert torch.equal(judge(bent, attack, x[:1], geometry=geometry, eps=3).x_adv, x[:1])
    for eps in (None, 2) if attack.spec.minimum_norm else (2,):
        found = judge(bent, attack, x, geometry=geometry, eps=eps)
        assert torch.equal(found.x_adv[:2], x[:2])
        assert (judge(still, attack, x, geometry=geometry, eps=eps).status == 0).all()
        for forwards, backwards in ((0, 0), (1, 0), (3, 1), (7, 7)):
            budget = Budget(forwards=forwards, backwards=backwards)
            found = judge(bent, attack, x, geometry=geometry, eps=eps, budget=budget)
            assert (found.forwards <= forwards).all() and (found.backwards <= backwards).all()


@pytest.mark.parametrize(("attack", "geometry"), ALL, ids=IDS)
def test_targeted_goal(attack: Attack, geometry: str) -> None:
    target = victim(Bent(4), classes=3)
    x = frames(40, seed=9)
    y = target.logits(x).argmax(dim=1)
    result = judge(target, attack, x, geometry=geometry, eps=6, goal=Goal.TARGETED)
    broken = result.status == 1
    assert broken.any()
    assert (target.logits(result.x_adv[broken]).argmax(dim=1) == result.adv[broken]).all()
    assert (result.adv[broken] != y[broken]).all()


@pytest.mark.parametrize(("attack", "geometry"), ALL, ids=IDS)
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
