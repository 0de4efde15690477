"""The types of record.json: a table is built from other people's files, so every field is checked first."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

_LONGEST = 500
_REQUIRED = {"cost": ("attacked", "forwards", "backwards"), "digests": ("weights", "data", "code", "samples")}


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and (value.isprintable() or not value)


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _range(value: object) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)):
        return False
    low, high = value
    return math.isfinite(low) and math.isfinite(high) and low < high


def _message(value: object) -> bool:
    return isinstance(value, str)


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(
        ("key", "suite", "suite_digest", "victim", "defense", "attack", "label", "dataset", "split"),
        (_text, f"a line of at most {_LONGEST} characters"),
    ),
    **dict.fromkeys(("suite_version", "samples", "shard", "seed"), (_number, "a whole number")),
}
_LISTS = {"flags": (_text, "codes"), "errors": (_message, "messages")}
_TABLES = {
    "counts": (_number, "whole numbers"),
    "cost": (_number, "whole numbers"),
    "digests": (_text, "digests"),
    "environment": (_text, "lines"),
}
_DECLARED = {"adaptive": _text, "notes": _message}


def check_record(value: Mapping[str, Any]) -> None:
    """Check the types of a record's fields; one that is missing has its default, or is found missing later.

    Raises: TypeError: naming the field, what was expected and what came.
    """
    for name, (fits, what) in _FIELDS.items():
        if name in value and not fits(value[name]):
            raise TypeError(f"{name} must be {what}, got {_short(value[name])}")
    for name, (fits, what) in _LISTS.items():
        if name in value and not (isinstance(value[name], list) and all(map(fits, value[name]))):
            raise TypeError(f"{name} must be a list of {what}, got {_short(value[name])}")
    for name, (fits, what) in _TABLES.items():
        table = value.get(name, {})
        if not isinstance(table, dict) or not all(fits(entry) for entry in table.values()):
            raise TypeError(f"{name} must be a table of {what}, got {_short(table)}")
        for key in _REQUIRED.get(name, ()):
            if name in value and key not in table:
                raise TypeError(f"{name} lacks '{key}'")
    measures = value.get("measures", {})
    scores = measures.get("score_range", [0, 1]) if isinstance(measures, dict) else None
    if not _range(scores) or not all(_number(n) for key, n in measures.items() if key != "score_range"):
        raise TypeError(f"measures must be whole numbers, and score_range a pair, got {_short(measures)}")
    parameters = value.get("parameters", {})
    parts: dict[str, Any] = parameters if isinstance(parameters, dict) else {"": None}
    for key, part in parts.items():
        if not isinstance(part, dict):
            raise TypeError(f"parameters must be tables by name, got {_short(parameters)} at '{key[:40]}'")
    declared = parts.get("declared", {})
    for name, fits_one in _DECLARED.items():
        if not (isinstance(declared.get(name, []), list) and all(map(fits_one, declared.get(name, [])))):
            raise TypeError(f"declared {name} must be a list of texts, got {_short(declared[name])}")
    if not _number(declared.get("neurons", 0)):
        raise TypeError(f"declared neurons must be a whole number, got {_short(declared['neurons'])}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
