"""Which cells of a suite a command asks for."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError
from robustspike.bench.suite.cell import Cell


def _check_filters(only: Sequence[tuple[str, str]]) -> None:
    """Check fields, and names that are written out. Raises: ConfigError: unknown, with the nearest known."""
    fields = ("victim", "defense", "attack", "dataset", "threat")
    for key, pattern in only:
        if key not in fields:
            hint = did_you_mean(key, fields)
            raise ConfigError(f"--only {key}=...: unknown field.{hint} Fields: {', '.join(fields)}.")
        if key == "threat" or any(sign in pattern for sign in "*?["):
            continue
        name = parse_call(pattern)[0].partition("@")[0]
        if key != "attack" or name not in registry("certifiers").names():
            registry(f"{key}s").entry(name)


def _passes(cell: Cell, only: Sequence[tuple[str, str]]) -> bool:
    values = {
        "victim": (cell.victim, cell.victim_label),
        "defense": (parse_call(cell.defense)[0], cell.defense),
        "attack": (cell.attack, cell.label),
        "dataset": (cell.dataset,),
        "threat": (cell.threat.label,),
    }
    return all(any(_matches(v, pattern) for v in values[key]) for key, pattern in only)


def _matches(value: str, pattern: str) -> bool:
    return value == pattern or fnmatch.fnmatchcase(value, pattern)


def _chosen(label: str, patterns: Sequence[str]) -> bool:
    """Say whether a threat's `attacks` name an attack; patterns that begin with "!" leave out."""
    without = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    among = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"] * bool(without)
    return any(_matches(label, p) for p in among) and not any(_matches(label, p) for p in without)
