"""One experiment, by names and plain parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.fitting import misfit
from robustspike.bench.contract.registry import Registry
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec

Params = tuple[tuple[str, Any], ...]
"""Changed parameters, sorted by name; hashable."""


@dataclass(frozen=True)
class Cell:
    """One experiment, by names and plain parameters, so that it travels to a worker process.

    Where `certify` is set, `attack` and its parameters name a certifier, and nothing is attacked. Where
    `compiled` is set, the attack asks the victim through torch.compile.
    """

    victim: str
    victim_params: Params
    victim_seed: int
    defense: str
    attack: str
    attack_params: Params
    threat: ThreatModel
    dataset: str
    split: str
    samples: int
    shard: int
    seed: int
    certify: bool = False
    compiled: bool = False

    @property
    def kind(self) -> str:
        """The kind of component that `attack` names."""
        return "certifiers" if self.certify else "attacks"

    @property
    def rules(self) -> Registry:
        """The registry that `attack` is a name in."""
        return registry(self.kind)

    @property
    def label(self) -> str:
        """The attack's name in tables, with its changed parameters."""
        return label_of(self.attack, dict(self.attack_params)) + " compiled" * self.compiled

    @property
    def victim_label(self) -> str:
        """The victim's name in tables, with its changed parameters and training seed."""
        return victim_label(self.victim, self.victim_params, self.victim_seed)

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


def victim_label(name: str, params: Params, seed: int) -> str:
    """Name a victim with changed parameters and its training seed: "lif_cnn.digits[tau=4.0]@1"."""
    return label_of(name, dict(params)) + (f"@{seed}" if seed else "")


def frozen(params: Mapping[str, Any]) -> Params:
    """Return changed parameters as a sorted, hashable tuple."""
    return tuple((key, _fixed(params[key])) for key in sorted(params))


def _fixed(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_fixed, value))
    return Table(value) if isinstance(value, dict) else value


def fits(attack: Attack, threat: ThreatModel, spec: VictimSpec) -> bool:
    """Say whether an attack can be run on a victim under a threat model (its access left aside)."""
    return misfit(attack, threat, spec) is None
