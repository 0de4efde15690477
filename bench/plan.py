"""From a suite file to cells: what will be measured, and what does not fit and why."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib.resources
import tomllib
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from robustspike.bench.certify import cannot_certify
from robustspike.bench.code_digest import code_digest
from robustspike.bench.contracts import Attack
from robustspike.bench.contracts import Certifier
from robustspike.bench.contracts import ThreatModel
from robustspike.bench.contracts import VictimSpec
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.defense import DefenseBase
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.recipes import VictimRecipe
from robustspike.bench.recipes import find_weights
from robustspike.bench.recipes import load_victim
from robustspike.bench.recipes import missing_weights
from robustspike.bench.recipes import plain
from robustspike.bench.recipes import trained_with
from robustspike.bench.records import PROTOCOL
from robustspike.bench.records import decode_threat
from robustspike.bench.records import digest
from robustspike.bench.records import encode_threat
from robustspike.bench.registry import Registry
from robustspike.bench.registry import parse_call
from robustspike.bench.registry import registry
from robustspike.bench.victim import ModuleVictim

MAX_SUITE_BYTES = 1 << 20

_TOP = {
    "name",
    "version",
    "description",
    "samples",
    "shard",
    "seeds",
    "split",
    "threats",
    "victims",
    "attacks",
    "certify",
}
_ENTRY = {
    "threats": {"domain", "geometry", "eps", "bounds", "goal", "levels", "budget", "attacks", "samples"},
    "victims": {"name", "params", "defenses", "seeds"},
    "attacks": {"name", "params"},
    "certify": {"name", "params"},
}
_OPTIONAL = {"certify"}


@dataclass(frozen=True)
class Suite:
    """A parsed suite file; lists are in file order."""

    name: str
    version: int
    description: str
    samples: int
    shard: int
    seeds: tuple[int, ...]
    split: str
    threats: tuple[Mapping[str, Any], ...]
    victims: tuple[Mapping[str, Any], ...]
    attacks: tuple[Mapping[str, Any], ...]
    certify: tuple[Mapping[str, Any], ...]
    digest: str


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


@dataclass(frozen=True)
class Plan:
    """What a suite asks for."""

    suite: Suite
    cells: tuple[Cell, ...]
    not_applicable: tuple[NotApplicable, ...]


def label_of(name: str, params: Mapping[str, Any]) -> str:
    """Name a component with changed parameters: "pgd.linf[estimator=pdsg]"."""
    inside = ",".join(f"{key}={value}" for key, value in sorted(params.items()))
    return f"{name}[{inside}]" if inside else name


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
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(
                f"unknown suite '{name}'.{hint} Suites: {', '.join(known)}; or give the path of a .toml file."
            )
        text = (importlib.resources.files("robustspike.bench.suites") / f"{name}.toml").read_text("utf-8")
    try:
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"suite '{name}': not valid TOML: {error}.") from error
    return _parse(value, name)


def _parse(value: Mapping[str, Any], where: str) -> Suite:
    _known_keys(value, _TOP, f"suite '{where}'")
    lists: dict[str, tuple[Mapping[str, Any], ...]] = {}
    for key, known in _ENTRY.items():
        entries = value.get(key)
        if entries is None and key in _OPTIONAL:
            lists[key] = ()
            continue
        if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
            raise ConfigError(f"suite '{where}': needs at least one [[{key}]] table.")
        for number, entry in enumerate(entries, start=1):
            place = f"suite '{where}', [[{key}]] number {number}"
            _known_keys(entry, known, place)
            if key != "threats" and not isinstance(entry.get("name"), str):
                raise ConfigError(f"{place}: needs a name.")
            chosen = entry.get("attacks", [])
            if not (isinstance(chosen, list) and all(isinstance(pattern, str) for pattern in chosen)):
                raise ConfigError(f'{place}: attacks must be a list such as ["pgd.*", "!pgd.l2"].')
            if not isinstance(entry.get("params", {}), dict):
                raise ConfigError(f"{place}: params must be a table such as {{ steps = 20 }}.")
        lists[key] = tuple(entries)
    numbers = {}
    for key, default in (("version", 1), ("samples", 250), ("shard", 125)):
        number = value.get(key, default)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"suite '{where}': {key} must be a positive integer, got {number!r}.")
        numbers[key] = number
    seeds = value.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(isinstance(s, int) for s in seeds)):
        raise ConfigError(f"suite '{where}': seeds must be a list of integers, got {seeds!r}.")
    split = value.get("split", "test")
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"suite '{where}': split must be train, validation or test, got {split!r}.")
    return Suite(
        name=str(value.get("name", Path(where).stem)),
        description=str(value.get("description", "")),
        seeds=tuple(seeds),
        split=split,
        digest=digest(_jsonable(value)),
        version=numbers["version"],
        samples=numbers["samples"],
        shard=numbers["shard"],
        threats=lists["threats"],
        victims=lists["victims"],
        attacks=lists["attacks"],
        certify=lists["certify"],
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, bool | int | str) else str(value)


def _known_keys(value: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"{where}: unknown key '{key}'.{hint} Known: {', '.join(sorted(known))}.")


@cache
def dataset_split(dataset: str, split: str, root: Path | None) -> Split:
    """Load a split of a data set once per process."""
    data: Dataset = registry("datasets").get(dataset)
    if data.needs_root and root is None:
        raise ArtefactError(
            f"data set '{dataset}' is read from its published files: pass --data DIR with the folder that "
            "holds them."
        )
    return data.load(split, root=root)  # type: ignore[arg-type]


@cache
def loaded_victim(
    name: str,
    params: tuple[tuple[str, Any], ...],
    defense: str,
    seed: int,
    weights: Path | None,
    device: str,
) -> ModuleVictim:
    """Load a victim once per process."""
    return load_victim(name, defense=defense, seed=seed, weights=weights, device=device, **dict(params))


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


def victim_of(cell: Cell, *, weights: Path | None, device: str) -> ModuleVictim:
    """Return the victim of a cell, loaded once per process."""
    return loaded_victim(cell.victim, cell.victim_params, cell.defense, cell.victim_seed, weights, device)


@cache
def _first(dataset: str, split: str, root: Path | None, samples: int) -> Split:
    return dataset_split(dataset, split, root)[:samples]


def samples_of(cell: Cell, root: Path | None) -> Split:
    """Return the samples of a cell; cut, and their digest computed, once per process."""
    return _first(cell.dataset, cell.split, root, cell.samples)


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


def _check_filters(only: Sequence[tuple[str, str]]) -> None:
    """Check fields, and names that are written out. Raises: ConfigError: unknown, with the nearest known."""
    fields = ("victim", "defense", "attack", "dataset", "threat")
    for key, pattern in only:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
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


def frozen(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return changed parameters as a sorted, hashable tuple."""
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in params.items()))


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
        available = len(dataset_split(recipe.dataset, suite.split, root))
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
                    samples=min(wanted, available),
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


def identity(
    cell: Cell, *, weights: Path | None, root: Path | None, device: str
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Return a cell's key, the digests that enter it, and the full parameters of its components."""
    recipe = registry("victims").get(cell.victim, **dict(cell.victim_params))
    defense = trained_with(recipe, cell.defense, cell.victim_seed, weights)
    attack = cell.rules.get(cell.attack, **dict(cell.attack_params))
    victim = victim_of(cell, weights=weights, device=device)
    data = samples_of(cell, root)
    code = {
        "victim": code_digest(recipe, "victims"),
        "defense": code_digest(defense, "defenses"),
        "attack": code_digest(attack, "certifiers" if cell.certify else "attacks"),
    }
    digests = {"weights": victim.spec.weights, "data": data.digest, "code": digest(code)}
    how = "certifier" if cell.certify else "attack"
    parameters = {"victim": plain(recipe), "defense": plain(defense), how: plain(attack)}
    key = digest(
        {
            "protocol": PROTOCOL,
            "digests": digests,
            "parameters": parameters,
            "victim": cell.victim,
            "victim_seed": cell.victim_seed,
            "defense": cell.defense,
            "attack": cell.attack,
            "dataset": cell.dataset,
            "split": cell.split,
            "samples": cell.samples,
            "shard": cell.shard,
            "threat": encode_threat(cell.threat),
            "seed": cell.seed,
        }
    )
    return key, digests, parameters
