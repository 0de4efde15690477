"""Which records and which order a reader asks for. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.fields import FIELDS
from robustspike.leaderboard.fields import passes
from robustspike.leaderboard.sections import Section


def chosen(
    records: Iterable[CellRecord], only: Sequence[tuple[str, str]], *, option: str = "--only"
) -> list[CellRecord]:
    """Return the records that pass filters: for every field that is named, one of its patterns.

    Args:
        records: finished cells.
        only: (field, shell-style pattern); a name written out matches itself, of weights
            and key the first digits do.
        option: what messages call the filters.

    Raises: ConfigError: a field is unknown, or nothing passes.
    """
    wanted: dict[str, list[str]] = defaultdict(list)
    for field, pattern in only:
        if field not in FIELDS:
            hint = did_you_mean(field, FIELDS)
            raise ConfigError(f"{option} {field}=...: unknown field.{hint} Fields: {', '.join(FIELDS)}.")
        wanted[field].append(pattern)
    known = list(records)
    found = [r for r in known if all(passes(r, field, patterns) for field, patterns in wanted.items())]
    if known and not found:
        said = " ".join(f"{option} {field}={pattern}" for field, pattern in only)
        raise ConfigError(f"{said}: none of the {len(known)} records passes. Drop or loosen a filter.")
    return found


def sort_sections(sections: Sequence[Section], key: str) -> list[Section]:
    """Return the sections with rows sorted by a column, in those that have it.

    Args:
        sections: the tables.
        key: "COLUMN" from small to large, or "COLUMN:desc" from large to small; what was not measured comes
            last.

    Raises: ConfigError: no section has the column, or the order is neither asc nor desc.
    """
    column, _, order = key.rpartition(":") if key.endswith((":asc", ":desc")) else (key, "", "asc")
    known = sorted({str(name) for section in sections for name in section.frame.columns})
    if column not in known:
        raise ConfigError(
            f"--sort {key}: no table has this column.{did_you_mean(column, known)} "
            f"Expected COLUMN or COLUMN:desc; columns: {', '.join(known)}."
        )
    return [
        replace(section, frame=_sorted(section, column, descending=order == "desc")) for section in sections
    ]


def _sorted(section: Section, column: str, *, descending: bool) -> pd.DataFrame:
    if column not in section.frame.columns:
        return section.frame
    return section.frame.sort_values(
        column, ascending=not descending, kind="stable", na_position="last", ignore_index=True
    )
