"""The types of record.json: a table is built from other people's files, so every field is checked first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated
from typing import Any

from robustspike.bench.contract.decode import Rule

_LONGEST = 500


def _is_line(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and (value.isprintable() or not value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_range(value: object) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)):
        return False
    low, high = value
    return math.isfinite(low) and math.isfinite(high) and low < high


def _are_measures(table: Mapping[str, Any]) -> bool:
    return all(_is_range(v) if name == "score_range" else _is_whole(v) for name, v in table.items())


def _are_declared(parameters: Mapping[str, Mapping[str, Any]]) -> bool:
    declared = parameters.get("declared", {})
    adaptive, notes = declared.get("adaptive", []), declared.get("notes", [])
    return (
        isinstance(adaptive, list)
        and all(map(_is_line, adaptive))
        and isinstance(notes, list)
        and all(isinstance(note, str) for note in notes)
        and _is_whole(declared.get("neurons", 0))
    )


def _with(*keys: str) -> Rule:
    return Rule(f"a table with {', '.join(keys)}", lambda table: set(keys) <= table.keys())


Line = Annotated[str, Rule(f"a line of at most {_LONGEST} characters", _is_line)]
Whole = Annotated[int, Rule("a whole number of less than 64 bits", _is_whole)]
Wholes = Mapping[str, Whole]
Cost = Annotated[Wholes, _with("attacked", "forwards", "backwards")]
Digests = Annotated[Mapping[str, Line], _with("weights", "data", "code", "samples")]
Measures = Annotated[
    Mapping[str, Any], Rule("a table of whole numbers, and score_range a pair of numbers", _are_measures)
]
Parameters = Annotated[
    Mapping[str, Mapping[str, Any]],
    Rule(
        "tables by name, of them `declared` with lists of texts (adaptive, notes) and a number (neurons)",
        _are_declared,
    ),
]
