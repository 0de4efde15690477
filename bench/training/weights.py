"""Recipes: how a victim is built, trained, stored and loaded.

A registered victim is a recipe, a frozen dataclass. Its weights are `NAME.safetensors` beside
`NAME.json`, which says where they come from, what they hash to, and what the network answers to
fixed inputs; both are checked at every load.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from robustspike.bench.contract.calls import call_text
from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import params_of
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import generator
from robustspike.bench.training.defense import DefenseBase
from robustspike.bench.training.recipe import VictimRecipe
from robustspike.bench.victim.checks import fingerprint_inputs
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.state import moved

FINGERPRINT_TOLERANCE = 1e-3
"""Largest change of a fingerprint logit that rounding explains; a moved spike changes it by about 1/T."""

_LONGEST_NAME = 160
"""Longest name of a weights file, without its ending."""


def variant(name: str, defense: str = "none", seed: int = 0) -> str:
    """Name a trained variant: NAME, NAME+DEFENSE, NAME@SEED or NAME+DEFENSE@SEED.

    DEFENSE is a name, or the canonical call of one with changed parameters: "mppd(rho=0)".
    """
    return name + (f"+{defense}" if defense != "none" else "") + (f"@{seed}" if seed else "")


def changes(recipe: VictimRecipe) -> dict[str, Any]:
    """Return the parameters in which a recipe differs from the registered one of its name.

    Of a parameter that is itself a table (the schedule), the changed entries. Empty for a recipe that is not
    registered: its name is its own.
    """
    known = registry("victims")
    return _changed(known.get(recipe.name), recipe) if recipe.name in known else {}


def _changed(base: Any, other: Any) -> dict[str, Any]:
    if type(base) is not type(other):
        return {}
    found: dict[str, Any] = {}
    for key, value in params_of(other).items():
        before = getattr(base, key)
        if value != before:
            nested = dataclasses.is_dataclass(value) and type(value) is type(before)
            found[key] = _changed(before, value) if nested else _jsonable_tuple(value)
    return found


def weights_of(recipe: VictimRecipe) -> str:
    """Name the weights that training a recipe gives: its name, with the parameters that change them.

    "lif_cnn.digits(tau=4)"; parameters of deployment alone are left out, and the schedule: how long the same
    network was trained, and from where, its certificate says.
    """
    aside = {*recipe.deployed, "shares", "schedule"}
    return call_text(recipe.name, {key: value for key, value in changes(recipe).items() if key not in aside})


def _shown(recipe: VictimRecipe) -> tuple[str, ...]:
    """Name the weights that a recipe is put on, first choice first.

    Those of another victim that it shares must have been trained with the same parameters: all but those of
    deployment, and those in which the sharing victim differs from the other by its definition. Whoever names
    the other one, shares="...", asks for its weights whatever they were trained with.
    """
    own, changed = weights_of(recipe), changes(recipe)
    if not recipe.shares:
        return (own,)
    shared = recipe.shares
    known = registry("victims")
    if "shares" not in changed and shared in known and recipe.name in known:
        free = _changed(known.get(shared), known.get(recipe.name)).keys() | {*recipe.deployed, "schedule"}
        shared = call_text(shared, {key: value for key, value in changed.items() if key not in free})
    return (own, shared) if recipe.retrains else (shared,)


def file_stem(name: str) -> str:
    """Return what a variant's files are called: its name, or one with a digest where that is no file name."""
    plainly = re.sub(r"[^\w.+@(),=\[\]'-]", "_", name, flags=re.ASCII)
    if plainly == name and len(name) <= _LONGEST_NAME:
        return name
    return f"{plainly[:_LONGEST_NAME]}-{sha256(name.encode())[:8]}"


def plain(component: Any) -> dict[str, Any]:
    """Return a component's parameters as JSON values."""
    return {
        key: plain(value) if dataclasses.is_dataclass(value) else _jsonable(value)
        for key, value in params_of(component).items()
    }


def _jsonable_tuple(value: Any) -> Any:
    """Return a parameter as `parse_call` reads it back."""
    return tuple(value) if isinstance(value, list) else value


def _jsonable(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _fingerprint(victim: ModuleVictim) -> list[list[float]]:
    noise = None
    x = fingerprint_inputs(victim.spec).to(victim.device)
    if victim.spec.stochastic:
        noise = RowStreams.derive(range(len(x)), "fingerprint noise", device=x.device)
    with torch.no_grad():
        rows: list[list[float]] = victim.logits(x, noise=noise).double().cpu().tolist()
    return rows


def stated(certificate: Mapping[str, Any]) -> str:
    """Return what a certificate says about the clean test split, for people."""
    from robustspike.bench.numbers.stats import wilson

    test = certificate["test"]
    if "correct" in test:
        low, high = wilson(test["correct"], test["n"])
        return f"{test['correct']}/{test['n']} [{100 * low:.1f}, {100 * high:.1f}] %"
    figures = ", ".join(f"{name} {value:.3f}" for name, value in sorted(test.items()) if name != "n")
    return f"{figures} (n = {test['n']})"


def shipped_weights(recipe: VictimRecipe) -> Path:
    """Return the folder of the weights that came with the recipe's package."""
    return Path(str(importlib.resources.files(recipe.weights_package))) / "weights"


def find_weights(recipe: VictimRecipe, defense: str, seed: int, folder: Path | None) -> Path | None:
    """Return the weights file of a variant, from a folder first, then from the package.

    A defense that changes no training is put on the undefended victim's weights.
    """
    trained: DefenseBase = registry("defenses").get(defense)
    for base in _shown(recipe):
        name = file_stem(variant(base, defense if trained.spec.trains else "none", seed))
        for place in (folder, shipped_weights(recipe)):
            if place is not None and (place / f"{name}.safetensors").is_file():
                return place / f"{name}.safetensors"
    return None


RECORDED = ("cpu", "torch", "spikingjelly", "numpy", "python", "robustspike", "device", "threads", "code")
"""What a certificate says the bytes hang on, in the order in which people read it."""


def made_on(certificate: Mapping[str, Any]) -> str:
    """Return what a certificate says of where weights were made, for people."""
    known = certificate.get("made_with")
    told = known if isinstance(known, Mapping) else {}
    parts = [f"{name} {told[name]}" for name in RECORDED if told.get(name)]
    missing = [name for name in RECORDED if not told.get(name)]
    return ", ".join(parts + ([f"not recorded: {', '.join(missing)}"] if missing else []))


def against_shipped(recipe: VictimRecipe, weights: Path) -> str | None:
    """Say whether weights that were just trained are the shipped ones of their name, byte for byte.

    Returns: one line; None where none are shipped.
    Raises: ArtefactError: the shipped ones cannot be read.
    """
    shipped = shipped_weights(recipe) / weights.name
    if not shipped.is_file() or shipped.resolve() == weights.resolve():
        return None
    if shipped.read_bytes() == weights.read_bytes():
        return "the shipped weights: the same bytes"
    try:
        mine, theirs = load_file(weights), load_file(shipped)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{shipped}: cannot be read ({error}). Reinstall the package.") from error
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
        return "the shipped weights: of other shapes; its recipe has changed since"
    apart = {k: float((v.double() - theirs[k].double()).abs().max()) for k, v in mine.items() if v.numel()}
    worst = max(apart, key=apart.__getitem__)
    return (
        f"the shipped weights: differ by up to {apart[worst]:.2g} ({worst}); "
        f"those were made on: {made_on(read_certificate(shipped))}"
    )


def read_certificate(weights: Path) -> dict[str, Any]:
    """Return the certificate beside a weights file. Raises: ArtefactError."""
    path = weights.with_name(weights.name.removesuffix(".safetensors") + ".json")
    try:
        certificate: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtefactError(f"{path}: no readable certificate ({error}). Train the victim again.") from error
    if not isinstance(certificate, dict) or not {"sha256", "fingerprint"} <= certificate.keys():
        raise ArtefactError(f"{path}: not a certificate of weights. Train the victim again.")
    return certificate


def passes_of(certificate: Mapping[str, Any]) -> int | None:
    """Return the sample passes that trained weights, those they were started from included."""
    spent = certificate.get("training", {})
    if not isinstance(spent, Mapping) or not {"forwards", "backwards"} <= spent.keys():
        return None
    before = certificate.get("started_from") or {}
    return int(spent["forwards"]) + int(spent["backwards"]) + int(before.get("passes") or 0)


def training_passes(recipe: VictimRecipe, defense: str, seed: int, folder: Path | None) -> dict[str, int]:
    """Return the forward and backward sample passes that trained a variant, as its certificate says.

    Returns: "own", and "plain" for the same victim without defense (of seed 0 where that seed was not
        trained plainly); what no certificate says is left out.
    """
    found = {}
    for name, variants in (("own", [(defense, seed)]), ("plain", [("none", seed), ("none", 0)])):
        paths = [find_weights(recipe, rule, trained, folder) for rule, trained in variants]
        path = next((path for path in paths if path is not None), None)
        spent = None if path is None else passes_of(read_certificate(path))
        if spent is not None:
            found[name] = spent
    return found


def load_victim(
    name: str,
    *,
    defense: str = "none",
    seed: int = 0,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    **params: Any,
) -> ModuleVictim:
    """Load a trained victim by name.

    Args:
        name: registry name, e.g. "lif_cnn.digits".
        defense: registry name of the defense it was hardened with, or a call: "mppd(rho=0)".
        seed: training seed.
        weights: folder to look in before the shipped weights.
        device: where to put it.
        params: recipe parameters to change. Those that change what training gives need weights that were
            trained with them (`weights_of`), those of deployment (`VictimRecipe.deployed`) do not; and
            shares="NAME" puts the changed network on the weights of NAME on purpose, which its notes say.

    Raises:
        ConfigError: unknown name, or no weights for that variant.
        ArtefactError: the weights file is corrupt, was trained with other parameters than its name and
            the recipe say, or answers differently from its certificate.
    """
    recipe: VictimRecipe = registry("victims").get(name, **params)
    defense = registry("defenses").canonical(defense)
    path = find_weights(recipe, defense, seed, weights)
    if path is None:
        raise ConfigError(missing_weights(recipe, defense, seed))
    certificate = read_certificate(path)
    content = path.read_bytes()
    found = sha256(content)
    if found != certificate["sha256"]:
        hint = "; the first bytes look like HTML" if content[:1] == b"<" else ""
        raise ArtefactError(
            f"{path}: sha256 {found[:12]}... but its certificate says "
            f"{str(certificate['sha256'])[:12]}...{hint}. Restore the file or train the victim again."
        )
    rule = _trained_with(defense, certificate)
    own = certificate.get("victim", recipe.name) == recipe.name and "shares" not in changes(recipe)
    differing = _differing(recipe, certificate)
    if own and differing.keys() - {*recipe.deployed}:
        key = min(differing.keys() - {*recipe.deployed})
        raise ArtefactError(
            f"{path}: its certificate says that it was trained with {key} = {differing[key]!r}, and "
            f"'{weights_of(recipe)}' has {plain(recipe)[key]!r}. The file was renamed, or the recipe changed "
            "since; train it again."
        )
    notes = recipe.notes(certificate)
    if "shares" in changes(recipe):
        notes += _borrowed(recipe, certificate, differing)
    spec = dataclasses.replace(rule.describe(recipe.spec()), notes=notes)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights when they are made
        module = recipe.build(generator("init", recipe.name, seed))
        if rule.spec.trains:
            module = rule.transform(module, spec)
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ArtefactError(f"{path}: does not fit the network of '{name}': {error}") from error
    victim = ModuleVictim(module, spec if rule.spec.trains else recipe.spec())
    if own and not differing:
        _check_fingerprint(victim, certificate, path)
    if not rule.spec.trains:
        victim = ModuleVictim(rule.transform(module, spec), spec)
    return victim.to(device)


def missing_weights(recipe: VictimRecipe, defense: str, seed: int) -> str:
    """Say that a variant has no weights, and how to make them."""
    option = f" --defense {shlex.quote(defense)}" if defense != "none" else ""
    base = weights_of(recipe) if recipe.retrains else _shown(recipe)[-1]
    data = " --data DIR" if recipe.data().needs_root else ""
    otherwise = ""
    if base not in (recipe.name, recipe.shares):
        otherwise = (
            f" Its weights depend on these parameters; shares='{recipe.shares or recipe.name}' among them "
            "puts it on those that were trained without them."
        )
    return (
        f"victim '{variant(weights_of(recipe), defense, seed)}' has no weights. Train it first: "
        f"robustspike train {shlex.quote(base)}{option}{data} --seed {seed} --out WEIGHTS, "
        f"then pass --weights WEIGHTS.{otherwise}"
    )


def _differing(recipe: VictimRecipe, certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters in which a certificate's recipe was another; older ones do not say all."""
    made = certificate.get("recipe")
    if not isinstance(made, Mapping):
        return {}
    now = plain(recipe)
    aside = {"name", "shares"} | (set() if "schedule" in changes(recipe) else {"schedule"})
    return {key: made[key] for key in now.keys() & made.keys() - aside if not _agree(now[key], made[key])}


def _agree(now: Any, then: Any) -> bool:
    if isinstance(now, dict) and isinstance(then, dict):
        return all(_agree(now[key], then[key]) for key in now.keys() & then.keys())
    return bool(now == then)


def _borrowed(
    recipe: VictimRecipe, certificate: Mapping[str, Any], differing: Mapping[str, Any]
) -> tuple[str, ...]:
    now = plain(recipe)
    listed = ", ".join(
        f"{key} = {value!r} instead of {now[key]!r}"
        for key, value in sorted(differing.items())
        if key not in recipe.deployed
    )
    return (f"on the weights of '{certificate.get('victim')}', trained with {listed}",) if listed else ()


def trained_recipe(recipe: VictimRecipe, defense: str, seed: int, weights: Path | None) -> VictimRecipe:
    """Return a recipe with the schedule that a variant's own weights were trained with, as far as known."""
    path = find_weights(recipe, defense, seed, weights)
    certificate = {} if path is None else read_certificate(path)
    made = certificate.get("recipe")
    told = made.get("schedule") if isinstance(made, Mapping) else None
    if certificate.get("victim") != recipe.name or not isinstance(told, Mapping):
        return recipe
    known = {key: value for key, value in told.items() if key in params_of(recipe.schedule)}
    try:
        return dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, **known))
    except (TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: the schedule in its certificate cannot be read ({error}).") from error


def trained_with(recipe: VictimRecipe, defense: str, seed: int, weights: Path | None) -> DefenseBase:
    """Return a defense with the parameters that a variant's weights were trained with."""
    path = find_weights(recipe, defense, seed, weights)
    return _trained_with(defense, {} if path is None else read_certificate(path))


def _trained_with(defense: str, certificate: dict[str, Any]) -> DefenseBase:
    """Make the defense with the parameters that the weights were trained with (if it trains)."""
    asked: DefenseBase = registry("defenses").get(defense)
    if not asked.spec.trains:
        return asked
    found: DefenseBase = registry("defenses").get(defense, **certificate.get("defense_parameters", {}))
    for key in parse_call(defense)[1]:
        if getattr(found, key) != getattr(asked, key):
            raise ArtefactError(
                f"weights '{certificate.get('victim')}+{defense}': their certificate says {key} = "
                f"{getattr(found, key)!r}. The file was renamed; train it again."
            )
    return found


def _check_fingerprint(victim: ModuleVictim, certificate: dict[str, Any], path: Path) -> None:
    now = torch.tensor(_fingerprint(victim), dtype=torch.float64)
    try:
        then = torch.tensor(certificate["fingerprint"], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ArtefactError(
            f"{path}: its certificate's fingerprint is no table of numbers ({error}). Train it again."
        ) from error
    if now.shape != then.shape:
        raise ArtefactError(f"{path}: the certificate's fingerprint has another shape. Train it again.")
    worst = moved(now, then)
    if not worst <= FINGERPRINT_TOLERANCE:
        raise ArtefactError(
            f"{path}: the network answers fixed inputs differently from its certificate (typical change "
            f"{worst:.2g}). The code that builds it has changed; train it again: robustspike train."
        )
