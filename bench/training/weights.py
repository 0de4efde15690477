"""Recipes: how a victim is built, trained, stored and loaded.

A registered victim is a recipe, a frozen dataclass. Its weights are `NAME.safetensors` beside
`NAME.json`, which says where they come from, what they hash to, and what the network answers to
fixed inputs; both are checked at every load.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

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

FINGERPRINT_TOLERANCE = 1e-3
"""Largest change of a fingerprint logit that rounding explains; a moved spike changes it by about 1/T."""


def variant(name: str, defense: str = "none", seed: int = 0) -> str:
    """Name a trained variant: NAME, NAME+DEFENSE, NAME@SEED or NAME+DEFENSE@SEED.

    DEFENSE is a name, or the canonical call of one with changed parameters: "mppd(rho=0)".
    """
    return name + (f"+{defense}" if defense != "none" else "") + (f"@{seed}" if seed else "")


def plain(component: Any) -> dict[str, Any]:
    """Return a component's parameters as JSON values."""
    return {
        key: plain(value) if dataclasses.is_dataclass(value) else _jsonable(value)
        for key, value in params_of(component).items()
    }


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
    shown = (recipe.name, recipe.shares) if recipe.retrains else (recipe.shares or recipe.name,)
    for base in filter(None, shown):
        name = variant(base, defense if trained.spec.trains else "none", seed)
        for place in (folder, shipped_weights(recipe)):
            if place is not None and (place / f"{name}.safetensors").is_file():
                return place / f"{name}.safetensors"
    return None


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
        params: recipe parameters to change (must not change the shapes of the weights).

    Raises:
        ConfigError: unknown name, or no weights for that variant.
        ArtefactError: the weights file is corrupt, or answers differently from its certificate.
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
    spec = dataclasses.replace(rule.describe(recipe.spec()), notes=recipe.notes(certificate))
    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights when they are made
        module = recipe.build(generator("init", recipe.name, seed))
        if rule.spec.trains:
            module = rule.transform(module, spec)
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ArtefactError(f"{path}: does not fit the network of '{name}': {error}") from error
    victim = ModuleVictim(module, spec if rule.spec.trains else recipe.spec())
    if not params and certificate.get("victim", recipe.name) == recipe.name:
        _check_fingerprint(victim, certificate, path)
    if not rule.spec.trains:
        victim = ModuleVictim(rule.transform(module, spec), spec)
    return victim.to(device)


def missing_weights(recipe: VictimRecipe, defense: str, seed: int) -> str:
    """Say that a variant has no weights, and how to make them."""
    option = f" --defense {shlex.quote(defense)}" if defense != "none" else ""
    base = recipe.name if recipe.retrains else recipe.shares or recipe.name
    return (
        f"victim '{variant(recipe.name, defense, seed)}' has no weights. Train it first: "
        f"robustspike train {base}{option} --seed {seed} --out DIR, "
        "then pass --weights DIR."
    )


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
    worst = float((now - then).abs().amax(dim=1).median())
    if worst > FINGERPRINT_TOLERANCE * max(1.0, float(then.abs().max())):
        raise ArtefactError(
            f"{path}: the network answers fixed inputs differently from its certificate (typical change "
            f"{worst:.2g}). The code that builds it has changed; train it again: robustspike train."
        )
