"""Suite files: what a benchmark asks for, as written."""

from __future__ import annotations

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from fractions import Fraction
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import Literal

from robustspike.bench.contract.decode import Count
from robustspike.bench.contract.decode import Positive
from robustspike.bench.contract.decode import Rule
from robustspike.bench.contract.decode import decode
from robustspike.bench.contract.specs import Budget
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.schema import digest

MAX_SUITE_BYTES = 1 << 20

Size = Annotated[Fraction, Rule('a fraction of 0 or more such as "8/255"', lambda eps: eps >= 0)]
Seeds = Annotated[tuple[Count, ...], Rule("a list of whole numbers of 0 or more, such as [0]", len)]


@dataclass(frozen=True, kw_only=True)
class ThreatEntry:
    """A [[threats]] table: a threat model, and what is measured under it.

    Args:
        geometry, domain, goal, levels, budget: see `ThreatModel`; its access is what an attack needs.
        eps: the exact budget, or "min" for attacks that minimise the distance.
        bounds: the legal range of inputs; None for the victim's own.
        attacks: patterns of attack labels; those that begin with "!" leave out.
        samples: samples of these cells, instead of the suite's.
    """

    geometry: str
    eps: Size | Literal["min"] = "min"
    domain: Domain = Domain.STATIC
    bounds: tuple[float, float] | None = None
    goal: Goal = Goal.UNTARGETED
    levels: Count = 0
    budget: Budget = field(default_factory=Budget)
    attacks: tuple[str, ...] = ("*",)
    samples: Positive | None = None

    def model(self, spec: VictimSpec) -> ThreatModel | None:
        """Return the threat model for a victim, or None where the domains differ."""
        if self.domain is not spec.domain:
            return None
        low, high = self.bounds or spec.bounds
        return ThreatModel(
            domain=self.domain,
            geometry=self.geometry,
            eps=None if isinstance(self.eps, str) else self.eps,
            bounds=(float(low), float(high)),
            budget=self.budget,
            goal=self.goal,
            levels=self.levels,
        )


@dataclass(frozen=True, kw_only=True)
class VictimEntry:
    """A [[victims]] table: victims by name or pattern, their defenses and training seeds."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    defenses: tuple[str, ...] = ("none",)
    seeds: Seeds = (0,)


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """An [[attacks]] or [[certify]] table: attacks or certifiers by name or pattern, parameters changed."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SuiteText:
    """A suite file as written; lists are in file order.

    Args:
        name, version, description: for people; the name is by default that of the file.
        samples, shard: samples of a cell, and how many of them are computed at once.
        seeds: root seeds of the attacks.
        split: the part of the data sets.
        threats, victims, attacks, certify: what is measured: all that fits together.
    """

    name: str
    threats: Annotated[tuple[ThreatEntry, ...], Rule("at least one [[threats]] table", len)]
    victims: Annotated[tuple[VictimEntry, ...], Rule("at least one [[victims]] table", len)]
    attacks: Annotated[tuple[AttackEntry, ...], Rule("at least one [[attacks]] table", len)]
    certify: Annotated[tuple[AttackEntry, ...], Rule("at least one [[certify]] table", len)] = ()
    version: Positive = 1
    description: str = ""
    samples: Positive = 250
    shard: Positive = 125
    seeds: Seeds = (0,)
    split: Literal["train", "validation", "test"] = "test"


@dataclass(frozen=True, kw_only=True)
class Suite(SuiteText):
    """A suite file and the digest of its content."""

    digest: str


def shipped_suites() -> list[str]:
    """List the suites that come with the package."""
    folder = importlib.resources.files("robustspike.bench.suites")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def read_suite(name: str) -> Suite:
    """Read a shipped suite by name, or a TOML file by path.

    Raises: ConfigError: unknown name, unreadable file, unknown or missing keys, wrong types.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        try:
            if path.stat().st_size > MAX_SUITE_BYTES:
                raise ConfigError(f"suite '{name}': larger than {MAX_SUITE_BYTES} bytes. It is not a suite.")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"suite '{name}': cannot be read: {error}. Give a TOML file.") from error
    else:
        known = shipped_suites()
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"unknown suite '{name}'.{hint} Suites: {', '.join(known)}; or give the path of a .toml file."
            )
        text = (importlib.resources.files("robustspike.bench.suites") / f"{name}.toml").read_text("utf-8")
    try:
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"suite '{name}': not valid TOML: {error}.") from error
    return parse_suite(value, name)


def parse_suite(value: Mapping[str, Any], where: str) -> Suite:
    """Return the suite that a table says, as read from a file. Raises: ConfigError."""
    text: SuiteText = decode({"name": Path(where).stem, **value}, SuiteText, f"suite '{where}'")
    written = {part.name: getattr(text, part.name) for part in dataclasses.fields(text)}
    return Suite(**written, digest=digest(_jsonable(value)))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, bool | int | str) else str(value)
