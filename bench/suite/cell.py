"""One experiment, by names and plain parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustspike.bench.attack.contract import Attack
from robustspike.bench.contract.registry import Registry
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec


@dataclass(frozen=True)
class Cell:
    """One experiment, by names and plain parameters, so that it travels to a worker process.

    Where `certify` is set, `attack` and its parameters name a certifier, and nothing is attacked.
    """

    victim: str
    victim_params: tuple[tuple[str, Any], ...]
    victim_seed: int
    defense: str
    attack: str
    attack_params: tuple[tuple[str, Any], ...]
    threat: ThreatModel
    dataset: str
    split: str
    samples: int
    shard: int
    seed: int
    certify: bool = False

    @property
    def rules(self) -> Registry:
        """The registry that `attack` is a name in."""
        return registry("certifiers" if self.certify else "attacks")

    @property
    def label(self) -> str:
        """The attack's name in tables, with its changed parameters."""
        return label_of(self.attack, dict(self.attack_params))

    @property
    def victim_label(self) -> str:
        """The victim's name in tables, with its changed parameters and training seed."""
        seed = f"@{self.victim_seed}" if self.victim_seed else ""
        return label_of(self.victim, dict(self.victim_params)) + seed

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard)


@dataclass(frozen=True)
class NotApplicable:
    """A pair that does not fit, shown as n/a with its reason."""

    victim: str
    defense: str
    reason: str


def label_of(name: str, params: Mapping[str, Any]) -> str:
    """Name a component with changed parameters: "pgd.linf[estimator=pdsg]"."""
    inside = ",".join(f"{key}={value}" for key, value in sorted(params.items()))
    return f"{name}[{inside}]" if inside else name


class Table(dict[str, Any]):
    """A table among parameters, {"epochs": 1}: hashable, for nothing changes it any more."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozen(self))


def frozen(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return changed parameters as a sorted, hashable tuple."""
    return tuple((key, _fixed(params[key])) for key in sorted(params))


def _fixed(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_fixed, value))
    return Table(value) if isinstance(value, dict) else value


def fits(attack: Attack, threat: ThreatModel, spec: VictimSpec) -> bool:
    """Say whether an attack can be run on a victim under a threat model (its access left aside)."""
    known = attack.spec
    refuses = getattr(attack, "fits", None)  # optional: why the attack cannot run on a victim
    if callable(refuses) and refuses(spec) is not None:
        return False
    return (
        threat.geometry in known.geometries
        and threat.domain in known.domains
        and spec.task in known.tasks
        and threat.goal in known.goals
        and (known.minimum_norm or not threat.is_minimum_norm)
    )
