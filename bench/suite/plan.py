"""From a suite file to cells: what will be measured, and what does not fit and why. No network is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustspike.bench.certify.base import cannot_certify
from robustspike.bench.contract.registry import Registry
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ConfigError
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.cell import NotApplicable
from robustspike.bench.suite.cell import fits
from robustspike.bench.suite.cell import frozen
from robustspike.bench.suite.cell import label_of
from robustspike.bench.suite.file import Suite
from robustspike.bench.suite.file import ThreatEntry
from robustspike.bench.suite.filters import Filters
from robustspike.bench.suite.filters import chosen
from robustspike.bench.suite.loading import available
from robustspike.bench.suite.variant import Variant
from robustspike.bench.suite.variant import resolve
from robustspike.bench.training.recipe import VictimRecipe
from robustspike.bench.training.weights import missing_weights


@dataclass(frozen=True)
class Plan:
    """What a suite asks for; it has cells. Raises: ConfigError: nothing is left to measure."""

    suite: Suite
    cells: tuple[Cell, ...]
    not_applicable: tuple[NotApplicable, ...]

    def __post_init__(self) -> None:
        if not self.cells:
            detail = f" ({self.not_applicable[0].reason})" if self.not_applicable else ""
            raise ConfigError(
                f"suite '{self.suite.name}': nothing to measure{detail}. Check --only, and the suite's "
                "geometries, domains and data."
            )


def recipes_of(suite: Suite) -> list[VictimRecipe]:
    """List the victims that a suite names or matches, one for each embedded data set they use."""
    victims = registry("victims")
    found: dict[str, VictimRecipe] = {}
    for entry in suite.victims:
        for name in _expand(victims, entry.name):
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
    compiled: bool = False,
) -> Plan:
    """List the cells of a suite.

    Args:
        suite: the suite.
        only: (field, glob) filters on victim, defense, attack, dataset or threat (its label): of one field
            any may match, of several fields all must.
        samples: use this many samples instead of the suite's.
        seed: use this attack seed instead of the suite's.
        weights: folder with more weights.
        root: folder of published data sets; victims whose data need one are n/a without it.
        compiled: let attacks ask victims through torch.compile, under labels of their own.

    Raises: ConfigError: unknown names or filters, or nothing left to measure.
    """
    filters = Filters.of(only)
    cells: dict[Cell, None] = {}
    misfits: dict[NotApplicable, None] = {}
    for variant, named in _variants(suite, weights):
        if not filters.take_variant(variant):
            continue  # before its data are read
        reason = _misfit(variant, root, named=named)
        if reason:
            misfits[NotApplicable(variant.victim, variant.defense, reason)] = None
            continue
        for cell in _cells(suite, variant, samples, seed, root):
            if isinstance(cell, NotApplicable):
                misfits[cell] = None
            elif filters.take_cell(cell):
                cells[dataclasses.replace(cell, compiled=compiled and not cell.certify)] = None
    return Plan(suite, tuple(cells), tuple(misfits))


def _variants(suite: Suite, weights: Path | None) -> Iterator[tuple[Variant, bool]]:
    """Yield the variants of a suite, each with whether it is named and not just matched by a pattern."""
    victims = registry("victims")
    for entry in suite.victims:
        for name in _expand(victims, entry.name):
            for wanted in entry.defenses:
                named = not _is_glob(entry.name) and not _is_glob(wanted)
                for defense in _expand_defenses(wanted):
                    for trained in entry.seeds:
                        yield resolve(name, frozen(entry.params), trained, defense, weights), named


def _is_glob(pattern: str) -> bool:
    return "(" not in pattern and any(c in pattern for c in "*?[")


def _expand(known: Registry, pattern: str) -> list[str]:
    if _is_glob(pattern):
        return known.names(pattern)
    known.entry(pattern)
    return [pattern]


def _expand_defenses(pattern: str) -> list[str]:
    """List the defenses that a pattern matches; "name(key=value)" stands for itself."""
    return [pattern] if "(" in pattern else _expand(registry("defenses"), pattern)


def _misfit(variant: Variant, root: Path | None, *, named: bool) -> str | None:
    recipe = variant.recipe
    if recipe.data().needs_root and root is None and not named:
        return f"data set '{recipe.dataset}' needs --data DIR"
    if root is not None and not named and not recipe.data().present(root):
        return f"data set '{recipe.dataset}' is not in {root}"
    reason = variant.rule.fits(recipe)
    if reason:
        return reason
    if variant.weights is None:
        if named:
            raise ConfigError(missing_weights(recipe, variant.defense, variant.seed))
        return "no trained weights: robustspike train" + (f" --seed {variant.seed}" if variant.seed else "")
    return None


def _cells(
    suite: Suite, variant: Variant, samples: int | None, seed: int | None, root: Path | None
) -> Iterator[Cell | NotApplicable]:
    """Yield the cells on a variant, those that attack first, and the certificates that cannot be given."""
    recipe = variant.recipe
    spec = recipe.spec()
    held = available(recipe.dataset, suite.split, root)
    proofs: list[Cell | NotApplicable] = []
    for entry in suite.threats:
        registry("geometries").entry(entry.geometry)  # a name that nobody registered is no misfit
        threat = entry.model(spec)
        if threat is None:
            continue
        for name, changed, certify in _rules(suite, threat, entry, spec):
            granted = threat
            if not certify:  # an attack around another one needs what the inner one needs
                needed = registry("attacks").get(name, **changed).spec.access
                granted = dataclasses.replace(threat, access=needed)
            for number in suite.seeds if seed is None else (seed,):
                cell = Cell(
                    victim=variant.victim,
                    victim_params=variant.params,
                    victim_seed=variant.seed,
                    defense=variant.defense,
                    attack=name,
                    attack_params=frozen(changed),
                    threat=granted,
                    dataset=recipe.dataset,
                    split=suite.split,
                    samples=min(samples or entry.samples or suite.samples, held),
                    shard=suite.shard,
                    seed=number,
                    certify=certify,
                )
                if not certify:
                    yield cell
                    continue
                reason = cannot_certify(cell.rules.get(name, **changed), threat, spec)
                misfit = NotApplicable(variant.victim, variant.defense, f"{name}: {reason}")
                proofs.append(misfit if reason else cell)
    yield from proofs


def _rules(
    suite: Suite, threat: ThreatModel, entry: ThreatEntry, spec: VictimSpec
) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yield the attacks that fit a threat, then the certifiers: name, changed parameters, certifier?"""
    for kind, entries in (("attacks", suite.attacks), ("certifiers", suite.certify)):
        known = registry(kind)
        for asked in entries:
            for name in _expand(known, asked.name):
                rule = known.get(name, **asked.params)
                if isinstance(estimator := getattr(rule, "estimator", None), str):
                    registry("estimators").get(estimator)  # a wrong name is told now, not by every cell
                certify = kind == "certifiers"
                if chosen(label_of(name, asked.params), entry.attacks) and (
                    certify or fits(rule, threat, spec)
                ):
                    yield name, asked.params, certify
