"""Sections to CSV files: tidy ones, and one wide table with a column for every attack."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence

import pandas as pd

from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.write import tidy

DETAILS = ("attacks", "curves", "certificates")


def tidy_csv(sections: Sequence[Section], records: Iterable[CellRecord]) -> dict[str, str]:
    """Return the tidy files by name: rows, cells, and what `details_csv` has."""
    return {
        "rows": tidy.to_csv(tidy.rows(sections), tidy.row_columns()),
        "cells": tidy.to_csv(tidy.cells(records), tidy.CELLS),
        **details_csv(sections),
    }


def wide_csv(sections: Sequence[Section]) -> str:
    """Return one CSV of all sections: shares in [0, 1] with 6 digits, one column per attack."""
    if not sections:
        return ""
    frames = [section.frame.assign(section=section.title, protocol=section.protocol) for section in sections]
    whole = pd.concat(frames, ignore_index=True)
    for column in ("rank_low", "rank_high"):
        whole[column] = whole[column].astype("Int64")
    named = [column for column in tidy.row_columns() if column in whole.columns and column != "flags"]
    known = ["section", "protocol", *(column for column in named if column != "section")]
    attacks = sorted(column for column in whole.columns if column not in known and column != "flags")
    text: str = whole[[*known, *attacks, "flags"]].to_csv(
        index=False, float_format="%.6f", lineterminator="\n"
    )
    return text


def details_csv(sections: Sequence[Section]) -> dict[str, str]:
    """Return what goes into files of their own, by name; empty where nothing does.

    "attacks": one line an attack (`spikes.COLUMNS`). "curves": one line a step of the curve of success
    over budget (`spikes.CURVE_COLUMNS`). "certificates": one line a certificate (`certificates.FRAME`).
    """
    found = {}
    for name in DETAILS:
        frames = [(s.title, getattr(s, name)) for s in sections if len(getattr(s, name))]
        if frames:
            whole = pd.concat([f.assign(section=title) for title, f in frames], ignore_index=True)
            ordered = whole[["section", *(c for c in whole.columns if c != "section")]]
            found[name] = str(ordered.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    return found
