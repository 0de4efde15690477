"""Rows of nets trained alike from different seeds, as a mean with its interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

INTRODUCTION = (
    "*Mean of k training seeds*: where a victim was trained from several seeds (name, name@1, ...), the mean "
    "over them with Student's 95 % interval; the rows above stay apart, and attack seeds are part of the "
    "worst case."
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


def mean_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Summarise the rows of an accuracy table that differ in the training seed alone.

    Returns: for each victim and defense with two seeds or more: victim, defense, seeds, flagged (how many
        of them carry a flag), and clean, worst_case as (mean, low, high).
    """
    found = []
    for victim, defense, rows in trained_alike(frame):
        summary: dict[str, Any] = {
            "victim": victim,
            "defense": defense,
            "seeds": len(rows),
            "flagged": sum(bool(row["flags"]) for row in rows),
        }
        for column in ("clean", "worst_case"):
            values = sorted(float(row[column]) for row in rows)
            summary[column] = (math.fsum(values) / len(values), *student_interval(values))
        found.append(summary)
    return found
