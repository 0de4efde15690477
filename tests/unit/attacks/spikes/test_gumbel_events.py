"""Gumbel on raw events: candidates, sampling, signs of the straight-through step, and the real binning."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from robustspike.attacks.spikes.gumbel_events import GumbelEvents
from robustspike.attacks.spikes.gumbel_events import candidates
from robustspike.attacks.spikes.gumbel_events import chosen
from robustspike.attacks.spikes.gumbel_events import sampled
from robustspike.attacks.spikes.gumbel_events import slope
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import EventLists
from robustspike.bench.api import Goal
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import bin_events
from robustspike.bench.api import generator
from robustspike.bench.api import recording
from robustspike.bench.attack.oracle import _METERS
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan

SHAPE, WINDOW = (3, 2, 4, 4), 10


def events(seed: int, n: int = 14):
    """Draw a recording with one event per place."""
    rng = generator("events", seed)
    at = torch.randperm(30 * 16, generator=rng)[:n]
    p = torch.randint(0, 2, (n,), generator=rng)
    return recording(at % 4, at // 4 % 4, at // 16, p, size=(4, 4), where="test")


def frames(lists):
    parts = [bin_events(e, steps=3, window=WINDOW, size=(4, 4)) > 0 for e in lists]
    return torch.stack([torch.from_numpy(p).double() for p in parts])


def test_candidates_hold_every_place_once_and_give_the_recording_back() -> None:
    own = events(1)
    donor = recording(own["x"][:5], own["y"][:5], own["t"][:5], 1 - own["p"][:5], size=(4, 4), where="test")
    merged, state = candidates(own, donor)
    assert len(merged) == len(own) and (chosen(merged, state) == own).all()
    merged, state = candidates(own, events(2))
    places = {(int(e["t"]), int(e["y"]), int(e["x"])) for e in merged}
    assert len(places) == len(merged) > len(own)
    assert sorted(chosen(merged, state).tolist()) == sorted(own.tolist())
    assert (merged["t"][1:] >= merged["t"][:-1]).all()


def test_hard_states_follow_the_softmax_of_the_log_odds() -> None:
    odds, n = torch.tensor([[1.0, -0.5, 0.2], [0.0, 2.0, 0.0]], dtype=torch.float64), 40_000
    draw = RowStreams.derive(range(n), "gumbel").uniform((2, 3), dtype=torch.float64)
    hard, _ = sampled(odds.expand(n, 2, 3), draw, 1.0)
    for k in range(3):
        for got, p in zip((hard == k).double().mean(dim=0), torch.softmax(odds, dim=1)[:, k], strict=True):
            assert abs(float(got - p)) < 4 * math.sqrt(float(p * (1 - p)) / n)


def test_cold_samples_without_noise_are_the_recording() -> None:
    state = candidates(events(1), events(2))[1]
    odds = torch.nn.functional.one_hot(state, 3).double()
    hard, soft = sampled(odds, torch.full_like(odds, 0.5), 1e-3)
    assert torch.equal(hard, state) and torch.equal(soft.round(), odds)


def test_slope_is_the_derivative_of_the_soft_states() -> None:
    rng = generator("slope")
    odds = torch.randn(5, 3, generator=rng, dtype=torch.float64).requires_grad_(True)
    gain = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    draw = torch.rand(5, 3, generator=rng, dtype=torch.float64)
    _, soft = sampled(odds, draw, 0.7)
    (expected,) = torch.autograd.grad((soft * gain).sum(), odds)
    assert torch.allclose(slope(soft.detach(), gain, 0.7), expected, atol=1e-12)


@pytest.mark.parametrize("state", [0, 1, 2])
def test_every_state_rises_and_falls_with_its_own_gain(state: int) -> None:
    """An absent candidate learns that ON helps, an OFF event that OFF hurts: the signs of the differences."""
    odds = torch.nn.functional.one_hot(torch.tensor([state]), 3).double()
    gain = torch.tensor([[-0.7, 0.0, 0.4]], dtype=torch.float64)
    _, soft = sampled(odds, torch.full_like(odds, 0.5), 1.0)
    got = slope(soft, gain, 1.0)
    step = 1e-6
    for k in range(3):
        moved = odds.clone()
        moved[0, k] += step
        _, after = sampled(moved, torch.full_like(odds, 0.5), 1.0)
        assert float(got[0, k]) == pytest.approx(float(((after - soft) * gain).sum()) / step, rel=1e-4)
    assert got[0, 0] < 0 < got[0, 2]


def test_linear_victim_gets_each_candidate_in_its_best_state(toys, attacked) -> None:
    """One event per cell and no price: the sum of gains is maximal in the last most likely list."""
    gain = torch.randn(96, generator=generator("gain"), dtype=torch.float64)
    at = torch.randperm(48, generator=generator("cells"))[:16]
    everything = recording(at % 4, at // 4 % 4, at // 16 * WINDOW + 3, at % 2, size=(4, 4), where="test")
    own, donor = everything[::2], everything[1::2]
    merged, _ = candidates(own, donor)
    worth = []
    for e in merged:
        cell = (int(e["t"]) // WINDOW * 2 * 4 + int(e["y"])) * 4 + int(e["x"])
        worth.append([float(gain[cell]), 0.0, float(gain[cell + 16])])
    values = torch.tensor(worth, dtype=torch.float64)
    top = float(values.max(dim=1).values.sum())
    victim = toys.gains(gain, 1e-6 - top, SHAPE)  # fooled by the best list only
    attack = GumbelEvents(steps=80, rate=1.0, price=0.0)
    lists = EventLists([own], WINDOW, {0: donor, 1: donor})
    result = attacked(victim, attack, frames([own]), y=torch.zeros(1, dtype=torch.int64), events=lists)
    assert result.errors == [] and result.status.tolist() == [1]
    best = chosen(merged, values.argmax(dim=1))
    assert torch.equal(result.x_adv, frames([best]))
    before, after = ({tuple(e) for e in part.tolist()} for part in (own, best))
    turned = float(result.extras["events_turned"][0])
    assert float(result.extras["events_added"][0]) + turned == len(after - before)
    assert float(result.extras["events_removed"][0]) + turned == len(before - after)


@pytest.fixture
def scene(toys):
    lists = [events(i) for i in range(6)]
    victim = toys.gains(torch.randn(96, generator=generator("w"), dtype=torch.float64), -6.0, SHAPE)
    held = EventLists(lists, WINDOW, {0: events(20, 20), 1: events(21, 20)})
    return victim, frames(lists), held


class Kept(GumbelEvents):
    """Keeps the lists that were handed in."""

    def run(self, oracle, x0, y, *, rng):
        x = super().run(oracle, x0, y, rng=rng)
        object.__setattr__(self, "told", dict(_METERS[oracle].lists))
        return x


def test_returned_inputs_are_the_frames_of_lists_made_of_candidates(scene, attacked) -> None:
    victim, x, held = scene
    attack = Kept(steps=40, draws=2)
    result = attacked(victim, attack, x, y=torch.zeros(6, dtype=torch.int64), events=held)
    hits = (result.status == 1).nonzero().squeeze(1).tolist()
    right = (result.status != 2).nonzero().squeeze(1).tolist()
    told = {right[row]: found for row, found in attack.told.items()}  # the oracle counts attacked samples
    assert result.errors == [] and hits and sorted(told) == hits
    for i in hits:
        merged, _ = candidates(held.recordings[i], held.donors[1])
        places = {(int(e["t"]), int(e["y"]), int(e["x"])) for e in merged}
        assert {(int(e["t"]), int(e["y"]), int(e["x"])) for e in told[i]} <= places
        assert torch.equal(frames([told[i]])[0], result.x_adv[i])
    counted = torch.stack([result.extras[f"events_{what}"] for what in ("added", "removed", "turned")])
    assert bool((counted[:, hits].sum(dim=0) >= 1).all())
    assert torch.equal(torch.isfinite(counted[0]), result.status == 1)


def test_samples_do_not_depend_on_their_batch_mates(scene, attacked) -> None:
    victim, x, held = scene
    attack, y = GumbelEvents(steps=15, draws=2), torch.zeros(6, dtype=torch.int64)
    longer = EventLists([*held.recordings[:5], events(9, 40)], WINDOW, held.donors)
    x = torch.cat([x[:5], frames([longer.recordings[5]])])
    together = attacked(victim, attack, x, y=y, events=longer)
    for i in range(3):
        alone = attacked(victim, attack, x[i : i + 1], y=y[:1], ids=torch.tensor([i]), events=longer.of([i]))
        assert torch.equal(alone.x_adv[0], together.x_adv[i])
        assert int(alone.forwards[0]) == int(together.forwards[i])


def test_no_room_and_no_budget_leave_the_input(scene, attacked) -> None:
    victim, x, held = scene
    attack, y = GumbelEvents(steps=15), torch.zeros(6, dtype=torch.int64)
    assert torch.equal(attacked(victim, attack, x, y=y, eps=Fraction(0), events=held).x_adv, x)
    for forwards in (0, 1, 3):
        budget = Budget(forwards=forwards, backwards=9)
        result = attacked(victim, attack, x, y=y, budget=budget, events=held)
        assert result.errors == [] and int(result.forwards.max()) <= forwards


def test_foreign_inputs_and_wrong_parameters_are_named(scene, attacked) -> None:
    victim, x, held = scene
    y = torch.zeros(6, dtype=torch.int64)
    result = attacked(victim, GumbelEvents(), torch.zeros_like(x), y=y, events=held)
    assert "input 0" in result.errors[0]
    with pytest.raises(ConfigError, match="cold"):
        GumbelEvents(cold=3.0)
    with pytest.raises(ConfigError, match="limit"):
        GumbelEvents(start=9.0)


def test_without_recordings_every_spike_is_an_event(scene, attacked) -> None:
    victim, x, _ = scene
    result = attacked(victim, GumbelEvents(steps=15), x, y=torch.zeros(6, dtype=torch.int64))
    assert result.errors == [] and "events_added" not in result.extras
    here = x.amax(dim=2, keepdim=True)
    assert bool((result.x_adv <= here).all())  # no donor: events vanish or turn, none appears elsewhere


def test_targeted_goal_takes_the_donor_of_the_target(scene, attacked) -> None:
    victim, x, held = scene
    y = torch.zeros(6, dtype=torch.int64)
    result = attacked(victim, GumbelEvents(steps=15), x, y=y, goal=Goal.TARGETED, events=held)
    assert result.errors == [] and (result.adv[result.status == 1] == 1).all()


SUITE = """
name = "raw"
samples = 6
shard = 4
[[threats]]
domain = "spikes"
geometry = "l0"
eps = "min"
[[victims]]
name = "lif_cnn.digits_events"
[[attacks]]
name = "gumbel_events.l0"
params = { steps = 20 }
"""


def test_a_suite_hands_the_recordings_of_its_data_set_over(tmp_path: Path) -> None:
    suite = tmp_path / "raw.toml"
    suite.write_text(SUITE)
    plan = make_plan(read_suite(str(suite)))
    (record,) = run(plan, Settings(out=tmp_path / "out"))
    assert record.label == "gumbel_events.l0[steps=20]" and record.counts["errors"] == 0
    broken = [row for row in record.rows if row.status is Status.BROKEN]
    assert broken
    for row in broken:
        changed = sum(row.extras[f"events_{what}"] for what in ("added", "removed", "turned"))
        assert 2 * changed >= row.distance >= 1  # a turned event changes two cells, others one at most
