"""What intervals, tests and ranks must hold for every count, not for chosen ones."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustspike.bench.numbers.stats import bootstrap_median
from robustspike.bench.numbers.stats import clopper_pearson_lower
from robustspike.bench.numbers.stats import clustered_mean
from robustspike.bench.numbers.stats import effective_size
from robustspike.bench.numbers.stats import holm
from robustspike.bench.numbers.stats import rate
from robustspike.bench.numbers.stats import sign_test
from robustspike.bench.numbers.stats import wilson
from robustspike.leaderboard.ranks import SIGNIFICANCE
from robustspike.leaderboard.ranks import Outcome
from robustspike.leaderboard.ranks import intervals
from robustspike.leaderboard.ranks import rank_intervals
from robustspike.leaderboard.ranks import wins
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.seeds import interval
from robustspike.leaderboard.verdicts import robust_by_sample
from tests.support.records import make_record

counts = st.integers(0, 400)
pairs = st.tuples(st.integers(0, 60), st.integers(0, 60))
distances = st.lists(st.floats(0, 100) | st.just(math.inf), min_size=1, max_size=40)
verdicts = st.text("rbw", min_size=12, max_size=12)


@given(counts, counts)
def test_wilson_is_that_of_scipy_and_mirrors(k: int, n: int) -> None:
    k, n = min(k, n), max(k, n, 1)
    low, high = wilson(k, n)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    named = rate("x", k, n)
    assert (named["x"], named["x_low"], named["x_high"]) == (k / n, low, high)


def test_a_rate_of_nothing_is_unknown() -> None:
    assert all(map(math.isnan, rate("x", 0, 0).values()))


@given(pairs)
def test_the_sign_test_is_the_exact_binomial_one(won: tuple[int, int]) -> None:
    wins, losses = won
    assert sign_test(wins, losses) == sign_test(losses, wins)
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)


@pytest.mark.parametrize(("k", "n"), [(600, 1100), (9_900, 10_000), (99_999, 100_000)])
def test_large_counts_are_no_overflow(k: int, n: int) -> None:
    bound = clopper_pearson_lower(k, n, error=0.001)
    assert stats.binom.sf(k - 1, n, bound) == pytest.approx(0.001)
    assert 0 <= sign_test(k, n - k) < 0.01
    assert wilson(k, n)[0] < k / n < wilson(k, n)[1]


@given(distances, st.integers(0, 2**32 - 1))
def test_a_bootstrap_interval_depends_on_the_values_alone(values: list[float], seed: int) -> None:
    low, high = bootstrap_median(np.array(values))
    shuffled = random.Random(seed).sample(values, len(values))
    assert bootstrap_median(np.array(shuffled)) == (low, high)
    assert min(values) <= low <= high <= max(values)
    ordered = sorted(values)
    assert low <= ordered[len(values) // 2] and ordered[(len(values) - 1) // 2] <= high
    farther, farthest = bootstrap_median(np.array(values) + 1)
    assert farther >= low and farthest >= high


def test_a_bootstrap_interval_covers_the_median_at_nearly_the_nominal_rate() -> None:
    draws = np.random.default_rng(0).exponential(size=(400, 60))
    ends = np.array([bootstrap_median(row, draws=400) for row in draws])
    covered = ((ends[:, 0] <= math.log(2)) & (math.log(2) <= ends[:, 1])).mean()
    assert 0.91 < covered < 0.99


@given(st.integers(0, 80), st.integers(1, 80), st.floats(0.001, 0.2))
def test_a_lower_confidence_bound_is_the_exact_one(k: int, n: int, error: float) -> None:
    k = min(k, n)
    expected = float(stats.beta.ppf(error, k, n - k + 1)) if k else 0.0
    assert clopper_pearson_lower(k, n, error=error) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(1, 500))
def test_the_mean_of_seeds_lies_in_its_interval(values: list[float], n: int) -> None:
    mean, low, high = interval(values, n)
    assert mean == pytest.approx(math.fsum(values) / len(values))
    assert 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1
    doubled = interval([*values, *values], n)
    assert doubled[2] - doubled[1] <= high - low + 1e-12


@given(st.lists(verdicts, min_size=1, max_size=4))
def test_one_more_attack_never_raises_the_worst_case(cells: list[str]) -> None:
    records = [make_record(cell, attack=f"a{i}") for i, cell in enumerate(cells)]
    held = [sum(robust_by_sample(records[:n]).values()) for n in range(1, len(records) + 1)]
    assert held == sorted(held, reverse=True)
    assert robust_by_sample(records) == robust_by_sample(records[::-1])
    assert held[-1] <= min(record.counts["robust"] for record in records)


columns = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=50)
)


def claims(samples: list[list[bool]]) -> tuple[list[float], list[Outcome], list[tuple[int, int]]]:
    """Return figures, outcomes and rank intervals of rows, from one list of verdicts a sample."""
    outcomes: list[Outcome] = [dict(enumerate(map(float, row))) for row in zip(*samples, strict=True)]
    figures = [sum(outcome.values()) / len(outcome) for outcome in outcomes]
    return figures, outcomes, rank_intervals(figures, outcomes)


@given(columns)
def test_rows_that_no_test_separates_never_exclude_each_other(samples: list[list[bool]]) -> None:
    """Checked against scipy: sign tests of all pairs, corrected by Holm's rule written out."""
    figures, outcomes, found = claims(samples)
    n = len(found)
    tests = {}
    for i, j in itertools.combinations(range(n), 2):
        better, worse = wins(outcomes[i], outcomes[j])
        tests[i, j] = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    rejected = set()
    for place, pair in enumerate(sorted(tests, key=tests.__getitem__)):
        if tests[pair] >= SIGNIFICANCE / (len(tests) - place):
            break
        rejected.add(pair)
    for (i, j), (first, second) in zip(tests, itertools.combinations(found, 2), strict=True):
        if max(first[0], second[0]) > min(first[1], second[1]):
            assert (i, j) in rejected
        if figures[i] == figures[j]:
            assert first == second
        if figures[i] > figures[j]:
            assert first[0] <= second[0] and first[1] <= second[1]
    assert all(1 <= low <= high <= n for low, high in found)


@given(st.integers(2, 7).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n * n - 1)))))
def test_intervals_stay_honest_whatever_pairs_are_separated(case: tuple[int, set[int]]) -> None:
    """The sign test is not transitive: A over C and C over B do not tell A and B apart."""
    n, chosen = case
    above = np.zeros((n, n), dtype=bool)
    above.flat[list(chosen)] = True
    above = np.triu(above, 1)  # figures fall from row to row
    found = intervals([float(-i) for i in range(n)], above)
    for i, j in itertools.combinations(range(n), 2):
        overlap = max(found[i][0], found[j][0]) <= min(found[i][1], found[j][1])
        assert above[i, j] or overlap


def test_ranks_of_rows_far_apart_are_single_numbers() -> None:
    samples = [[i < 60, i < 40, i < 20] for i in range(80)]
    assert claims(samples)[2] == [(1, 1), (2, 2), (3, 3)]
    assert claims([[True, True]] * 9)[2] == [(1, 2), (1, 2)]


@given(st.lists(st.text("rb", min_size=16, max_size=16), min_size=1, max_size=6), st.data())
def test_flagged_rows_have_no_rank_and_cost_the_others_none(rows: list[str], data: st.DataObject) -> None:
    flagged = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    records = [
        make_record(row, victim=f"v{i}", measures={"non_finite": int(bad)})
        for i, (row, bad) in enumerate(zip(rows, flagged, strict=True))
    ]
    (frame,) = (section.frame for section in build(records))
    bad = frame["flags"].str.contains("non_finite")
    assert list(frame["rank_low"].isna()) == list(bad) == sorted(bad)
    ranked = frame[~bad]
    assert list(ranked["worst_case"]) == sorted(ranked["worst_case"], reverse=True)
    if len(ranked):
        (alone,) = (s.frame for s in build(r for r, unfit in zip(records, flagged, strict=True) if not unfit))
        for column in ("name", "rank_low", "rank_high"):
            assert list(alone[column]) == list(ranked[column])


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=30), st.integers(1, 5))
def test_one_value_a_cluster_is_the_ordinary_interval_and_copies_add_nothing(
    values: list[float], copies: int
) -> None:
    data = np.array(values)
    mean, low, high = clustered_mean(data, np.arange(len(data)))
    expected = stats.t.interval(0.95, len(data) - 1, loc=data.mean(), scale=stats.sem(data))
    if data.std() > 0:
        assert (low, high) == pytest.approx(expected, abs=1e-9)
    again = clustered_mean(np.repeat(data, copies), np.repeat(np.arange(len(data)), copies))
    assert again == pytest.approx((mean, low, high), abs=1e-9)
    if data.std() > 1e-6:
        assert effective_size(np.repeat(data, copies), np.repeat(np.arange(len(data)), copies)) == len(data)


def test_one_cluster_has_no_interval() -> None:
    mean, low, high = clustered_mean(np.array([1.0, 2.0]), np.array([7, 7]))
    assert mean == 1.5 and math.isnan(low) and math.isnan(high)
    assert effective_size(np.array([1.0, 0.0, 1.0]), np.zeros(3)) == 1


def test_the_clustered_interval_covers_at_its_rate_and_the_ordinary_one_does_not() -> None:
    rng = np.random.default_rng(0)
    hits = {"clustered": 0, "ordinary": 0}
    for _ in range(1000):
        values = np.repeat(rng.normal(size=8), 6) + 0.3 * rng.normal(size=48)
        for name, of in (("clustered", np.repeat(np.arange(8), 6)), ("ordinary", np.arange(48))):
            _, low, high = clustered_mean(values, of)
            hits[name] += low <= 0 <= high
    assert 920 < hits["clustered"] < 975 and hits["ordinary"] < 650


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holms_values_are_bonferronis_at_the_smallest_and_never_fall(p: list[float]) -> None:
    adjusted = holm(p)
    order = np.argsort(p, kind="stable")
    assert adjusted[order[0]] == pytest.approx(min(1.0, len(p) * min(p)))
    assert list(np.array(adjusted)[order]) == sorted(adjusted)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
