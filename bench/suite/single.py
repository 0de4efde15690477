"""The suite of one cell: how a record is measured again by a command that anyone can type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from robustspike.bench.contract.specs import Budget
from robustspike.bench.errors import ConfigError
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.cell import label_of

_NEVER_CHOSEN = "noise"
"""A suite of a certificate must name an attack too; its threat leaves this one out."""


def suite_text(cell: Cell, name: str) -> str:
    """Return a suite file that asks for one cell alone. Raises: ConfigError: TOML cannot say it."""
    threat = cell.threat
    asked = {"name": cell.attack, "params": dict(cell.attack_params)}
    under: dict[str, Any] = {
        "geometry": threat.geometry,
        "domain": str(threat.domain),
        "eps": "min" if threat.eps is None else str(threat.eps),
        "goal": str(threat.goal),
        "bounds": list(threat.bounds),
        "attacks": [label_of(cell.attack, dict(cell.attack_params))],
    }
    under |= {"levels": threat.levels} if threat.levels else {}
    if threat.budget != Budget():
        under["budget"] = {"forwards": threat.budget.forwards, "backwards": threat.budget.backwards}
    victim = {"name": cell.victim, "params": dict(cell.victim_params), "defenses": [cell.defense]}
    tables = [("threats", under), ("victims", victim | {"seeds": [cell.victim_seed]})]
    tables += (
        [("attacks", {"name": _NEVER_CHOSEN}), ("certify", asked)] if cell.certify else [("attacks", asked)]
    )
    lines = [f"name = {_toml(name)}", f"samples = {cell.samples}", f"shard = {cell.shard}"]
    lines += [f"seeds = [{cell.seed}]", f"split = {_toml(cell.split)}"]
    for title, table in tables:
        lines += ["", f"[[{title}]]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{json.dumps(str(key))} = {_toml(part)}" for key, part in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    raise ConfigError(f"parameter {value!r}: a suite file cannot say it. Use robustspike verify --rerun.")
