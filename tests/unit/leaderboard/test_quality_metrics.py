"""Quality metrics: the worked example to six digits, scipy as oracle, invariances."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from robustspike.bench.errors import ConfigError
from robustspike.leaderboard import metrics as q

S, A, RANGE = [20.0, 40.0, 60.0, 80.0], [50.0, 45.0, 90.0, 70.0], (0.0, 100.0)


def test_worked_example_to_six_digits() -> None:
    found = {
        "rmse": q.rmse(S, A),
        "mae": q.mae(S, A).value,
        "srocc": q.srocc(S, A),
        "krocc": q.kendall(S, A),
        "plcc": q.pearson(S, A),
        "R": q.robustness(S, A, RANGE).value,
        "R scaled": q.scaled_robustness(S, A).value,
        "absolute gain": q.absolute_gain(S, A).value,
        "relative gain": q.relative_gain(S, A).value,
        "W": q.wasserstein(S, A),
        "E": q.energy(S, A),
        "RGO": q.used_room(S, A, RANGE),
        "Guardians abs": q.shift_share(S, A, RANGE),
        "Guardians rel": q.relative_shift(S, A),
    }
    expected = {
        "rmse": 21.9374,
        "mae": 18.75,
        "srocc": 0.6,
        "krocc": 0.33333,
        "plcc": 0.65915,
        "R": 0.677317,
        "R scaled": 0.526800,
        "absolute gain": 0.2291667,
        "relative gain": 0.1947917,
        "W": 0.2291667,
        "E": 0.367990,
        "RGO": 0.2708333,
        "Guardians abs": 0.1875,
        "Guardians rel": 0.5625,
    }
    digits = {"rmse": 5e-5, "krocc": 5e-6, "plcc": 5e-6}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=digits.get(name, 5e-7)), name


def test_scipy_agrees() -> None:
    rng = np.random.default_rng(0)
    s = rng.normal(50, 10, 60).round()  # with ties
    a = s + rng.normal(3, 8, 60)
    scaled_s, scaled_a = q.scaled(s, a)
    assert q.srocc(s, a) == pytest.approx(stats.spearmanr(s, a).statistic)
    assert q.pearson(s, a) == pytest.approx(stats.pearsonr(s, a).statistic)
    assert abs(q.wasserstein(s, a)) == pytest.approx(stats.wasserstein_distance(scaled_s, scaled_a))
    assert q.wasserstein(s, s - 5) < 0 < q.wasserstein(s, s + 5)
    mean, low, high = (getattr(q.mae(s, a), k) for k in ("value", "low", "high"))
    interval = stats.t.interval(0.95, 59, loc=mean, scale=stats.sem(np.abs(s - a)))
    assert (low, high) == pytest.approx(interval)


def test_r_falls_as_scores_move_and_shifts_with_its_range() -> None:
    s = np.array([30.0, 60.0])
    values = [q.robustness(s, s + d, RANGE).value for d in (0, 1, 7, 20)]
    assert values == sorted(values, reverse=True)
    assert q.robustness(s + 9, s + 16, (9.0, 109.0)).value == pytest.approx(values[2])
    assert q.robustness([0.0], [100.0], RANGE).value == pytest.approx(0, abs=1e-6)
    assert q.robustness([0.0], [10.0], RANGE).value == pytest.approx(1, abs=1e-6)


def test_degenerate_inputs_give_nan_or_an_error_not_a_crash() -> None:
    flat, s = [5.0, 5.0, 5.0], [1.0, 2.0, 3.0]
    assert math.isnan(q.srocc(flat, s)) and math.isnan(q.pearson(flat, s)) and math.isnan(q.kendall(flat, s))
    assert q.absolute_gain(flat, [6.0, 6.0, 6.0]).value == 1.0
    assert q.srocc_interval(math.nan, 100) == (-1.0, 1.0)
    alone = q.mean_of([2.0])
    assert alone.value == 2.0 and math.isnan(alone.low) and math.isnan(alone.high)
    with pytest.raises(ConfigError, match="one length"):
        q.mae([1.0], [1.0, 2.0])


def test_rank_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(1)
    rho = 0.6
    pearson_rho = 2 * math.sin(math.pi * rho / 6)  # of a normal pair with this rank correlation
    covered = 0
    for _ in range(400):
        x, e = rng.standard_normal((2, 60))
        y = pearson_rho * x + math.sqrt(1 - pearson_rho**2) * e
        low, high = q.srocc_interval(q.srocc(x, y), 60)
        covered += low <= rho <= high
    assert covered / 400 > 0.92


def test_mapping_recovers_a_logistic_and_falls_back_to_a_line() -> None:
    s = np.linspace(0, 100, 40)
    m = 80 / (1 + np.exp(-(s - 45) / 12)) + 10
    mapping = q.fit_mapping(s, m)
    assert np.allclose(mapping(s), m, atol=1e-3)
    assert q.agreement(s, m, mapping).plcc == pytest.approx(1)
    assert q.agreement(s, m, mapping).rmse < 1e-3
    assert q.fit_mapping([1.0, 1.0], [2.0, 4.0])([7.0]) == pytest.approx([3.0])
    assert q.fit_mapping([1.0, 2.0], [2.0, 4.0])([3.0]) == pytest.approx([6.0])  # too few for a logistic


def test_a_map_that_cannot_be_pinned_down_is_fitted_without_noise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapping = q.fit_mapping(np.linspace(0, 1, 9), np.full(9, 7.0))
    assert mapping([0.3]) == pytest.approx([7.0])


def test_quantile_matching_is_exact_on_its_own_data_and_linear_outside() -> None:
    s, m = np.array([3.0, 1.0, 2.0]), np.array([10.0, 30.0, 20.0])
    assert q.quantile_matched(s, s, m).tolist() == [30.0, 10.0, 20.0]
    assert q.quantile_matched([0.0, 5.0], s, m).tolist() == [0.0, 50.0]


def test_areas() -> None:
    assert q.integral_robustness([2, 4, 8, 10], [0.3, 0.3, 0.3, 0.3]) == pytest.approx(0.3)
    assert q.uap_stability([0, 10, 20], [0, 0.1, 0.2]) == pytest.approx(-200)


def test_a_rank_correlation_over_few_photographs_covers_at_its_rate() -> None:
    """Six images from each of eight photographs that differ; the true correlation is zero."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(8), 6)
    hits = {"sources": 0, "images": 0}
    for _ in range(300):
        x, y = (np.repeat(rng.normal(size=8), 6) + 0.5 * rng.normal(size=48) for _ in range(2))
        for name, of in (("sources", sources), ("images", np.arange(48))):
            found = q.srocc_of(x, y, of)
            hits[name] += found.low <= 0 <= found.high
    assert hits["sources"] > 0.88 * 300 > 0.75 * 300 > hits["images"]
    alone = q.srocc_of([1.0, 2, 3, 4], [1.0, 3, 2, 4], [5, 5, 5, 5])
    assert alone.value == pytest.approx(0.8) and math.isnan(alone.low)


def test_a_share_of_images_counts_what_they_are_worth() -> None:
    hits, sources = [True] * 6 + [False] * 6, [0] * 6 + [1] * 6
    few, many = q.share_of(hits, sources), q.share_of(hits, range(12))
    assert few.value == many.value == 0.5
    assert (few.low, few.high) == pytest.approx((0.0945, 0.9055), abs=1e-4)  # one of two
    assert (many.low, many.high) == pytest.approx((0.2538, 0.7462), abs=1e-4)  # six of twelve
