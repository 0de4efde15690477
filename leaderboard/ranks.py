"""Ranks: what a table may claim about the order of its rows. Pure functions of per-sample outcomes.

Every pair of ranked rows is compared on their shared samples by the exact sign test (McNemar's on
verdicts), and the p-values of all pairs of a table are corrected by Holm's rule. A pair is *separated*
where the corrected test is below `SIGNIFICANCE` and the table's own figure puts the same row ahead. A row's
rank is an interval: from one more than the rows that are separated above it, to the number of rows less
those separated below it. Intervals are widened, never narrowed, until

- rows of equal figure have the same interval, and a better figure never has a worse one;
- two rows that are not separated have an interval in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from collections.abc import Sequence
from functools import cache

import numpy as np

from robustspike.bench.numbers.stats import holm
from robustspike.bench.numbers.stats import sign_test

SIGNIFICANCE = 0.05
"""Level of every paired test: of all pairs of a table together, and of a flag's single comparison."""

Outcome = Mapping[int, float]
"""What a row reaches on each sample: larger is more robust."""

Interval = tuple[int, int]


_p = cache(sign_test)
"""Pairs of a table often have the same counts."""


def wins(one: Outcome, other: Outcome) -> tuple[int, int]:
    """Return on how many shared samples the first outcome is larger, and on how many smaller."""
    shared = one.keys() & other.keys()
    return sum(one[i] > other[i] for i in shared), sum(one[i] < other[i] for i in shared)


def is_ahead(one: Outcome, other: Outcome) -> bool:
    """Say whether the first is larger on significantly more of the shared samples (one test alone)."""
    better, worse = wins(one, other)
    return better > worse and _p(better, worse) < SIGNIFICANCE


def rank_intervals(figures: Sequence[float], outcomes: Sequence[Outcome]) -> list[Interval]:
    """Return the rank interval of every row, in the order given.

    Args:
        figures: what the table ranks by, larger is better.
        outcomes: the rows' per-sample outcomes.
    """
    return intervals(figures, separations(figures, outcomes))


def separations(figures: Sequence[float], outcomes: Sequence[Outcome]) -> np.ndarray:
    """Return for every pair whether the first row is separated above the second: [n, n] bool."""
    n = len(outcomes)
    ids = sorted(set().union(*outcomes)) if outcomes else []
    values = np.array([[outcome.get(i, np.nan) for i in ids] for outcome in outcomes]).reshape(n, len(ids))
    pairs = list(itertools.combinations(range(n), 2))
    counts = [(int((values[i] > values[j]).sum()), int((values[i] < values[j]).sum())) for i, j in pairs]
    above = np.zeros((n, n), dtype=bool)
    for (i, j), (better, worse), p in zip(pairs, counts, holm([_p(*c) for c in counts]), strict=True):
        if p < SIGNIFICANCE:
            above[i, j] = better > worse and figures[i] > figures[j]
            above[j, i] = worse > better and figures[j] > figures[i]
    return above


def intervals(figures: Sequence[float], above: np.ndarray) -> list[Interval]:
    """Return the rank intervals that follow from separated pairs."""
    n = len(figures)
    low, high = 1 + above.sum(axis=0), n - above.sum(axis=1)
    apart = above | above.T
    values = np.array(figures, dtype=np.float64)
    while True:
        before = low.copy(), high.copy()
        for i in range(n):
            low[i] = low[values <= values[i]].min()
            high[i] = high[values >= values[i]].max()
        for i, j in itertools.combinations(range(n), 2):
            if not apart[i, j] and (high[i] < low[j] or high[j] < low[i]):
                first, last = (i, j) if high[i] < low[j] else (j, i)
                low[last], high[first] = high[first], low[last]
        if all(np.array_equal(*pair) for pair in zip(before, (low, high), strict=True)):
            return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]


def text(low: float, high: float) -> str:
    """Return a rank for people: "2", "2-5", or "-" for a row without one."""
    if np.isnan(low):
        return "-"
    return f"{low:.0f}" if low == high else f"{low:.0f}-{high:.0f}"
