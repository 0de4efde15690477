"""Train a victim and write its weights with their certificate."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialise
from torch import nn

from robustspike.bench.contract import sources
from robustspike.bench.contract.registry import registry
from robustspike.bench.data.base import Split
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.files import write_atomic
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import generator
from robustspike.bench.training.defense import DefenseBase
from robustspike.bench.training.fit import Progress
from robustspike.bench.training.fit import Report
from robustspike.bench.training.fit import fit
from robustspike.bench.training.recipe import VictimRecipe
from robustspike.bench.training.weights import _fingerprint
from robustspike.bench.training.weights import changes
from robustspike.bench.training.weights import file_stem
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import load_victim
from robustspike.bench.training.weights import missing_weights
from robustspike.bench.training.weights import passes_of
from robustspike.bench.training.weights import plain
from robustspike.bench.training.weights import read_certificate
from robustspike.bench.training.weights import variant
from robustspike.bench.training.weights import weights_of
from robustspike.bench.victim.energy import count_synops
from robustspike.bench.victim.module import ModuleVictim


def train(
    recipe: VictimRecipe,
    defense: DefenseBase,
    *,
    out: Path,
    label: str = "",
    seed: int = 0,
    root: Path | None = None,
    device: torch.device | str = "cpu",
    source: str = "",
    weights: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[ModuleVictim, dict[str, Any]]:
    """Train a victim and write its weights and their certificate to a folder.

    Args:
        label: what the hardened victim goes by, e.g. "mppd(rho=0)"; by default the defense's name.
        source: name of the victim whose trained weights training starts from: the victim itself (its
            plain weights, to be hardened), or what the recipe `starts` from, which is the default.
        weights: folder to look in for those before the shipped weights; by default `out`.

    Returns: the victim and the certificate (what `NAME.json` holds).
    Raises: ConfigError: the defense does not apply, or nothing to start from. ArtefactError: data, weights
        or checkpoint unreadable.
    """
    reason = defense.fits(recipe)
    if reason:
        raise ConfigError(f"defense '{defense.spec.name}' does not apply to '{recipe.name}': {reason}")
    if not defense.spec.trains and type(defense).transform is not DefenseBase.transform:
        raise ConfigError(
            f"defense '{defense.spec.name}' is not trained: it is put on the weights of '{recipe.name}'. "
            "Train that without a defense."
        )
    if recipe.shares and not recipe.retrains:
        raise ConfigError(
            f"victim '{recipe.name}' is not trained: it uses the weights of '{recipe.shares}'. Train that."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be used: {error}. Choose another folder.") from error
    for key in changes(recipe):
        if key in recipe.deployed:
            raise ConfigError(
                f"victim '{recipe.name}': {key} says how trained weights are used, and changes no training. "
                f"Train without it, and set it where the victim is used."
            )
    data = recipe.data()
    label = label or defense.spec.name
    name = file_stem(variant(weights_of(recipe), label, seed))
    training, validation = data.load("train", root=root), data.load("validation", root=root)
    spec = defense.describe(recipe.spec())
    module = recipe.build(generator("init", recipe.name, seed))
    started = _start(recipe, module, source or recipe.starts, training, seed, weights or out)
    module = defense.transform(module, spec).to(device)
    network = recipe.trainable(module)
    # The defense is not part of the seed: with weight 0 it must give plain training's weights.
    checkpoint = out / f"{name}.checkpoint"
    report = fit(
        network,
        training,
        validation,
        schedule=defense.schedule(recipe.schedule),
        terms=defense.terms,
        loss_of=recipe.loss,
        after_epoch=recipe.after_epoch,
        before_step=defense.before_step,
        after_step=defense.after_step,
        eligible=defense.eligible,
        second_order=defense.second_order,
        identity=(plain(recipe), plain(defense), started),
        augment=recipe.augment,
        score=recipe.score,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    recipe.finish(module, data, root=root)
    victim = ModuleVictim(module.to("cpu"), spec)
    certificate = save(
        recipe,
        defense,
        victim,
        out=out,
        label=label,
        seed=seed,
        root=root,
        report=report,
        started=started,
        device=device,
    )
    checkpoint.unlink(missing_ok=True)  # only now: a run killed while it was saved need not train again
    return victim, certificate


def _start(
    recipe: VictimRecipe, module: nn.Module, source: str, training: Split, seed: int, weights: Path
) -> dict[str, Any]:
    """Put trained weights into a network, if its training starts from some; returns what they are.

    Weights of the same seed come first, then those of seed 0.
    """
    if not source:
        return {}
    if source not in (recipe.name, recipe.starts):
        possible = f"'{recipe.name}'" + (f" or '{recipe.starts}'" if recipe.starts else "")
        raise ConfigError(f"victim '{recipe.name}': starts from {possible}, not from '{source}'.")
    origin: VictimRecipe = registry("victims").get(source)
    found = find_weights(origin, "none", seed, weights) or find_weights(origin, "none", 0, weights)
    if found is None:
        raise ConfigError(missing_weights(origin, "none", seed))
    certificate = read_certificate(found)
    victim = load_victim(source, seed=int(certificate.get("seed", 0)), weights=weights)
    if source == recipe.name:
        module.load_state_dict(victim.module.state_dict())
    else:
        recipe.start(module, victim.module, training)
    return {"victim": source, "sha256": certificate["sha256"], "passes": passes_of(certificate)}


def save(
    recipe: VictimRecipe,
    defense: DefenseBase,
    victim: ModuleVictim,
    *,
    out: Path,
    label: str,
    seed: int,
    root: Path | None,
    report: Report,
    started: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Write weights and certificate to a folder that exists; returns the certificate.

    Args:
        started: the trained weights that training started from; empty for drawn weights.
        device: where they were trained.
    """
    name = file_stem(variant(weights_of(recipe), label, seed))
    weights = serialise({key: value.contiguous() for key, value in victim.module.state_dict().items()})
    data = recipe.data()
    test = data.load("test", root=root)
    certificate = {
        "victim": recipe.name,
        "defense": label,
        "seed": seed,
        "sha256": sha256(weights),
        "bytes": len(weights),
        "fingerprint": _fingerprint(victim),
        "recipe": plain(recipe),
        "defense_parameters": plain(defense),
        "data": {"name": data.name, "train": data.load("train", root=root).digest, "test": test.digest},
        "test": {"n": len(test), **recipe.figures(victim.module, test)},
        "validation": report.validation,
        "best_epoch": report.best_epoch,
        "started_from": dict(started),
        "training": {
            "epochs": len(report.history),
            "forwards": report.forwards,
            "backwards": report.backwards,
            "last_terms": report.history[-1] if report.history else {},
        },
        "energy": _energy(victim, test),
        "measured": recipe.measure(victim.module, data, root=root),
        "made_with": made_with(recipe, defense, device=device),
    }
    text = json.dumps(certificate, indent=2, sort_keys=True) + "\n"
    write_atomic(out / f"{name}.safetensors", weights)
    write_atomic(out / f"{name}.json", text.encode())
    return certificate


def made_with(recipe: VictimRecipe, defense: DefenseBase, *, device: torch.device | str) -> dict[str, Any]:
    """Return what the bytes of trained weights hang on besides recipe, seed and data.

    Versions, processor and threads decide the order and rounding of sums; `code` is the digest of the files
    that the recipe and the defense run (those of the harness are named by its version).
    """
    return {
        "robustspike": version("robustspike"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "spikingjelly": version("spikingjelly"),
        "platform": platform.machine(),
        "cpu": cpu_model(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "code": sources.digest_of(sources.files(recipe, "victims") | sources.files(defense, "defenses")),
    }


def cpu_model() -> str:
    """Return the processor's name as the system gives it; "" where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor()
    named = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return named[1].strip() if named else platform.processor()


def _energy(victim: ModuleVictim, test: Split, n: int = 200) -> dict[str, float]:
    """Return the mean operations and energy of the first n test samples; each first layer per step."""
    part = test[:n]
    noise = RowStreams.derive(part.ids, "energy") if victim.spec.stochastic else None
    summary = count_synops(victim, part.x, noise=noise).summary()
    return {"n": len(part), **{key: round(value, 4) for key, value in summary.items()}}
