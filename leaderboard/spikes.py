"""What every attack had to change, and the whole curve of its success over its budget. Pure functions.

One row an attack for minimum-norm threats and for attacks on spikes; where spikes change, with the spikes
it added and removed. A minimum-norm record gives the whole curve: ASR(b) is the share of attacked samples
that were broken within distance b. Distances equal to the budget count as within it.

Source: Buechel et al. 2022, arXiv:2110.02929 (median over all attacked samples, failures infinite) and
Lun et al. 2025, arXiv:2503.03272 (median over successes). Differs: both are always reported; the ASR at
a budget is taken over all attacked samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Status
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord

BUDGETS = (5, 10, 20, 50, 200, 800)
"""Budgets at which the success rate is tabulated."""

TOGETHER = "all attacks"
"""Name of the curve of the per-sample best of all attacks."""

UNITS = {
    "l0": "flipped cells",
    "retime_l0": "moved spikes",
    "retime_l1": "time steps moved, all spikes together",
    "retime_linf": "time steps moved, of the spike that moved farthest",
}
"""What a distance counts, by geometry; any other geometry has a "distance"."""

COLUMNS = {
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name",
    "attack": "registry name, changed parameters",
    "access": "what the attack sees of the victim",
    "attacked": "samples that were attacked and could be judged",
    "broken": "successes among them",
    "median_all": "median distance over all attacked samples, failures counted as infinite (medL0_all)",
    "median_success": "median distance over the successes alone (medL0_succ)",
    **{f"asr@{b}": f"share of attacked samples broken within distance {b}" for b in BUDGETS},
    "added": "spikes added, mean over the successes",
    "removed": "spikes removed, mean over the successes; a moved spike is added and removed",
    "spikes": "spikes of the clean input, mean over the successes",
    "forwards": "forward passes (queries) per attacked sample",
    "backwards": "backward passes per attacked sample",
    "loses_to": "controls without gradients that beat a gradient attack on significantly more samples",
}

CURVE_COLUMNS = {
    "victim": COLUMNS["victim"],
    "defense": COLUMNS["defense"],
    "attack": f'registry name, changed parameters; "{TOGETHER}": the nearest success of any of them',
    "access": COLUMNS["access"],
    "budget": "distance allowed; the curve is flat up to the next one listed",
    "broken": "samples broken within it",
    "attacked": "samples that were attacked and could be judged",
}


def median(values: ArrayLike) -> float:
    """Return the median, the mean of the middle two for even n; NaN for none. Infinity is a value."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        return math.nan
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low) if low == high else float((low + high) / 2)


def nearest_successes(records: Sequence[CellRecord]) -> dict[int, SampleRecord | None]:
    """Return for every attacked sample the nearest success of the records, or None where all failed."""
    found: dict[int, SampleRecord | None] = {}
    for record in records:
        for row in record.rows:
            if row.status in (Status.WRONG_CLEAN, Status.ERROR):
                continue
            known = found.setdefault(row.row, None)
            if row.status is Status.BROKEN and (known is None or row.distance < known.distance):
                found[row.row] = row
    return found


def applies(record: CellRecord) -> bool:
    """Say whether distances mean something in a record's table: minimum-norm, or on binary frames."""
    return record.threat.is_minimum_norm or record.threat.domain is Domain.SPIKES


def attack_frame(
    groups: Mapping[tuple[str, str], Sequence[CellRecord]],
    *,
    beats: Callable[[Sequence[CellRecord], Sequence[CellRecord]], bool],
) -> pd.DataFrame:
    """Return the columns of `COLUMNS`: one row an attack on every victim and defense.

    Args:
        groups: the records of every victim and defense.
        beats: says whether the second attack wins against the first beyond chance.
    """
    rows = []
    for (victim, defense), label, members in _by_attack(groups):
        if label == TOGETHER:
            continue
        successes = nearest_successes(members)
        reached = [row for row in successes.values() if row is not None]
        distances = [math.inf if row is None else row.distance for row in successes.values()]
        attacked = len(successes)
        row: dict[str, object] = {
            "victim": victim,
            "defense": defense,
            "attack": label,
            "access": _access(members),
            "attacked": attacked,
            "broken": len(reached),
            "median_all": median(distances),
            "median_success": median([row.distance for row in reached]),
        }
        for budget in BUDGETS:
            row[f"asr@{budget}"] = sum(d <= budget for d in distances) / attacked if attacked else math.nan
        for name in ("added", "removed", "spikes"):
            values = [success.extras.get(name, math.nan) for success in reached]
            row[name] = sum(values) / len(values) if values else math.nan
        for name in ("forwards", "backwards"):
            row[name] = sum(r.cost[name] for r in members) / attacked if attacked else math.nan
        controls = [own for own in _controls(groups[victim, defense]) if row["access"] == Access.WHITE]
        row["loses_to"] = " ".join(own[0].label for own in controls if beats(members, own))
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def curve_frame(groups: Mapping[tuple[str, str], Sequence[CellRecord]]) -> pd.DataFrame:
    """Return the columns of `CURVE_COLUMNS`: every step of every curve, from budget 0 on."""
    rows: list[tuple[object, ...]] = []
    for (victim, defense), label, members in _by_attack(groups):
        successes = nearest_successes(members)
        sizes = sorted(row.distance for row in successes.values() if row is not None)
        steps = [(0.0, 0), *((size, sum(s <= size for s in sizes)) for size in dict.fromkeys(sizes))]
        about = (victim, defense, label, _access(members))
        rows += [(*about, budget, broken, len(successes)) for budget, broken in steps]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def _by_attack(
    groups: Mapping[tuple[str, str], Sequence[CellRecord]],
) -> list[tuple[tuple[str, str], str, list[CellRecord]]]:
    """List the records of every attack on every victim and defense, all together first."""
    found = []
    for owner, records in groups.items():
        labels = sorted({record.label for record in records})
        if len(labels) > 1:
            found.append((owner, TOGETHER, list(records)))
        found += [(owner, label, [r for r in records if r.label == label]) for label in labels]
    return found


def _controls(records: Sequence[CellRecord]) -> list[list[CellRecord]]:
    """List the records of every attack without gradients."""
    black = [record for record in records if record.threat.access is not Access.WHITE]
    return [[r for r in black if r.label == label] for label in sorted({r.label for r in black})]


def _access(records: Sequence[CellRecord]) -> str:
    return "/".join(sorted({str(record.threat.access) for record in records}, reverse=True))
