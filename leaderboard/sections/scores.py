"""Certificates on quality models: how far the score, smoothed by noise, may move within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.flags import marked
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard import metrics
from robustspike.leaderboard.owners import owner_of
from robustspike.leaderboard.sections import certificates
from robustspike.leaderboard.sections.base import Row
from robustspike.leaderboard.sections.base import ScoreKind
from robustspike.leaderboard.sections.base import Section
from robustspike.leaderboard.sections.base import Shared
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import figure
from robustspike.leaderboard.text import number
from robustspike.leaderboard.text import share
from robustspike.leaderboard.text import span
from robustspike.leaderboard.text import with_defense

COLUMNS = {
    "certified_by": "the certifier, with its changed parameters",
    "n": "images",
    "sources": "photographs that they were made from; images of one are not independent",
    "norm": "the norm of its radius",
    "radius": "how far an image may be moved in that norm: a ball that holds the budget's",
    "confidence": "probability that both bounds of an image hold",
    "draws": "passes of the model for each image",
    "srocc_plain": "rank correlation of (pseudo-)MOS and the plain score, of one pass",
    "srocc_smoothed": "rank correlation of MOS and the certified model's answer",
    "change": "mean certified change: no image within the budget is answered farther from the clean answer",
    "change_low": "lower end of its 95 % Student interval over sources",
    "change_high": "upper end of it",
    "change_share": "the same as a share of the score range",
    "certified": "share of images whose certified change is at most a tenth of the range",
    "certified_low": "lower end of its 95 % Wilson interval, for as many images as these are worth",
    "certified_high": "upper end of it",
    "unbounded": "share of images without bounds: too few draws for the radius; they are not in the mean",
    "flags": "signs that the evaluation is incomplete or misleading",
}


def changes(record: CellRecord) -> dict[int, float]:
    """Return the certified change of every image that has bounds, the way the goal of its budget wants it."""
    found = {}
    for row in record.rows:
        at = _answer(row)
        up = row.extras.get("certified_high", math.nan) - at
        down = at - row.extras.get("certified_low", math.nan)
        change = {Goal.RAISE: up, Goal.LOWER: down}.get(record.threat.goal, max(up, down))
        if not math.isnan(change):
            found[row.row] = change
    return found


def _answer(row: SampleRecord) -> float:
    return row.extras.get("certified_score", math.nan)


def _row(record: CellRecord) -> Row:
    low, high = (float(end) for end in record.measures.get("score_range", (0.0, 1.0)))
    bounds = changes(record)
    usable = [row for row in record.rows if row.status is not Status.ERROR]
    bounded = [row for row in usable if row.row in bounds]
    labels, sources = (
        np.array([of(row) for row in bounded])
        for of in (lambda row: row.label, lambda row: facts.source(record, row))
    )
    safe = [row.status is Status.ROBUST for row in usable]
    certified = metrics.share_of(safe, np.array([facts.source(record, row) for row in usable]))
    mean = metrics.mean_of([bounds[row.row] for row in bounded] or [math.nan], sources if bounded else None)
    stated = certificates.stated(record)
    return {
        "certified_by": record.label,
        "n": record.counts["n"],
        "sources": len(np.unique(sources)),
        "norm": str(stated.get("norm", "")),
        "radius": max((row.extras.get("radius", -1.0) for row in bounded), default=math.nan),
        "confidence": certificates.confidence(record),
        "draws": max((row.forwards for row in usable), default=0),
        "srocc_plain": _srocc([row.clean_score for row in bounded], labels),
        "srocc_smoothed": _srocc([_answer(row) for row in bounded], labels),
        "change": mean.value,
        "change_low": mean.low,
        "change_high": mean.high,
        "change_share": mean.value / (high - low),
        "certified": certified.value,
        "certified_low": certified.low,
        "certified_high": certified.high,
        "unbounded": 1 - len(bounded) / len(usable) if usable else math.nan,
        "flags": " ".join(sorted(cell_flags(record.measures, record.counts))),
    }


def _srocc(scores: Sequence[float], labels: Any) -> float:
    return metrics.srocc(np.array(scores), labels) if len(scores) > 1 else math.nan


class CertifiedScores(ScoreKind):
    """Certificates on quality models, at one budget."""

    name = "scores"
    place = 4
    columns = COLUMNS
    by = ()
    parts = "alone:"
    introduction = (
        "*Certified scores*: the model answers with the median of its score under Gaussian noise, and no "
        "image within the budget is answered farther from the clean answer than the certified change, with "
        "the confidence stated for each image. That smoothed model is another one than attacked tables show: "
        "it takes as many passes as named, and ranks images by its own SROCC. *Certified* is the share of "
        "images whose certified change is at most a tenth of the range, which is where attacks count as "
        "successes. These rows have no rank."
    )

    def takes(self, record: CellRecord) -> bool:
        return certificates.of_scores(record)

    def title(self, first: CellRecord, rows: Sequence[Row]) -> str:
        return f"{super().title(first, rows)}, certified scores"

    def rows(self, members: Sequence[CellRecord], shared: Shared) -> list[Row]:
        del shared
        ordered = sorted(members, key=lambda record: (record.label, record.seed))
        return [{"owner": owner_of(record), **_row(record)} for record in ordered]

    def tables(self, section: Section, *, narrow: bool = False) -> list[Table]:
        headers = ["victim, certified by", "certified change [95 %]", "certified %", "SROCC", "smoothed"]
        headers += ["radius", "passes"] + ([] if narrow else ["no bounds %", "confidence"]) + ["flags"]
        rows = [
            [
                f"{with_defense(row)}, {row['certified_by']}",
                span(row, "change"),
                share(row, "certified"),
                figure(row["srocc_plain"]),
                figure(row["srocc_smoothed"]),
                f"{row['norm']} {number(row['radius'])}",
                f"{row['draws']:.0f}",
                *([] if narrow else [figure(100 * row["unbounded"], 0), f"{row['confidence']:.6g}"]),
                marked(str(row["flags"])),
            ]
            for _, row in section.frame.iterrows()
        ]
        return [Table(headers, rows)]
