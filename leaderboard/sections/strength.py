"""Attacks on quality models at equal strength: what each does once scaled to one PSNR, or to one SSIM."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard import metrics
from robustspike.leaderboard.owners import by_owner
from robustspike.leaderboard.sections.base import Row
from robustspike.leaderboard.sections.base import ScoreKind
from robustspike.leaderboard.sections.base import Section
from robustspike.leaderboard.sections.base import Shared
from robustspike.leaderboard.sections.quality import attacks_of
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import figure
from robustspike.leaderboard.text import span
from robustspike.leaderboard.text import with_defense

SHOWN = {"psnr40": "PSNR 40 dB", "psnr35": "PSNR 35 dB", "ssim99": "SSIM 0.99"}

ALL = "all attacks"

COLUMNS = {
    "n": "images",
    "attack": "label, or all attacks: each image under the one that moves it farthest",
    **{
        f"mae_{name}{end}": f"{what} |scaled attack - clean| at {shown}"
        for name, shown in SHOWN.items()
        for end, what in (
            ("", "mean"),
            ("_low", "lower end of the 95 % interval of mean"),
            ("_high", "upper end of the interval of mean"),
        )
    },
    **{
        f"short_{name}": f"share of images whose change cannot be scaled to {shown}; they count as unmoved"
        for name, shown in SHOWN.items()
    },
    "flags": "none: those of the tables at one budget hold",
}

Moved = dict[int, dict[str, float]]
"""Image -> strength -> |scaled attack - clean|, NaN where it cannot be scaled to that."""


def _moved(records: Sequence[CellRecord]) -> Moved:
    """Return how far one attack moves every image at every strength; of several seeds the farthest counts."""
    found: Moved = {}
    for record in records:
        for row in record.rows:
            if row.status is Status.ERROR or not any(f"score_{name}" in row.extras for name in SHOWN):
                continue
            changes = {
                name: abs(row.extras.get(f"score_{name}", math.nan) - row.clean_score) for name in SHOWN
            }
            found[row.row] = _farther(found.get(row.row, changes), changes)
    return found


def _farther(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: float(np.fmax(one[name], other[name])) for name in SHOWN}


def _row(chosen: Sequence[Moved], sources: Mapping[int, float]) -> Row:
    images = sorted(set.intersection(*(set(moved) for moved in chosen)))
    row: Row = {"n": len(images), "flags": ""}
    for name in SHOWN:
        far = [float(np.fmax.reduce([moved[i][name] for moved in chosen])) for i in images]
        counted = [0.0 if math.isnan(value) else value for value in far]
        mean = metrics.mean_of(counted or [math.nan], [sources[i] for i in images] or None)
        row |= {f"mae_{name}": mean.value, f"mae_{name}_low": mean.low, f"mae_{name}_high": mean.high}
        row[f"short_{name}"] = float(np.mean(np.isnan(far))) if far else math.nan
    return row


class Strength(ScoreKind):
    """Attacks on quality models, each scaled to the same strength before it is compared."""

    name = "strength"
    place = 3
    columns = COLUMNS
    by = ()
    parts = "alone:"
    introduction = (
        "*At equal strength*: the change that an attack made of an image, scaled until the image has the "
        "PSNR or SSIM named, and answered afresh. Attacks that use little of the budget are made stronger, "
        "beyond the budget too, others weaker; an image that an attack left alone counts as unmoved, and > "
        "says that more than half are. The budget in the title is the one that attacks were run at."
    )

    def takes(self, record: CellRecord) -> bool:
        return record.task is Task.QUALITY

    def title(self, first: CellRecord, rows: Sequence[Row]) -> str:
        return f"{super().title(first, rows)}, at equal strength"

    def rows(self, members: Sequence[CellRecord], shared: Shared) -> list[Row]:
        """Return a row for each attack whose scaled scores are on record, and one for all of them."""
        del shared
        sources = {row.row: facts.source(record, row) for record in members for row in record.rows}
        rows = []
        for owner, records in by_owner(members).items():
            attacks: dict[str, list[CellRecord]] = defaultdict(list)
            for record in records:
                attacks[facts.attack_name(record)].append(record)
            real = {facts.attack_name(record) for record in attacks_of(records)}
            moved = {label: _moved(found) for label, found in sorted(attacks.items())}
            moved = {label: found for label, found in moved.items() if found}
            together = [found for label, found in moved.items() if label in real]
            for label in [ALL] * bool(together) + list(moved):
                chosen = together if label == ALL else [moved[label]]
                rows.append({"owner": owner, "attack": label, **_row(chosen, sources)})
        return rows

    def tables(self, section: Section, *, narrow: bool = False) -> list[Table]:
        """Return, for each strength, the mean change under each attack: one column a victim and defense."""
        del narrow
        frame = section.frame
        names = list(dict.fromkeys(with_defense(row) for _, row in frame.iterrows()))
        cells = {(with_defense(row), row["attack"]): row for _, row in frame.iterrows()}
        made = []
        for name, shown in SHOWN.items():
            best = frame.groupby("attack")[f"mae_{name}"].mean()
            attacks = sorted(best.index, key=lambda label: (label != ALL, -best[label], label))
            rows = [
                [label, *(_cell(cells.get((owner, label)), name) for owner in names)] for label in attacks
            ]
            made.append(Table([f"MAE at {shown} under", *names], rows))
        return made


def _cell(row: pd.Series[Any] | None, name: str) -> str:
    if row is None:
        return "-"
    text = span(row, f"mae_{name}") if row["attack"] == ALL else figure(row[f"mae_{name}"], 1)
    return ">" * bool(row[f"short_{name}"] > 0.5) + text
