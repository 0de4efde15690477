"""Rows of nets trained alike from different seeds, as a mean with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from robustspike.bench.numbers.stats import wilson

ATTACKS_THAT_FIT = 7
"""Attacks up to which each of them has a column in the table of means."""

INTRODUCTION = (
    "*Mean of k training seeds*: where a victim was trained from several seeds (name, name@1, ...), the mean "
    "over them. Its 95 % interval covers both the seeds (Student) and the choice of test samples (Wilson); "
    "all seeds see the same samples, so more seeds alone do not close it. Quality models: the seeds alone "
    "(Student). The rows above stay apart, and attack seeds are part of the worst case."
)


def student_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of the mean of shares, inside [0, 1]. Needs two values.

    Source: Student 1908, Biometrika 6:1. Differs: cut to [0, 1].
    """
    from scipy.special import stdtrit

    k = len(values)
    mean = math.fsum(values) / k
    variance = math.fsum((value - mean) ** 2 for value in values) / (k - 1)
    half = float(stdtrit(k - 1, 0.5 + level / 2)) * math.sqrt(variance / k)
    return max(0.0, mean - half), min(1.0, mean + half)


def split(victim: str) -> tuple[str, int]:
    """Return a victim's name without its training seed, and the seed: "net@2" is net from seed 2."""
    name, mark, seed = victim.rpartition("@")
    return (name, int(seed)) if mark and seed.isdecimal() and seed.isascii() else (victim, 0)


def trained_alike(frame: pd.DataFrame) -> list[tuple[str, str, list[pd.Series[Any]]]]:
    """Return (victim without seed, defense, rows) of rows that differ in the training seed alone.

    A row whose name needs digits of its weights is no seed of anything: it is not known which net is meant.
    """
    groups: dict[tuple[str, str], list[pd.Series[Any]]] = defaultdict(list)
    for _, row in frame.iterrows():
        groups[(split(str(row["name"]))[0], str(row["defense"]))].append(row)
    return [(*owner, rows) for owner, rows in sorted(groups.items()) if len(rows) > 1]


def interval(values: Sequence[float], n: int, *, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of shares that several seeds reach on the same n samples, with its interval.

    Each side is the root of the sum of squares of Student's half-width over the seeds and Wilson's over
    the samples. The latter takes the seeds as agreeing on every sample, which can only widen it.

    Source: Zou and Donner 2008, Statistics in Medicine 27:1693 (MOVER). Differs: applied to two sources of
    error of one mean.
    """
    mean = math.fsum(values) / len(values)
    sides = zip(student_interval(values, level=level), wilson(round(mean * n), n, level=level), strict=True)
    low, high = (math.hypot(mean - seeds, round(mean * n) / n - samples) for seeds, samples in sides)
    return mean, max(0.0, mean - low), min(1.0, mean + high)


def mean_rows(frame: pd.DataFrame, measured: Sequence[str]) -> list[dict[str, Any]]:
    """Summarise the rows of an accuracy table that differ in the training seed alone.

    Args:
        frame: the table.
        measured: the columns to summarise; the second one gives the order, best first.

    Returns: for each victim and defense with two seeds or more: victim, defense, seeds, flagged (how many of
        them carry a flag); and each column that all of them have, as (mean, low, high).
    """
    found = []
    for victim, defense, rows in trained_alike(frame):
        summary: dict[str, Any] = {
            "victim": victim,
            "defense": defense,
            "seeds": len(rows),
            "flagged": sum(bool(row["flags"]) for row in rows),
        }
        for column in measured:
            values = sorted(float(row[column]) for row in rows)
            if not any(math.isnan(value) for value in values):
                summary[column] = interval(values, int(rows[0]["n"]))
        found.append(summary)
    first = measured[1]
    return sorted(found, key=lambda row: (-row.get(first, (0.0,))[0], row["victim"], row["defense"]))
