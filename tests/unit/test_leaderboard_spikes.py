"""Metrics of spike attacks on small arrays whose answers are worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustspike.bench.api import ConfigError
from robustspike.leaderboard.spikes import area_over_log_budget
from robustspike.leaderboard.spikes import asr_curve
from robustspike.leaderboard.spikes import bin_count_distance
from robustspike.leaderboard.spikes import envelope
from robustspike.leaderboard.spikes import median
from robustspike.leaderboard.spikes import relative_change
from robustspike.leaderboard.spikes import shifts
from robustspike.leaderboard.spikes import spikes_changed
from robustspike.leaderboard.spikes import summarise

STATUS = [1, 1, 0, 2, 3, 1]
DISTANCE = [4.0, 10.0, 0.0, 0.0, 0.0, 5.0]


def test_summary_counts_attacked_samples_only_and_names_both_medians() -> None:
    found = summarise(STATUS, DISTANCE, budgets=(4, 9, 10))
    assert (found.attacked, found.broken, found.errors) == (4, 3, 1)
    assert found.median_success == 5.0
    assert found.median_all == 7.5  # of 4, 5, 10, infinity
    assert found.mean_success == pytest.approx(19 / 3)
    assert found.within == (1, 2, 3)
    assert found.asr == 0.75
    low, high = found.interval(4)
    assert low < 0.25 < high


def test_median_over_all_is_infinite_when_half_fail() -> None:
    assert summarise([1, 0, 0], [3.0, 0.0, 0.0]).median_all == math.inf
    assert summarise([1, 0], [3.0, 0.0]).median_all == math.inf
    assert summarise([0, 0], [0.0, 0.0]).median_all == math.inf
    assert math.isnan(summarise([0], [0.0]).median_success)
    assert math.isnan(summarise([2, 3], [0.0, 0.0]).median_all)
    assert math.isnan(median([]))


def test_curve_steps_at_every_distance() -> None:
    steps, counts, n = asr_curve([*STATUS, 1], [*DISTANCE, 4.0])
    assert steps.tolist() == [4.0, 5.0, 10.0]
    assert counts.tolist() == [2, 3, 4]
    assert n == 5


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, 3]), st.integers(0, 2000)), min_size=1))
def test_curve_summary_and_area_agree(rows: list[tuple[int, int]]) -> None:
    status, distance = [r[0] for r in rows], [float(r[1]) for r in rows]
    steps, counts, n = asr_curve(status, distance)
    found = summarise(status, distance)
    assert list(found.within) == sorted(found.within)
    for budget, within in zip(found.budgets, found.within, strict=True):
        below = steps <= budget
        assert within == (counts[below][-1] if below.any() else 0)
    if n:
        edges = np.unique(np.clip(np.concatenate([[1.0, 1000.0], steps]), 1, 1000))
        area = 0.0
        for low, high in itertools.pairwise(edges):
            within = counts[steps <= low][-1] if (steps <= low).any() else 0
            area += within / n * math.log(high / low)
        assert area_over_log_budget(status, distance) == pytest.approx(area / math.log(1000))


def test_area_extremes() -> None:
    assert area_over_log_budget([1, 1], [1.0, 1.0]) == 1.0
    assert area_over_log_budget([0, 1], [0.0, 1000.0]) == 0.0
    with pytest.raises(ConfigError, match="low < high"):
        area_over_log_budget([1], [1.0], low=5, high=5)


def test_envelope_takes_the_nearest_success_and_keeps_errors() -> None:
    status, distance = envelope([([1, 0, 3, 2, 3], [9, 0, 0, 0, 0]), ([1, 1, 0, 2, 1], [4, 7, 0, 0, 2])])
    assert status.tolist() == [1, 1, 3, 2, 1]
    assert distance.tolist() == [4.0, 7.0, 0.0, 0.0, 2.0]
    with pytest.raises(ConfigError, match="same samples"):
        envelope([([1], [1.0]), ([1, 1], [1.0, 1.0])])


@pytest.mark.parametrize("bad", [math.inf, math.nan, -1.0])
def test_a_damaged_record_is_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        summarise([1, 0], [bad, 0.0])
    with pytest.raises(ConfigError, match="one row a sample"):
        summarise([1, 0], [1.0])


def test_added_removed_and_relative_change() -> None:
    x0 = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    x = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    added, removed = spikes_changed(x0, x)
    assert added.tolist() == [1, 1, 0]
    assert removed.tolist() == [2, 0, 0]
    assert relative_change(x0, x).tolist() == [1.5, math.inf, 0.0]


def test_shifts_match_the_spikes_of_a_line_in_order() -> None:
    x0 = np.zeros((1, 4, 1, 2))
    x0[0, [0, 1], 0, 0] = 1
    x0[0, 3, 0, 1] = 1
    x = np.zeros_like(x0)
    x[0, [1, 3], 0, 0] = 1
    x[0, 2, 0, 1] = 1
    assert [s.tolist() for s in shifts(x0, x)] == [[1, 2, -1]]
    x[0, 0, 0, 1] = 1
    with pytest.raises(ConfigError, match="as many spikes"):
        shifts(x0, x)


def test_bin_count_distance() -> None:
    early, late, empty = np.zeros((1, 4, 3)), np.zeros((1, 4, 3)), np.zeros((1, 4, 3))
    early[0, 0] = 1
    late[0, 3] = 1
    assert bin_count_distance(early, late).tolist() == [1.0]
    assert bin_count_distance(early, early).tolist() == [0.0]
    assert bin_count_distance(early, empty).tolist() == [1.0]
    assert bin_count_distance(empty, empty).tolist() == [0.0]
