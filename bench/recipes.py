"""Recipes: how a victim is built, trained, stored and loaded.

A registered victim is a recipe, a frozen dataclass. Its weights are `NAME.safetensors` beside
`NAME.json`, which says where they come from, what they hash to, and what the network answers to
fixed inputs; both are checked at every load.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import platform
import shlex
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor
from torch import nn

from robustspike.bench.contracts import VictimSpec
from robustspike.bench.contracts import params_of
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.defense import DefenseBase
from robustspike.bench.energy import count_synops
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.files import write_atomic
from robustspike.bench.registry import parse_call
from robustspike.bench.registry import registry
from robustspike.bench.rng import RowStreams
from robustspike.bench.rng import generator
from robustspike.bench.training import Progress
from robustspike.bench.training import Report
from robustspike.bench.training import Schedule
from robustspike.bench.training import accuracy
from robustspike.bench.training import fit
from robustspike.bench.victim import ModuleVictim
from robustspike.bench.victim import fingerprint_inputs

FINGERPRINT_TOLERANCE = 1e-3
"""Largest change of a fingerprint logit that rounding explains; a moved spike changes it by about 1/T."""


@dataclass(frozen=True, kw_only=True)
class VictimRecipe:
    """Base of victim recipes.

    Args:
        name: registry name.
        dataset: registry name of the data set it is trained on.
        schedule: how it is optimised.
        shares: name of the recipe whose weights it uses, for variants that are not trained (another
            T of a converted network); "" for its own.
        starts: name of the victim whose trained weights its training starts from; "" for drawn weights.

    Class attributes:
        family: "direct", "converted", "timing", "quality", ...; the group in listings.
        source: paper and equation, with each deviation.
        weights_package: package with the shipped weights, in its folder `weights`.
        retrains: whether a recipe that shares weights can also be trained; its own weights then come first.
    """

    name: str
    dataset: str
    schedule: Schedule = Schedule()
    shares: str = ""
    starts: str = ""

    family: ClassVar[str] = ""
    source: ClassVar[str] = ""
    weights_package: ClassVar[str] = "robustspike.victims"
    retrains: ClassVar[bool] = False

    def spec(self) -> VictimSpec:
        """Describe the deployed victim."""
        raise TypeError(f"{type(self).__name__} does not define spec().")

    def build(self, rng: torch.Generator) -> nn.Module:
        """Build the untrained network that will be deployed: pixels [N, *shape] -> logits [N, K]."""
        raise TypeError(f"{type(self).__name__} does not define build().")

    def start(self, module: nn.Module, source: nn.Module, train: Split) -> None:
        """Turn the weights of the trained network that `starts` names into a start for this one.

        Args:
            module: what `build` returned; changed in place.
            source: the trained network, on the CPU; not to be changed.
            train: the training split.
        """
        del module, source, train
        raise ConfigError(
            f"victim '{self.name}': cannot start from '{self.starts}'. Only a recipe that says how, in "
            "`start`, can."
        )

    def trainable(self, module: nn.Module) -> nn.Module:
        """Return the network that is trained; it shares its parameters with the deployed one."""
        return module

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training loss of a batch and the logits."""
        logits = module(x)
        return nn.functional.cross_entropy(logits, y, label_smoothing=self.schedule.smoothing), logits

    def after_epoch(self, module: nn.Module, epoch: int, validation: Split) -> None:
        """Update what the trained network keeps between epochs, in its buffers (nothing by default)."""

    def augment(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return the inputs of a training batch, varied at random where the recipe says so."""
        return self.schedule.vary(x, rng)

    def score(self, module: nn.Module, split: Split) -> tuple[float, float]:
        """Return what a checkpoint is chosen by (larger is better), and its loss, on a split."""
        return accuracy(module, split)

    def figures(self, module: nn.Module, split: Split) -> dict[str, float]:
        """Return what the certificate says about the trained network on the test split."""
        return {"correct": round(accuracy(module, split)[0] * len(split))}

    def finish(self, module: nn.Module, data: Dataset, *, root: Path | None) -> None:
        """Complete the deployed network after training (calibrate a conversion, fold layers)."""

    def measure(self, module: nn.Module, data: Dataset, *, root: Path | None) -> dict[str, Any]:
        """Measure what the certificate states besides accuracy (JSON values; nothing by default)."""
        del module, data, root
        return {}

    def notes(self, certificate: Mapping[str, Any]) -> tuple[str, ...]:
        """Say what a reader must know before trusting a number on these weights (nothing by default)."""
        del certificate
        return ()

    def data(self) -> Dataset:
        """Return the recipe's data set."""
        loaded: Dataset = registry("datasets").get(self.dataset)
        return loaded


def variant(name: str, defense: str = "none", seed: int = 0) -> str:
    """Name a trained variant: NAME, NAME+DEFENSE, NAME@SEED or NAME+DEFENSE@SEED.

    DEFENSE is a name, or the canonical call of one with changed parameters: "mppd(rho=0)".
    """
    return name + (f"+{defense}" if defense != "none" else "") + (f"@{seed}" if seed else "")


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
    data = recipe.data()
    label = label or defense.spec.name
    name = variant(recipe.name, label, seed)
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
        recipe, defense, victim, out=out, label=label, seed=seed, root=root, report=report, started=started
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
    return {"victim": source, "sha256": certificate["sha256"], "passes": _passes(certificate)}


def _passes(certificate: Mapping[str, Any]) -> int | None:
    """Return the sample passes that trained weights, those they were started from included."""
    spent = certificate.get("training", {})
    if not isinstance(spent, Mapping) or not {"forwards", "backwards"} <= spent.keys():
        return None
    before = certificate.get("started_from") or {}
    return int(spent["forwards"]) + int(spent["backwards"]) + int(before.get("passes") or 0)


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
) -> dict[str, Any]:
    """Write weights and certificate to a folder that exists; returns the certificate.

    Args:
        started: the trained weights that training started from; empty for drawn weights.
    """
    name = variant(recipe.name, label, seed)
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
        "made_with": {
            "torch": torch.__version__,
            "platform": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }
    text = json.dumps(certificate, indent=2, sort_keys=True) + "\n"
    write_atomic(out / f"{name}.safetensors", weights)
    write_atomic(out / f"{name}.json", text.encode())
    return certificate


def _energy(victim: ModuleVictim, test: Split, n: int = 200) -> dict[str, float]:
    """Return the mean operations and energy of the first n test samples; each first layer per step."""
    part = test[:n]
    noise = RowStreams.derive(part.ids, "energy") if victim.spec.stochastic else None
    summary = count_synops(victim, part.x, noise=noise).summary()
    return {"n": len(part), **{key: round(value, 4) for key, value in summary.items()}}


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
    from robustspike.bench.stats import wilson

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


def training_passes(recipe: VictimRecipe, defense: str, seed: int, folder: Path | None) -> dict[str, int]:
    """Return the forward and backward sample passes that trained a variant, as its certificate says.

    Returns: "own", and "plain" for the same victim without defense (of seed 0 where that seed was not
        trained plainly); what no certificate says is left out.
    """
    found = {}
    for name, variants in (("own", [(defense, seed)]), ("plain", [("none", seed), ("none", 0)])):
        paths = [find_weights(recipe, rule, trained, folder) for rule, trained in variants]
        path = next((path for path in paths if path is not None), None)
        spent = None if path is None else _passes(read_certificate(path))
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
