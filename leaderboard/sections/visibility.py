"""Attacks on quality models at equal visibility: what each achieves at one SSIM, and at one L-inf distance.

A budget says how far a pixel may go, not how much of it an attack uses. Here the records of one attack at
several budgets form a curve for every image, and the curves are read at the same visibility.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard import metrics
from robustspike.leaderboard.owners import by_owner
from robustspike.leaderboard.sections.base import Kind
from robustspike.leaderboard.sections.base import Row
from robustspike.leaderboard.sections.base import Section
from robustspike.leaderboard.sections.base import Shared
from robustspike.leaderboard.sections.quality import attacks_of
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import figure
from robustspike.leaderboard.text import span
from robustspike.leaderboard.text import with_defense

LEAST_BUDGETS = 3
"""Budgets that an attack needs for a curve."""

LIMITS = {"ssim": 1 - metrics.HIDDEN["ssim"], "linf": 2 / 255}
"""Where the curves are read: lost SSIM, and L-inf distance."""

SHOWN = {"ssim": f"SSIM {metrics.HIDDEN['ssim']:g}", "linf": "L-inf 2/255"}

ALL = "all attacks"

COLUMNS = {
    "n": "images",
    "attack": "label, or all attacks: each image under the one that moves it farthest",
    **{
        f"mae_{name}{end}": f"{what} |attacked - clean| at {SHOWN[name]}"
        for name in LIMITS
        for end, what in (
            ("", "mean"),
            ("_low", "lower end of the 95 % interval of mean"),
            ("_high", "upper"),
        )
    },
    **{f"short_{name}": f"share of images that no budget brings to {SHOWN[name]}" for name in LIMITS},
    "flags": "none: those of the tables at one budget hold",
}

Curve = list[tuple[float, float, float]]
"""(lost SSIM, L-inf distance, |attacked - clean|) of one image, by growing budget, from (0, 0, 0)."""


def _curves(records: Sequence[CellRecord]) -> dict[int, Curve]:
    """Return one attack's curve for every image, or nothing where it was run at too few budgets.

    Images with an error, or without a measured SSIM, at any budget are left out; of several attack
    seeds the farthest moved counts.
    """
    budgets: dict[float, dict[int, tuple[float, float, float]]] = defaultdict(dict)
    left_out = set()
    for record in records:
        at = budgets[float(record.threat.eps or 0)]
        for row in record.rows:
            lost = 1 - row.extras.get("ssim", math.nan)
            if row.status is Status.ERROR or math.isnan(lost):
                left_out.add(row.row)
                continue
            point = (lost, row.distance, abs(row.adv_score - row.clean_score))
            at[row.row] = max(at.get(row.row, point), point, key=lambda p: p[2])
    if len(budgets) < LEAST_BUDGETS:
        return {}
    shared = set.intersection(*(set(at) for at in budgets.values())) - left_out
    return {i: [(0.0, 0.0, 0.0), *(budgets[eps][i] for eps in sorted(budgets))] for i in shared}


def change_at(curve: Curve, axis: int, limit: float) -> tuple[float, bool]:
    """Return the largest change of an image at a visibility of at most `limit`, and whether it gets there.

    Args:
        curve: the image's points.
        axis: 0 for lost SSIM, 1 for L-inf distance.
        limit: where the curve is read.
    """
    most = 0.0
    for before, after in itertools.pairwise(curve):
        if after[axis] >= limit - 1e-6:  # distances are of float32 pixels
            width = after[axis] - before[axis]
            share = min(1.0, (limit - before[axis]) / width) if width > 0 else 1.0
            return max(most, before[2] + share * (after[2] - before[2])), True
        most = max(most, after[2])
    return most, False


def _row(chosen: Sequence[dict[int, Curve]], sources: Mapping[int, float]) -> Row:
    images = sorted(set.intersection(*(set(curves) for curves in chosen)))
    of = [sources[i] for i in images] or None
    row: Row = {"n": len(images), "flags": ""}
    for axis, (name, limit) in enumerate(LIMITS.items()):
        read = [[change_at(curves[i], axis, limit) for curves in chosen] for i in images]
        mean = metrics.mean_of([max(change for change, _ in found) for found in read] or [math.nan], of)
        row |= {f"mae_{name}": mean.value, f"mae_{name}_low": mean.low, f"mae_{name}_high": mean.high}
        short = [not any(reached for _, reached in found) for found in read]
        row[f"short_{name}"] = float(np.mean(short)) if short else math.nan
    return row


class Visibility(Kind):
    """Attacks on quality models, read where they are equally visible."""

    name = "visibility"
    place = 2
    columns = COLUMNS
    by = ()
    parts = "alone:"
    introduction = (
        "*At equal visibility*: the mean change of the score where an attack reaches the SSIM or the L-inf "
        "distance named, read for every image between the budgets it was run at (linear, from no change at "
        "budget 0; never less than at a smaller budget); > where most images stay less visible at the "
        "largest budget."
    )

    def takes(self, record: CellRecord) -> bool:
        return (
            record.task is Task.QUALITY and record.threat.geometry == "linf" and record.threat.eps is not None
        )

    def comparable(self, record: CellRecord) -> CellRecord:
        return replace(record, threat=replace(record.threat, eps=None))  # budgets are what is compared here

    def order(self, first: CellRecord) -> tuple[Any, ...]:
        return first.dataset, first.threat.goal, 0.0

    def title(self, first: CellRecord, rows: Sequence[Row]) -> str:
        n = max(row["n"] for row in rows)
        return f"{first.dataset} ({first.split}, n = {n}), {first.threat.goal}, at equal visibility"

    def rows(self, members: Sequence[CellRecord], shared: Shared) -> list[Row]:
        """Return a row for each attack with enough budgets, and one for all of them together."""
        del shared
        sources = {row.row: facts.source(record, row) for record in members for row in record.rows}
        rows = []
        for owner, records in by_owner(attacks_of(members)).items():
            attacks: dict[str, list[CellRecord]] = defaultdict(list)
            for record in records:
                attacks[facts.attack_name(record)].append(record)
            curves = {label: _curves(found) for label, found in sorted(attacks.items())}
            curves = {label: found for label, found in curves.items() if found}
            for label in [ALL, *curves] if curves else []:
                chosen = list(curves.values()) if label == ALL else [curves[label]]
                rows.append({"owner": owner, "attack": label, **_row(chosen, sources)})
        return rows

    def tables(self, section: Section, *, narrow: bool = False) -> list[Table]:
        """Return, for each visibility, the mean change under each attack: one column a victim and defense."""
        del narrow
        frame = section.frame
        names = list(dict.fromkeys(with_defense(row) for _, row in frame.iterrows()))
        cells = {(with_defense(row), row["attack"]): row for _, row in frame.iterrows()}
        attacks = sorted(set(frame["attack"]), key=lambda label: (label != ALL, label))
        made = []
        for name in LIMITS:
            rows = [
                [label, *(_cell(cells.get((owner, label)), name) for owner in names)] for label in attacks
            ]
            made.append(Table([f"MAE at {SHOWN[name]} under", *names], rows))
        return made


def _cell(row: pd.Series[Any] | None, name: str) -> str:
    if row is None:
        return "-"
    text = span(row, f"mae_{name}") if row["attack"] == ALL else figure(row[f"mae_{name}"], 1)
    return ">" * bool(row[f"short_{name}"] > 0.5) + text
