"""Rows of nets trained alike from different seeds, as a mean with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from robustspike.bench.numbers.stats import wilson

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


def trained_alike(frame: pd.DataFrame) -> list[tuple[str, str, list[pd.Series[Any]]]]:
    """Return (victim without seed, defense, rows) of rows that differ in the training seed alone."""
    groups: dict[tuple[str, str], list[pd.Series[Any]]] = defaultdict(list)
    for _, row in frame.iterrows():
        name, mark, seed = str(row["victim"]).rpartition("@")
        base = name if mark and seed.isdigit() else str(row["victim"])
        groups[(base, str(row["defense"]))].append(row)
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


def mean_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Summarise the rows of an accuracy table that differ in the training seed alone.

    Returns: for each victim and defense with two seeds or more, in the order of the best worst case:
        victim, defense, seeds, flagged (how many of them carry a flag); and clean, worst_case and each
        "acc:ATTACK" that all of them have, as (mean, low, high).
    """
    measured = ["clean", "worst_case", *(c for c in frame.columns if c.startswith("acc:"))]
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
    return sorted(found, key=lambda row: (-row["worst_case"][0], row["victim"], row["defense"]))
