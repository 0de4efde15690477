"""Threat models as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Budget
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
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


def decode_threat(value: Mapping[str, Any]) -> ThreatModel:
    """Return the threat model of JSON (or TOML) values. Raises: ConfigError: a field is wrong."""
    known = {"domain", "geometry", "eps", "bounds", "access", "budget", "goal", "levels"}
    unknown = sorted(set(value) - known)
    if unknown:
        raise ConfigError(
            f"threat model: unknown key '{unknown[0]}'. Known keys: {', '.join(sorted(known))}."
        )
    try:
        eps = value.get("eps")
        low, high = value.get("bounds", (0.0, 1.0))
        budget = value.get("budget", {})
        return ThreatModel(
            domain=Domain(value.get("domain", "static")),
            geometry=str(value["geometry"]),
            eps=None if eps in (None, "min") else Fraction(str(eps)),
            bounds=(float(low), float(high)),
            access=Access(value.get("access", "white")),
            budget=Budget(**budget),
            goal=Goal(value.get("goal", "untargeted")),
            levels=int(value.get("levels", 0)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        what = str(error).rstrip(".")
        raise ConfigError(
            f"threat model {dict(value)!r}: {type(error).__name__}: {what}. Expected geometry, eps as "
            'a fraction such as "8/255" (or "min"), optionally domain, bounds, access, budget, goal, levels.'
        ) from error
