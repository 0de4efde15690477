"""The leaderboard as one JSON document with a versioned schema (`leaderboard.schema.json`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import pandas as pd

from robustspike.bench.files import sha256
from robustspike.bench.record.flags import FLAGS
from robustspike.bench.record.flags import Flag
from robustspike.bench.record.schema import PROTOCOL
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.board import NO_BOARD
from robustspike.leaderboard.board import Board
from robustspike.leaderboard.board import Edition
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections.base import IDENTITY
from robustspike.leaderboard.sections.base import STANDING
from robustspike.leaderboard.write import tidy
from robustspike.leaderboard.write.csv import DETAILS

VERSION = 1
"""Version of the document; a change that an old reader would misread raises it."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the document."""
    text = files("robustspike.leaderboard.write").joinpath("leaderboard.schema.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def document(
    sections: Sequence[Section],
    records: Iterable[CellRecord],
    about: Sequence[str] = (),
    only: Sequence[str] = (),
    *,
    board: Board = NO_BOARD,
    edition: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the whole leaderboard as JSON values.

    Numbers are numbers: null was not measured, "Infinity" is an infinite distance. See the schema for fields.

    Args:
        sections: the tables.
        records: the cells behind them.
        about: how the records were made, a line each.
        only: the filters that they passed.
        board: whose editions are listed.
        edition: the `edition_entry` that these tables are; None where they are none.
    """
    raised = sorted({flag for s in sections for flags in s.frame["flags"] for flag in flags.split()})
    return {
        "format": "robustspike-leaderboard",
        "version": VERSION,
        "protocol": PROTOCOL,
        "measured_by": list(about),
        **({"filter": list(only)} if only else {}),
        **({} if edition is None else {"edition": dict(edition)}),
        **({"editions": [_named(known) for known in board.editions]} if board.given else {}),
        "sections": [_section(section) for section in sections],
        "cells": [{name: _value(value) for name, value in cell.items()} for cell in tidy.cells(records)],
        "flags": {
            name: {
                "meaning": FLAGS[name].meaning,
                "advice": FLAGS[name].advice,
                "costs_rank": FLAGS[name].blocks,
            }
            for name in raised
        },
    }


def _named(edition: Edition) -> dict[str, Any]:
    return {"name": edition.name, "date": edition.date, "digest": edition.digest}


def edition_entry(edition: Edition, sections: Sequence[Section]) -> dict[str, Any]:
    """Return an edition's name, day and digest, and whether the tables are its own byte for byte."""
    return _named(edition) | {"reproduced": rows_digest(sections) == edition.digest}


def rows_digest(sections: Sequence[Section]) -> str:
    """Return the sha256 of the tables as rows.csv."""
    return sha256(tidy.to_csv(tidy.rows(sections), tidy.row_columns()).encode())


def _flag(flag: Flag) -> dict[str, Any]:
    return {"meaning": flag.meaning, "advice": flag.advice, "costs_rank": flag.blocks}


def _section(section: Section) -> dict[str, Any]:
    kind, parts = section.kind, section.part_columns
    fixed = [column for column in section.frame.columns if column not in parts]
    return {
        "kind": kind.name,
        "title": section.title,
        "protocol": section.protocol,
        **tidy.threat_of(section.first),
        "n": section.first.samples,
        "unit": section.reach.unit,
        "ranked_by": kind.by[0][0] if kind.by else None,
        "columns": {**IDENTITY, **kind.columns, **STANDING},
        "rows": [
            {
                **{column: _value(row[column]) for column in fixed},
                "attacks": {column.removeprefix(kind.parts): _value(row[column]) for column in parts},
            }
            for row in section.frame.to_dict("records")
        ],
        **{name: _frame(getattr(section, name)) for name in DETAILS},
    }


def _frame(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): _value(value) for name, value in row.items()} for row in frame.to_dict("records")]


def _value(value: Any) -> Any:
    value = tidy.plain(value)
    if isinstance(value, float):
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.9g}")
    return value


def to_json(found: Mapping[str, Any]) -> str:
    """Return a document as text: one line for each row, cell or step of a curve."""
    return "".join(json_pieces(found))


def json_pieces(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the text of `to_json` piece by piece: of many cells it is larger than they are."""
    yield from _text(found, 0)
    yield "\n"


def _text(value: Any, depth: int) -> Iterator[str]:
    """Yield a value on one line, or its members on lines of their own where a list is among them."""
    inner, close = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, Mapping) and any(isinstance(part, list) for part in value.values()):
        for number, (name, part) in enumerate(value.items()):
            yield f"{',' if number else '{'}{inner}{json.dumps(name)}: "
            yield from _text(part, depth + 1)
        yield close + "}"
    elif isinstance(value, list) and value:
        for number, part in enumerate(value):
            yield f"{',' if number else '['}{inner}"
            yield from _text(part, depth + 1)
        yield close + "]"
    else:
        yield json.dumps(value, allow_nan=False, ensure_ascii=False)
