"""What a defense costs and buys, against the same victim without one in the same section."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import pandas as pd

from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts

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
    own, plain = facts.training_passes(records[0])
    if not isinstance(own, int) or not isinstance(plain, int) or plain < 1:
        return NAN
    return own / plain


def undefended(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row of the same victim without defense: on the same weights, else the only one there is.

    Args:
        row: a row with "victim" and "weights".
        rows: the rows of its section.
    """
    plain = [other for other in rows if (other["victim"], other["defense"]) == (row["victim"], "none")]
    same = [other for other in plain if other["weights"] == row["weights"]]
    if same:
        return same[0]
    return plain[0] if len(plain) == 1 else None


def add_delta(rows: Sequence[dict[str, Any]]) -> None:
    """Fill in "clean_delta" of rows with an "owner": NaN where the section lacks the undefended victim."""
    known = [{**row, **row["owner"]._asdict()} for row in rows]
    for row, owned in zip(rows, known, strict=True):
        base = undefended(owned, known)
        row["clean_delta"] = NAN if base is None else row["clean"] - base["clean"]


def gains(frame: pd.DataFrame, result: str) -> list[dict[str, Any]]:
    """List the defended rows of a section: name, defense, clean_delta, training, energy, result.

    "energy" is the ratio of clean energies, "result" the difference of a column, both to the undefended
    victim; NaN where the section lacks it.
    """
    rows: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    found = []
    for row in rows:
        if row["defense"] == "none":
            continue
        base = undefended(row, rows) or {}
        found.append(
            {
                **{name: row[name] for name in ("name", "defense", *COLUMNS)},
                "energy": row["energy_nj"] / base.get("energy_nj", NAN),
                "result": row[result] - base.get(result, NAN),
            }
        )
    return found
