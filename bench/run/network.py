"""Anyone's network as a victim of the harness: from a function and a checkpoint to a plugin file and weights.

What is written beside the records (a plugin file that holds the network's own source, weights with their
certificate) is what `run --plugin`, `verify --plugin` and `submit` take, so that a network from outside is
measured, verified and handed in as any other.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from robustspike.bench.attack.fitting import domains_of
from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import load_file
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.data.arrays import Described
from robustspike.bench.data.arrays import describe
from robustspike.bench.data.arrays import read_samples
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.files import sha256
from robustspike.bench.files import write_atomic
from robustspike.bench.numbers.stats import wilson
from robustspike.bench.run.found import LOOKED_AT
from robustspike.bench.run.found import found_in_regressor
from robustspike.bench.run.found import neurons_of
from robustspike.bench.run.found import noise_of
from robustspike.bench.snn.legacy import legacy_spikingjelly
from robustspike.bench.suite.cell import label_of
from robustspike.bench.suite.file import Suite
from robustspike.bench.suite.file import parse_suite
from robustspike.bench.training.checkpoint import load_into
from robustspike.bench.training.checkpoint import read_checkpoint
from robustspike.bench.training.network import NetworkRecipe
from robustspike.bench.training.network import build_network
from robustspike.bench.training.weights import _fingerprint
from robustspike.bench.training.weights import file_stem
from robustspike.bench.training.weights import variant
from robustspike.bench.victim.adapt import adapt
from robustspike.bench.victim.adapt import outputs
from robustspike.bench.victim.energy import count_synops
from robustspike.bench.victim.from_pyiqa import PyiqaMetric
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.regressor import regressor

_STANDARD = {
    Domain.STATIC: ("autoattack.snn",),
    Domain.SPIKES: ("autoattack.spikes",),
    Domain.EVENTS: ("autoattack.spikes", "count.random"),
}
"""What is run on a network without a word on attacks: the standard verdict, on counts beside random changes,
since its list was chosen on binary frames."""

_SCORED = (
    "quality.random_sign",
    "quality.ifgsm",
    "quality.ifgsm(steps=40)",
    "quality.mifgsm",
    "quality.korhonen",
    "quality.square(queries=200)",
    "quality.nes(iterations=10)",
)
"""What is run on a quality model without a word on attacks; without gradients, what asks for scores alone."""

_KNOWN_NORMALISATIONS: dict[int, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    3: {
        "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "[-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    },
    1: {"MNIST": ((0.1307,), (0.3081,)), "[-1, 1]": ((0.5,), (0.5,))},
}


@dataclass(frozen=True)
class Request:
    """What a user says about a network.

    Args:
        target: "FILE.py:NAME" or "package.module:NAME" of a function, class or instance; a .nir file;
            "pyiqa:METRIC".
        data: a registered data set, or a file or folder for `read_samples`.
        checkpoint: its weights; None where the target comes with them.
        root: folder of published data sets.
        split: which split is attacked.
        steps, time, mean, std, stochastic, training_neurons: as in `adapt`.
        name, defense: names in tables; the defense is "none" unless the network was hardened.
        legacy: map pre-2.0 spellings of SpikingJelly onto 2.0 first.
        score_range: (worst, best) of a quality model's scores; empty for classifiers.
        size, crops: what a quality model sees of an image, as in `adapted_regressor`.
    """

    target: str
    data: str
    checkpoint: Path | None = None
    root: Path | None = None
    split: str = "test"
    steps: int = 0
    time: str = "auto"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    stochastic: bool = False
    training_neurons: bool = False
    name: str = ""
    defense: str = "none"
    legacy: bool = False
    score_range: tuple[float, ...] = ()
    size: int = 0
    crops: int = 0


@dataclass(frozen=True)
class Prepared:
    """A network that suites can name.

    Args:
        name: its name in tables.
        victim: the checked victim.
        plugins: the files that make it and its data known to other processes and machines.
        weights: the folder of its weights.
        defense: its defense's name in tables.
    """

    name: str
    victim: ModuleVictim
    plugins: tuple[Path, ...]
    weights: Path
    defense: str


@dataclass(frozen=True)
class Looked:
    """A network that was built, loaded, adapted and checked; nothing is written yet.

    Args:
        request: what was asked for.
        name: its name in tables.
        victim: the checked victim.
        samples: the split that is attacked.
        dataset: the name of the data set.
        what: what its samples are.
        told: what was found and done, a line each.
    """

    request: Request
    name: str
    victim: ModuleVictim
    samples: Split
    dataset: str
    what: Described
    told: tuple[str, ...]


def look(request: Request) -> Looked:
    """Build, load, check and describe a network.

    Raises: ConfigError, ArtefactError, ContractError: what is wrong, with the likely cause.
    """
    if request.legacy:
        legacy_spikingjelly()
    name = request.name or _plain_name(request)
    network = build_network(request.target)
    if isinstance(network, PyiqaMetric) and not request.score_range:
        if not network.score_range:
            raise ConfigError(
                f"{request.target}: pyiqa states no scale for it. Give --score-range WORST,BEST."
            )
        request = dataclasses.replace(request, score_range=network.score_range)
    what, dataset, samples = _data(request)
    told = []
    if request.checkpoint is not None:
        state, found = read_checkpoint(request.checkpoint)
        told += [f"checkpoint: {line}" for line in found]
        told += [f"checkpoint: {line}" for line in load_into(network, state, where=str(request.checkpoint))]
    settings = _settings(request)
    if what.task is Task.QUALITY:
        victim = regressor(
            network,
            name=name,
            shape=what.shape,
            score_range=request.score_range,
            size=request.size,
            crops=request.crops,
            **settings,
        )
        told += found_in_regressor(victim, samples)
        return Looked(request, name, victim, samples, dataset, what, tuple(told))
    classes = outputs(network, shape=what.shape, domain=what.domain, bounds=what.bounds, **settings)
    if classes < what.classes:
        low = int(samples.y.min())
        cause = (
            f"they start at {low}, off by one: classes count from 0"
            if low == 1 and classes == what.classes - 1
            else "it is another data set's network"
        )
        raise ContractError(
            f"{request.target}: answers {classes} classes, but the labels of {request.data} run to "
            f"{what.classes - 1}; likely {cause}."
        )
    victim = adapt(
        network,
        name=name,
        shape=what.shape,
        classes=classes,
        domain=what.domain,
        bounds=what.bounds,
        **settings,
    )
    told += found_in(victim, samples)
    return Looked(request, name, victim, samples, dataset, what, tuple(told))


def prepare(looked: Looked, out: Path) -> Prepared:
    """Write a network's plugin files and weights into a folder, and make it known to this process.

    Raises: ConfigError: another network or data set has its name.
    """
    name, victim, request = looked.name, looked.victim, looked.request
    plugins = []
    if not _is_registered(request.data):
        plugins.append(out / f"{file_stem(looked.dataset)}.py")
        write_atomic(plugins[0], _data_plugin(looked).encode())
    plugins.append(out / f"{file_stem(name)}.py")
    write_atomic(plugins[-1], _plugin(looked).encode())
    for plugin in plugins:
        load_file(plugin)
    save_weights(out / "weights", registry("victims").get(name), request.defense, victim, looked.samples)
    return Prepared(name, victim, tuple(plugins), out / "weights", request.defense)


def _settings(request: Request) -> dict[str, Any]:
    """Return what a request says of a network's conventions, as `adapt` takes it."""
    return {
        "steps": request.steps,
        "time": request.time,
        "mean": request.mean,
        "std": request.std,
        "stochastic": request.stochastic,
        "training_neurons": request.training_neurons,
    }


def _plain_name(request: Request) -> str:
    where, _, attribute = request.target.rpartition(":")
    if request.target.endswith(".nir"):
        return Path(request.target).stem
    return f"{Path(where).stem if where.endswith('.py') else where.rpartition('.')[2]}.{attribute}"


def _is_registered(data: str) -> bool:
    return data.partition("(")[0] in registry("datasets").names()


def _data(request: Request) -> tuple[Described, str, Split]:
    """Return what the data are, the name of their data set, and the samples.

    A file's data set is named for it and for its samples, so that rows on the same samples meet in one table.
    """
    if _is_registered(request.data):
        data: Dataset = registry("datasets").get(request.data)
        if data.needs_root and request.root is None:
            raise ConfigError(f"data set '{request.data}' is read from its files: give --data-dir DIR.")
        asked_for_scores = bool(request.score_range)
        if asked_for_scores is not (data.task is Task.QUALITY):
            raise ConfigError(
                f"data set '{request.data}' holds "
                + (
                    "classes, and --score-range is for quality models."
                    if asked_for_scores
                    else "quality scores: say on which scale the network answers with --score-range "
                    "WORST,BEST (0,100; or 1,0 where smaller is better)."
                )
            )
        samples = data.load(request.split, root=request.root)  # type: ignore[arg-type]
        what = Described(data.shape, data.classes, data.domain, data.bounds, data.task)
        return what, request.data, samples
    path = Path(request.data)
    x, y = read_samples(path, scores=bool(request.score_range))
    samples = Split(x, y, torch.arange(len(x)))
    return describe(x, y), f"{path.stem}-{samples.digest[:6]}", samples


def _data_plugin(looked: Looked) -> str:
    """Return the source of the plugin file of a data set."""
    what = looked.what
    return f"""# Written by robustspike evaluate: give it to run and verify as --plugin.
from dataclasses import dataclass
from typing import ClassVar

from robustspike.bench.api import ArrayData, Domain, Task


@dataclass(frozen=True)
class OwnData(ArrayData):
    name: ClassVar[str] = {looked.dataset!r}
    shape: ClassVar[tuple[int, ...]] = {what.shape!r}
    classes: ClassVar[int] = {what.classes!r}
    domain: ClassVar[Domain] = Domain({str(what.domain)!r})
    task: ClassVar[Task] = Task({str(what.task)!r})
    bounds: ClassVar[tuple[float, float]] = {what.bounds!r}
    source: ClassVar[str] = "One's own file."
    path: str = {str(Path(looked.request.data).resolve())!r}
"""


def _plugin(looked: Looked) -> str:
    """Return the source of the plugin file: the network's own source, and what the harness must know."""
    request = looked.request
    spec = looked.victim.spec
    settings = {"classes": spec.classes, **_settings(request)}
    base = "NetworkRecipe"
    if spec.task is Task.QUALITY:
        base = "RegressorRecipe"
        settings |= {"score_range": request.score_range, "size": request.size, "crops": request.crops}
        settings["black_box"] = spec.black_box
    where, _, attribute = request.target.rpartition(":")
    head = ["import sys"]
    body, call = "", f"made_network({attribute}, {request.target!r})"
    if request.legacy:
        head += ["from robustspike.bench.api import legacy_spikingjelly", "legacy_spikingjelly()"]
    if request.target.endswith(".nir"):
        call = f"build_network({str(Path(request.target).resolve())!r})"
    elif where.endswith(".py"):
        path = Path(where).resolve()
        head += [f"sys.path.append({str(path.parent)!r})"]
        body = path.read_text(encoding="utf-8")
    else:
        call = f"build_network({request.target!r})"
    start = _after_future(body)
    lines = body.splitlines()
    told = "# Written by robustspike evaluate: give it to run and verify as --plugin."
    values = "".join(f"    {key}={value!r},\n" for key, value in settings.items())
    defense = (
        ""
        if request.defense == "none"
        else f"""

@dataclass(frozen=True)
class OwnDefense(DefenseBase):
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name={request.defense!r}, trains=True, source="As its authors hardened it. Differs: n/a."
    )
"""
    )
    return (
        "\n".join([*lines[:start], told, *head, *lines[start:]])
        + f"""

from dataclasses import dataclass
from typing import ClassVar

from robustspike.bench.api import DefenseBase, DefenseSpec, {base}, build_network, made_network
{defense}

class OwnNetwork({base}):
    def network(self):
        return {call}


OWN_NETWORK = OwnNetwork(
    name={looked.name!r},
    dataset={looked.dataset!r},
{values})
"""
    )


def _after_future(source: str) -> int:
    """Return the number of lines that must stay first: a docstring and imports from the future."""
    last = 0
    for node in ast.parse(source).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if (is_text and last == 0) or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            last = node.end_lineno or last
    return last


def own_suite(
    found: Prepared,
    *,
    eps: Sequence[str],
    attacks: Sequence[str],
    samples: int,
    shard: int,
    seed: int,
    geometry: str = "",
) -> Suite:
    """Return the suite of one network: its attacks at every budget, and images over the whole domain once.

    Without attacks it is the standard verdict of the domain. Without budgets it is the geometry's usual one,
    and where it has none the fewest changes. Without a geometry it is each attack's first that fits.

    Raises: ConfigError: an attack that needs a budget got none, or that is not for such inputs.
    """
    domain = found.victim.spec.domain
    static = domain is Domain.STATIC
    scored = found.victim.spec.task is Task.QUALITY
    chosen = list(attacks) or list(_SCORED if scored else _STANDARD[domain])
    calls = [parse_call(attack) for attack in chosen]
    known = registry("attacks")
    geometries: dict[str, None] = {}
    for attack in chosen:
        fit = _fitting(attack, domain)
        if not fit or geometry not in ("", *fit):
            spec, fits = known.get(attack).spec, {name: _fitting(name, domain) for name in known.names()}
            raise ConfigError(
                f"{attack}: is for the geometry {' or '.join(spec.geometries)} on the domain "
                f"{' or '.join(map(str, spec.domains))}; the inputs here are of the domain '{domain}'"
                f"{f' and the geometry is {geometry}' if geometry else ''}. Attacks for these: "
                f"{', '.join(name for name, fit in fits.items() if fit and geometry in ('', *fit))}."
            )
        fit = [geometry] if geometry else fit
        if not set(fit) & set(geometries):  # attacks share a budget where they can
            geometries |= dict.fromkeys(fit[:1])
    threats: list[dict[str, Any]] = [
        {"domain": str(domain), "geometry": geometry, "eps": size, "attacks": names_of(calls)}
        | ({"goal": "shift", "levels": 255} if scored else {})
        for geometry in geometries
        for size in eps or [_usual(geometry, chosen)]
    ]
    entries = [{"name": name, "params": dict(params)} for name, params in calls]
    if static and not scored and "linf" in geometries:
        low, high = found.victim.spec.bounds
        check = {"name": "pgd.linf", "params": {"steps": 20}}
        whole = {"domain": str(domain), "geometry": "linf", "eps": str(high - low)}
        threats.append(whole | {"attacks": [_label(check)]})
        entries += [] if check in entries else [check]
    value = {
        "name": found.name,
        "description": "A network of one's own.",
        "samples": samples,
        "shard": shard,
        "seeds": [seed],
        "threats": threats,
        "victims": [{"name": found.name, "defenses": [found.defense]}],
        "attacks": entries,
    }
    return parse_suite(value, found.name)


def _fitting(attack: str, domain: Domain) -> list[str]:
    """Return the geometries of an attack that are for a domain; none where the attack is not."""
    spec = registry("attacks").get(attack).spec
    if domain not in spec.domains:
        return []
    return [name for name in spec.geometries if domain in (domains_of(name) or (domain,))]


def _usual(geometry: str, attacks: Sequence[str]) -> str:
    """Return the budget of a geometry that is used without a word: its usual one, else "min"."""
    usual = getattr(registry("geometries").get(geometry), "usual_eps", None)
    if usual is not None:
        return str(usual)
    specs = [(attack, registry("attacks").get(attack).spec) for attack in attacks]
    unfit = [a for a, spec in specs if not spec.minimum_norm and geometry in spec.geometries]
    if unfit:
        raise ConfigError(
            f"{', '.join(unfit)}: needs a budget, and the geometry '{geometry}' has no usual one. Give --eps."
        )
    return "min"


def names_of(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the labels of attacks in a suite."""
    return [_label({"name": name, "params": dict(params)}) for name, params in calls]


def _label(entry: Mapping[str, Any]) -> str:
    return label_of(entry["name"], entry["params"])


def save_weights(
    folder: Path, recipe: NetworkRecipe, defense: str, victim: ModuleVictim, samples: Split
) -> None:
    """Write the weights of a victim and their certificate, as `load_victim` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    name = file_stem(variant(recipe.name, defense, 0))
    held = {key: value.detach().clone().contiguous() for key, value in victim.module.state_dict().items()}
    weights = serialise(held)
    certificate = {
        "victim": recipe.name,
        "defense": defense,
        "seed": 0,
        "sha256": sha256(weights),
        "bytes": len(weights),
        "fingerprint": _fingerprint(victim),
        "defense_parameters": {},
        "test": {"n": len(samples)},
    }
    write_atomic(folder / f"{name}.safetensors", weights)
    write_atomic(folder / f"{name}.json", (json.dumps(certificate, indent=2, sort_keys=True) + "\n").encode())


def found_in(victim: ModuleVictim, samples: Split) -> list[str]:
    """Say what a network is: its neurons, its time, its clean accuracy against chance, its energy.

    Raises: ContractError: its accuracy is that of chance, with the likely cause where one is found.
    """
    lines = [f"neurons: {line}" for line in neurons_of(victim)]
    time = getattr(victim.module, "time", "inside")
    lines.append(f"time: {time}" + (f", T = {victim.spec.steps}" if victim.spec.steps else ""))
    part = samples[:LOOKED_AT]
    labels = _answers(victim, part.x)
    right = int((labels == part.y).sum())
    low, high = wilson(right, len(part))
    chance = 1 / victim.spec.classes
    lines.append(
        f"clean: {right} of {len(part)} right, {100 * right / len(part):.1f} % [{100 * low:.1f}, "
        f"{100 * high:.1f}]; chance is {100 * chance:.1f} %"
    )
    if low <= chance:
        lines.append(f"clean: no better than chance. {_cause(victim, part, labels)}")
    energy = count_synops(victim, part.x[:50], noise=noise_of(victim, min(50, len(part)))).energy_nj()
    lines.append(f"energy: {float(energy.mean()):.3g} nJ a sample")
    return lines


def _answers(victim: ModuleVictim, x: Tensor, answer: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    parts = []
    with torch.no_grad():
        for rows in x.split(100):
            rows = rows.to(victim.device)
            logits = (
                victim.logits(rows, noise=noise_of(victim, len(rows))) if answer is None else answer(rows)
            )
            parts.append(logits.argmax(dim=1).cpu())
    return torch.cat(parts)


def _cause(victim: ModuleVictim, part: Split, labels: Tensor) -> str:
    """Say what is likely wrong with a network that is right no more often than chance."""
    for shift in (1, -1):
        if float((labels + shift == part.y).double().mean()) > 0.5:
            return (
                f"Labels are off by one: most are the answer {'+' if shift > 0 else '-'} 1. Number the "
                "classes from 0, in the order of the training."
            )
    module: Any = victim.module
    if not module.mean and victim.spec.domain is Domain.STATIC:
        try:
            for name, (mean, std) in _KNOWN_NORMALISATIONS.get(victim.spec.shape[0], {}).items():
                module.mean, module.std = mean, std
                share = float((_answers(victim, part.x) == part.y).double().mean())
                if share > 0.5:
                    given = f"--mean {','.join(map(str, mean))} --std {','.join(map(str, std))}"
                    return f"With the normalisation of {name} {100 * share:.0f} % are right: give {given}."
        finally:
            module.mean, module.std = (), ()
    return (
        "Likely it has other weights than those that were trained (no --checkpoint, or another one), or it "
        "wants normalised pixels (--mean, --std), or its time otherwise (--time, --steps)."
    )


def refused_estimators(victim: ModuleVictim) -> dict[str, str]:
    """Return the gradient estimators that do not apply to a victim, each with the reason."""
    from robustspike.bench.victim.checks import refusal

    known = registry("estimators")
    reasons = {name: refusal(victim, known.get(name)) for name in known.names()}
    return {name: reason for name, reason in reasons.items() if reason is not None}
