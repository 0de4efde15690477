"""What intervals, tests and ranks must hold for every count, not for chosen ones."""

from __future__ import annotations

import math
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustspike.bench.numbers.stats import bootstrap_median
from robustspike.bench.numbers.stats import clopper_pearson_lower
from robustspike.bench.numbers.stats import rate
from robustspike.bench.numbers.stats import sign_test
from robustspike.bench.numbers.stats import wilson
from robustspike.leaderboard.row_flags import SIGNIFICANCE
from robustspike.leaderboard.row_flags import robust_by_sample
from robustspike.leaderboard.seeds import interval
from robustspike.leaderboard.table import sections
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


@given(st.lists(st.text("rb", min_size=16, max_size=16), min_size=1, max_size=6), st.data())
def test_ranks_are_shared_exactly_where_the_paired_test_cannot_separate(
    rows: list[str], data: st.DataObject
) -> None:
    flagged = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    records = [
        make_record(row, victim=f"v{i}", measures={"non_finite": int(bad)})
        for i, (row, bad) in enumerate(zip(rows, flagged, strict=True))
    ]
    (section,) = sections(records)
    robust = {f"v{i}": row for i, row in enumerate(rows)}
    leader, leading = "", 0
    frame = section.frame
    assert list(frame["worst_case"][frame["rank"].notna()]) == sorted(
        frame["worst_case"][frame["rank"].notna()], reverse=True
    )
    for position, row in enumerate(frame.itertuples(index=False), start=1):
        if "non_finite" in str(row.flags):
            assert pd.isna(row.rank)
            continue
        own = robust[str(row.victim)]
        wins = sum(a == "r" and b == "b" for a, b in zip(leader, own, strict=False))
        losses = sum(a == "b" and b == "r" for a, b in zip(leader, own, strict=False))
        if not leader or sign_test(wins, losses) < SIGNIFICANCE:
            leader, leading = own, position
        assert row.rank == leading
