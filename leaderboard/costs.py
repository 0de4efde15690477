"""What a defense costs and buys, against the same victim without one in the same section."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import pandas as pd

from robustspike.bench.record.schema import CellRecord

NAN = float("nan")

INTRODUCTION = (
    "*What a defense buys and costs* is relative to the same victim without defense in the same table: "
    "percentage points gained, clean energy, and the forward and backward passes of its training over those "
    "of plain training, as its certificate of training says."
)

COLUMNS = {
    "clean_delta": "clean accuracy minus that of the same victim without defense in the same section",
    "training": "forward and backward sample passes of its training over those of plain training",
}


def training(records: Sequence[CellRecord]) -> float:
    """Return how many times plain training's passes the weights took; NaN where it is not on record."""
    declared = records[0].parameters.get("declared", {})
    passes = declared.get("training_passes", {}) if isinstance(declared, Mapping) else {}
    own, plain = (passes.get(name) if isinstance(passes, Mapping) else None for name in ("own", "plain"))
    if not isinstance(own, int) or not isinstance(plain, int) or plain < 1:
        return NAN
    return own / plain


def add_delta(rows: Sequence[dict[str, Any]]) -> None:
    """Fill in "clean_delta" of every row: NaN where the section lacks the undefended victim."""
    plain = {row["victim"]: row["clean"] for row in rows if row["defense"] == "none"}
    for row in rows:
        row["clean_delta"] = row["clean"] - plain.get(row["victim"], NAN)


def gains(frame: pd.DataFrame, result: str) -> list[dict[str, Any]]:
    """List the defended rows of a section: victim, defense, clean_delta, training, energy, result.

    "energy" is the ratio of clean energies, "result" the difference of a column, both to the undefended
    victim; NaN where the section lacks it.
    """
    plain = {row["victim"]: row for row in frame.to_dict("records") if row["defense"] == "none"}
    found = []
    for row in frame.to_dict("records"):
        if row["defense"] == "none":
            continue
        base = plain.get(row["victim"], {})
        found.append(
            {
                **{name: row[name] for name in ("victim", "defense", *COLUMNS)},
                "energy": row["energy_nj"] / base.get("energy_nj", NAN),
                "result": row[result] - base.get(result, NAN),
            }
        )
    return found
