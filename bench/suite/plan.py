"""From a suite file to cells: what will be measured, and what does not fit and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustspike.bench.certify.base import cannot_certify
from robustspike.bench.certify.contract import Certifier
from robustspike.bench.contract.registry import Registry
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.threat import decode_threat
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.cell import NotApplicable
from robustspike.bench.suite.cell import fits
from robustspike.bench.suite.cell import frozen
from robustspike.bench.suite.cell import label_of
from robustspike.bench.suite.file import Suite
from robustspike.bench.suite.filters import _check_filters
from robustspike.bench.suite.filters import _chosen
from robustspike.bench.suite.filters import _matches
from robustspike.bench.suite.filters import _passes
from robustspike.bench.suite.loading import available
from robustspike.bench.suite.loading import victim_of
from robustspike.bench.training.defense import DefenseBase
from robustspike.bench.training.recipe import VictimRecipe
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import missing_weights


@dataclass(frozen=True)
class Plan:
    """What a suite asks for."""

    suite: Suite
    cells: tuple[Cell, ...]
    not_applicable: tuple[NotApplicable, ...]


def recipes_of(suite: Suite) -> list[VictimRecipe]:
    """List the victims that a suite names or matches, one for each embedded data set they use."""
    victims = registry("victims")
    found: dict[str, VictimRecipe] = {}
    for entry in suite.victims:
        for name in _expand(victims, entry["name"]):
            recipe: VictimRecipe = victims.get(name)
            if not recipe.data().needs_root:
                found.setdefault(recipe.dataset, recipe)
    return list(found.values())


def make_plan(
    suite: Suite,
    *,
    only: Sequence[tuple[str, str]] = (),
    samples: int | None = None,
    seed: int | None = None,
    weights: Path | None = None,
    root: Path | None = None,
) -> Plan:
    """List the cells of a suite.

    Args:
        suite: the suite.
        only: (field, glob) filters on victim, defense, attack, dataset or threat (its label).
        samples: use this many samples instead of the suite's.
        seed: use this attack seed instead of the suite's.
        weights: folder with more weights.
        root: folder of published data sets; victims whose data need one are n/a without it.

    Raises: ConfigError: unknown names or filters, or nothing left to measure.
    """
    _check_filters(only)
    cells: dict[Cell, None] = {}
    misfits: dict[NotApplicable, None] = {}
    victims = registry("victims")
    for entry in suite.victims:
        for name in _expand(victims, entry["name"]):
            params = frozen(entry.get("params", {}))
            recipe: VictimRecipe = victims.get(name, **dict(params))
            explicit = not _is_glob(entry["name"])
            for wanted in entry.get("defenses", ["none"]):
                for defense in _expand_defenses(wanted):
                    named = explicit and not _is_glob(wanted)
                    for trained in entry.get("seeds", [0]):
                        label = label_of(name, dict(params)) + (f"@{trained}" if trained else "")
                        if not all(
                            _matches(name, p) or _matches(label, p) for key, p in only if key == "victim"
                        ):
                            continue  # before its data are read
                        reason = _misfit(recipe, defense, trained, weights, root, named=named)
                        if reason:
                            misfits[NotApplicable(name, defense, reason)] = None
                            continue
                        found = _cells(suite, recipe, params, trained, defense, samples, seed, root)
                        kept = [cell for cell in found if _passes(cell, only)]
                        cells |= dict.fromkeys(cell for cell in kept if not cell.certify)
                        for cell in (cell for cell in kept if cell.certify):
                            reason = _uncertifiable(cell, weights)
                            if reason:
                                misfits[NotApplicable(name, defense, f"{cell.attack}: {reason}")] = None
                            else:
                                cells[cell] = None
    if not cells:
        detail = f" ({next(iter(misfits)).reason})" if misfits else ""
        raise ConfigError(
            f"suite '{suite.name}': nothing to measure{detail}. Check --only, and the suite's geometries, "
            "domains and data."
        )
    return Plan(suite, tuple(cells), tuple(misfits))


def _is_glob(pattern: str) -> bool:
    return "(" not in pattern and any(c in pattern for c in "*?[")


def _expand(known: Registry, pattern: str) -> list[str]:
    if _is_glob(pattern):
        return known.names(pattern)
    known.entry(pattern)
    return [pattern]


def _expand_defenses(pattern: str) -> list[str]:
    """List the defenses that a pattern matches; "name(key=value)" stands for itself."""
    known = registry("defenses")
    return [known.canonical(pattern)] if "(" in pattern else _expand(known, pattern)


def _misfit(
    recipe: VictimRecipe,
    defense: str,
    seed: int,
    weights: Path | None,
    root: Path | None,
    *,
    named: bool,
) -> str | None:
    rule: DefenseBase = registry("defenses").get(defense)
    if recipe.data().needs_root and root is None and not named:
        return f"data set '{recipe.dataset}' needs --data DIR"
    if root is not None and not named and not recipe.data().present(root):
        return f"data set '{recipe.dataset}' is not in {root}"
    reason = rule.fits(recipe)
    if reason:
        return reason
    if find_weights(recipe, defense, seed, weights) is None:
        if named:
            raise ConfigError(missing_weights(recipe, defense, seed))
        return "no trained weights: robustspike train" + (f" --seed {seed}" if seed else "")
    return None


def _cells(
    suite: Suite,
    recipe: VictimRecipe,
    params: tuple[tuple[str, Any], ...],
    trained: int,
    defense: str,
    samples: int | None,
    seed: int | None,
    root: Path | None,
) -> list[Cell]:
    spec = recipe.spec()
    found: dict[Cell, None] = {}
    for threat_entry in suite.threats:
        threat = _threat(threat_entry, spec)
        if threat is None:
            continue
        wanted = samples or threat_entry.get("samples", suite.samples)
        held = available(recipe.dataset, suite.split, root)
        for name, changed, certify in _rules(suite, threat, threat_entry.get("attacks", ["*"]), spec):
            granted = threat
            if not certify:  # an attack around another one needs what the inner one needs
                needed = registry("attacks").get(name, **changed).spec.access
                granted = dataclasses.replace(threat, access=needed)
            for number in suite.seeds if seed is None else (seed,):
                cell = Cell(
                    victim=recipe.name,
                    victim_params=params,
                    victim_seed=trained,
                    defense=defense,
                    attack=name,
                    attack_params=frozen(changed),
                    threat=granted,
                    dataset=recipe.dataset,
                    split=suite.split,
                    samples=min(wanted, held),
                    shard=suite.shard,
                    seed=number,
                    certify=certify,
                )
                found[cell] = None
    return list(found)


def _rules(
    suite: Suite, threat: ThreatModel, patterns: Sequence[str], spec: VictimSpec
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield the attacks that fit a threat, then the certifiers: name, changed parameters, certifier?"""
    for kind, entries in (("attacks", suite.attacks), ("certifiers", suite.certify)):
        known = registry(kind)
        for entry in entries:
            changed = entry.get("params", {})
            for name in _expand(known, entry["name"]):
                rule = known.get(name, **changed)
                if isinstance(estimator := getattr(rule, "estimator", None), str):
                    registry("estimators").get(estimator)  # a wrong name is told now, not by every cell
                certify = kind == "certifiers"
                if _chosen(label_of(name, changed), patterns) and (certify or fits(rule, threat, spec)):
                    yield name, changed, certify


def _uncertifiable(cell: Cell, weights: Path | None) -> str | None:
    """Say why a certifier does not apply to the victim of a cell, or None where it does."""
    certifier: Certifier = cell.rules.get(cell.attack, **dict(cell.attack_params))
    return cannot_certify(certifier, cell.threat, victim_of(cell, weights=weights, device="cpu"))


def _threat(entry: Mapping[str, Any], spec: VictimSpec) -> ThreatModel | None:
    """Return the threat model of a suite entry for a victim, or None where the domains differ."""
    plain_entry = {k: v for k, v in entry.items() if k not in ("attacks", "samples")}
    threat = decode_threat({"bounds": spec.bounds, **plain_entry})
    registry("geometries").entry(threat.geometry)  # a name that nobody registered is an error, not a misfit
    return threat if threat.domain is spec.domain else None
