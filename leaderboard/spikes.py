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
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard.owners import Owner
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import number
from robustspike.leaderboard.text import percent
from robustspike.leaderboard.text import with_defense
from robustspike.leaderboard.verdicts import nearest_successes

BUDGETS = (5, 10, 20, 50, 200, 800)
"""Budgets at which the success rate is tabulated."""

INTRODUCTION = (
    "Attacks alone: *median over all* counts failures as infinite, *median over successes* leaves them out; "
    "spikes added, removed or moved are means over the successes, *of* the spikes of their clean inputs; "
    "passes are per attacked sample. A gradient attack *loses to* a control without gradients that needs "
    "fewer changes, or breaks what it leaves, on significantly more samples than it wins on (p < 0.05)."
)

TOGETHER = "all attacks"
"""Name of the curve of the per-sample best of all attacks."""

COLUMNS = {
    "name": "victim, with the first digits of its weights where several nets share a victim's name",
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name, with changed parameters",
    "weights": "sha256 of all parameters and buffers",
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
    **{name: COLUMNS[name] for name in ("name", "victim", "defense", "weights")},
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


def attack_frame(
    groups: Mapping[Owner, Sequence[CellRecord]],
    names: Mapping[Owner, str],
    *,
    beats: Callable[[Sequence[CellRecord], Sequence[CellRecord]], bool],
) -> pd.DataFrame:
    """Return the columns of `COLUMNS`: one row an attack on every victim and defense.

    Args:
        groups: the records of every row of the main table.
        names: their names.
        beats: says whether the second attack wins against the first beyond chance.
    """
    rows = []
    for owner, label, members in _by_attack(groups):
        if label == TOGETHER:
            continue
        successes = nearest_successes(members)
        reached = [row for row in successes.values() if row is not None]
        distances = [math.inf if row is None else row.distance for row in successes.values()]
        attacked = len(successes)
        row: dict[str, object] = {
            "name": names[owner],
            **owner._asdict(),
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
        controls = [own for own in _controls(groups[owner]) if row["access"] == Access.WHITE]
        row["loses_to"] = " ".join(facts.attack_name(own[0]) for own in controls if beats(members, own))
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def curve_frame(groups: Mapping[Owner, Sequence[CellRecord]], names: Mapping[Owner, str]) -> pd.DataFrame:
    """Return the columns of `CURVE_COLUMNS`: every step of every curve, from budget 0 on."""
    rows: list[tuple[object, ...]] = []
    for owner, label, members in _by_attack(groups):
        successes = nearest_successes(members)
        sizes = sorted(row.distance for row in successes.values() if row is not None)
        steps = [(0.0, 0), *((size, sum(s <= size for s in sizes)) for size in dict.fromkeys(sizes))]
        about = (names[owner], *owner, label, _access(members))
        rows += [(*about, budget, broken, len(successes)) for budget, broken in steps]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def _by_attack(
    groups: Mapping[Owner, Sequence[CellRecord]],
) -> list[tuple[Owner, str, list[CellRecord]]]:
    """List the records of every attack on every victim and defense, all together first."""
    found = []
    for owner, records in groups.items():
        attacks = _attacks(records)
        if len(attacks) > 1:
            found.append((owner, TOGETHER, list(records)))
        found += [(owner, label, own) for label, own in attacks.items()]
    return found


def _controls(records: Sequence[CellRecord]) -> list[list[CellRecord]]:
    """List the records of every attack without gradients."""
    return list(_attacks([r for r in records if r.threat.access is not Access.WHITE]).values())


def _attacks(records: Sequence[CellRecord]) -> dict[str, list[CellRecord]]:
    """Return the records of each attack, attacks in alphabetical order."""
    labels = sorted({facts.attack_name(record) for record in records})
    return {label: [r for r in records if facts.attack_name(r) == label] for label in labels}


def _access(records: Sequence[CellRecord]) -> str:
    return "/".join(sorted({str(record.threat.access) for record in records}, reverse=True))


def table(found: pd.DataFrame, reach: facts.Reach, *, budgets: bool) -> Table | None:
    """Return what every attack had to change, one line an attack on every row; None without any.

    Args:
        found: from `attack_frame`.
        reach: what the geometry counts.
        budgets: whether to add the success rate at each budget.
    """
    if not len(found):
        return None
    within = [column for column in found.columns if column.startswith("asr@")] if budgets else []
    changes = {"spikes moved": "removed"} if reach.moves else {"spikes added": "added", "removed": "removed"}
    changes = changes | {"of": "spikes"} if found["spikes"].notna().any() else {}
    headers = ["victim", "attack alone", "success", "median over all", "median over successes"]
    headers += [*changes, "forwards", "backwards", "loses to"]
    rows = []
    for _, row in found.iterrows():
        share = row["broken"] / row["attacked"] if row["attacked"] else math.nan
        shown = [with_defense(row), str(row["attack"]), percent(share)]
        shown += [number(row["median_all"]), number(row["median_success"])]
        shown += [number(row[column]) for column in changes.values()]
        shown += [*(f"{row[c]:.0f}" for c in ("forwards", "backwards")), str(row["loses_to"]) or "-"]
        rows.append([*shown, *(percent(row[column]) for column in within)])
    headers += [f"ASR within {column.removeprefix('asr@')}" for column in within]
    return Table(headers, rows, by_attack=True)
