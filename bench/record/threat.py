"""Threat models as JSON values."""

from __future__ import annotations

import dataclasses
from typing import Any

from robustspike.bench.contract.decode import decode
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.errors import ConfigError


def encode_threat(threat: ThreatModel) -> dict[str, Any]:
    """Return a threat model as JSON values; eps stays an exact fraction."""
    rounding = {"levels": threat.levels} if threat.levels else {}
    return rounding | {
        "domain": str(threat.domain),
        "geometry": threat.geometry,
        "eps": None if threat.eps is None else str(threat.eps),
        "bounds": list(threat.bounds),
        "access": str(threat.access),
        "budget": dataclasses.asdict(threat.budget),
        "goal": str(threat.goal),
    }


def decode_threat(value: Any) -> ThreatModel:
    """Return the threat model of a record's JSON values. Raises: ConfigError: a field is missing or wrong."""
    made: ThreatModel = decode(value, ThreatModel, "threat model")
    for name in ("geometry", "eps"):
        if name not in value:
            raise ConfigError(f"threat model: lacks '{name}'.")
    return made
