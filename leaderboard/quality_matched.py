"""Attacks on quality models at equal visibility: what each achieves at one SSIM, and at one L-inf distance.

A budget says how far a pixel may go, not how much of it an attack uses. Here the records of one attack at
several budgets form a curve for every image, and the curves are read at the same visibility.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import protocol
from robustspike.leaderboard import quality
from robustspike.leaderboard.quality_table import attacks_of
from robustspike.leaderboard.quality_table import figure
from robustspike.leaderboard.table import Section

LEAST_BUDGETS = 3
"""Budgets that an attack needs for a curve."""

LIMITS = {"ssim": 1 - quality.HIDDEN["ssim"], "linf": 2 / 255}
"""Where the curves are read: lost SSIM, and L-inf distance."""

SHOWN = {"ssim": f"SSIM {quality.HIDDEN['ssim']:g}", "linf": "L-inf 2/255"}

ALL = "all attacks"

COLUMNS = {
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
}

INTRODUCTION = (
    "*At equal visibility*: the mean change of the score where an attack reaches the SSIM or the L-inf "
    "distance named, read for every image between the budgets it was run at (linear, from no change at "
    "budget 0; never less than at a smaller budget); > where most images stay less visible at the largest "
    "budget."
)


def sections(records: Iterable[CellRecord]) -> list[Section]:
    """Build one table for each data set, goal, rounding and shard size with enough budgets."""
    unique = {record.key: record for record in records if record.task is Task.QUALITY}
    apart = protocol.competing(unique.values())
    grouped: dict[tuple[str, ...], list[CellRecord]] = defaultdict(list)
    for record in (unique[key] for key in sorted(unique)):
        threat = record.threat
        if threat.geometry == "linf" and threat.eps is not None:
            free = replace(record, threat=replace(threat, eps=None))  # budgets are what is compared here
            grouped[protocol.rules(free, apart)].append(record)
    made = []
    for key in sorted(grouped):
        frame = _frame(grouped[key])
        if len(frame):
            first = grouped[key][0]
            title = f"{key[0]} ({key[1]}, n = {frame['n'].max()}), {first.threat.goal}, at equal visibility"
            title += protocol.remarks(first, apart)
            made.append(Section(title, "visibility", frame, protocol=protocol.line(grouped[key])))
    return made


def _frame(members: Sequence[CellRecord]) -> pd.DataFrame:
    owners: dict[tuple[str, str], dict[str, list[CellRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in attacks_of(members):
        owners[(record.victim, record.defense)][record.label].append(record)
    rows = []
    for (victim, defense), attacks in sorted(owners.items()):
        curves = {label: _curves(found) for label, found in sorted(attacks.items())}
        curves = {label: found for label, found in curves.items() if found}
        for label in [ALL, *curves] if curves else []:
            chosen = list(curves.values()) if label == ALL else [curves[label]]
            rows.append({"victim": victim, "defense": defense, "attack": label, **_row(chosen)})
    frame = pd.DataFrame(rows, columns=["victim", "defense", "n", *COLUMNS])
    frame.insert(0, "rank", None)
    frame["flags"] = ""
    return frame


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


def _row(chosen: Sequence[dict[int, Curve]]) -> dict[str, object]:
    images = sorted(set.intersection(*(set(curves) for curves in chosen)))
    row: dict[str, object] = {"n": len(images)}
    for axis, (name, limit) in enumerate(LIMITS.items()):
        read = [[change_at(curves[i], axis, limit) for curves in chosen] for i in images]
        mean = quality.mean_of([max(change for change, _ in found) for found in read] or [math.nan])
        row |= {f"mae_{name}": mean.value, f"mae_{name}_low": mean.low, f"mae_{name}_high": mean.high}
        short = [not any(reached for _, reached in found) for found in read]
        row[f"short_{name}"] = float(np.mean(short)) if short else math.nan
    return row


def tables(section: Section) -> list[tuple[list[str], list[list[str]]]]:
    """Return, for each visibility, the mean change under each attack: one column per victim and defense."""
    frame = section.frame
    owners = list(dict.fromkeys(zip(frame["victim"], frame["defense"], strict=True)))
    names = [victim + ("" if defense == "none" else f" + {defense}") for victim, defense in owners]
    cells = {(row["victim"], row["defense"], row["attack"]): row for _, row in frame.iterrows()}
    attacks = sorted(set(frame["attack"]), key=lambda label: (label != ALL, label))
    made = []
    for name in LIMITS:
        rows = [[label, *(_cell(cells.get((*owner, label)), name) for owner in owners)] for label in attacks]
        made.append(([f"MAE at {SHOWN[name]} under", *names], rows))
    return made


def _cell(row: pd.Series | None, name: str) -> str:  # type: ignore[type-arg]
    if row is None:
        return "-"
    text = (">" if row[f"short_{name}"] > 0.5 else "") + figure(row[f"mae_{name}"], 1)
    if row["attack"] == ALL:
        text += f" [{figure(row[f'mae_{name}_low'], 1)}, {figure(row[f'mae_{name}_high'], 1)}]"
    return text
