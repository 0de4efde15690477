"""Running a plan: shards in any order, on any number of processes, with the same bytes.

The unit of work is one shard of one cell. Each is written as soon as it is done; when all shards of
a cell are there, its record is written. A run that finds records or shards does not repeat them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustspike.bench import provenance
from robustspike.bench.certify import Certified
from robustspike.bench.certify import certify_shard
from robustspike.bench.contracts import AttackSpec
from robustspike.bench.contracts import Certifier
from robustspike.bench.contracts import CertifierSpec
from robustspike.bench.contracts import Status
from robustspike.bench.contracts import Task
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.events import EventLists
from robustspike.bench.energy import count_synops
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ContractError
from robustspike.bench.evaluate import evaluate_shard
from robustspike.bench.files import sha256
from robustspike.bench.flags import cell_flags
from robustspike.bench.limits import NO_LIMITS
from robustspike.bench.limits import Limits
from robustspike.bench.limits import data_bytes
from robustspike.bench.limits import in_processes
from robustspike.bench.limits import watchdog
from robustspike.bench.oracle import Oracle
from robustspike.bench.plan import Cell
from robustspike.bench.plan import Plan
from robustspike.bench.plan import Suite
from robustspike.bench.plan import dataset_split
from robustspike.bench.plan import fits
from robustspike.bench.plan import frozen
from robustspike.bench.plan import identity
from robustspike.bench.plan import samples_of
from robustspike.bench.plan import victim_of
from robustspike.bench.recipes import training_passes
from robustspike.bench.records import CellRecord
from robustspike.bench.records import SampleRecord
from robustspike.bench.records import count
from robustspike.bench.records import encode_samples
from robustspike.bench.registry import load_file
from robustspike.bench.registry import registry
from robustspike.bench.rng import RowStreams
from robustspike.bench.store import Store
from robustspike.bench.store import pack_adversarials
from robustspike.bench.verdicts import STATUS
from robustspike.bench.verdicts import ShardResult
from robustspike.bench.victim import ModuleVictim
from robustspike.bench.victim import check_victim


@dataclass(frozen=True)
class Settings:
    """What every worker needs to know.

    Args:
        out: the results folder.
        weights, root: folders of more weights and of published data sets.
        device: where victims are put.
        plugins: single-file plugins to load.
        threads: torch threads of each process; part of the environment that a record names.
        limits: what an attack may take on one shard.
        command: the command line to note beside the records; empty for none.
    """

    out: Path
    weights: Path | None = None
    root: Path | None = None
    device: str = "cpu"
    plugins: tuple[Path, ...] = ()
    threads: int = 1
    limits: Limits = NO_LIMITS
    command: str = ""


@dataclass(frozen=True)
class Unit:
    """One shard of one cell."""

    cell: Cell
    key: str
    index: int


@dataclass(frozen=True)
class Tick:
    """What `run` reports: shards done of all shards, and the cell that moved."""

    done: int
    total: int
    cell: Cell


def prepare(settings: Settings) -> None:
    """Set up a process: threads and plugins."""
    torch.set_num_threads(settings.threads)
    for path in settings.plugins:
        load_file(path)


def work(unit: Unit, settings: Settings) -> Unit:
    """Compute one shard and write it."""
    store = Store(settings.out)
    if store.read_shard(unit.key, unit.index) is None:
        store.write_shard(unit.key, unit.index, compute(unit, settings))
    return unit


def work_guarded(unit: Unit, settings: Settings) -> Unit:
    """Compute one shard in a worker, which ends itself if the shard hangs for good or leaks.

    A worker that keeps half of the memory that a shard may take is replaced, so that what one attack leaks
    is not held against the next; its shard is written by then.
    """
    seconds, gib = settings.limits.seconds, settings.limits.gib
    before = data_bytes()
    with watchdog(None if seconds is None else 2 * seconds + 60):
        work(unit, settings)
    if gib is not None and data_bytes() - before > gib * 2**29:
        os._exit(1)
    return unit


@dataclass(frozen=True)
class Died:
    """Stands in for an attack or a certifier whose process died."""

    spec: AttackSpec | CertifierSpec

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        raise self._error()

    def certify(self, *_: object, **__: object) -> Certified:
        raise self._error()

    def _error(self) -> ContractError:
        return ContractError(
            f"{self.spec.name}: its worker process died, twice, on one shard: it left (os._exit), crashed, "
            "hung in compiled code, or was killed for its memory. Mend it, remove the record, and run again."
        )


def compute(unit: Unit, settings: Settings, *, died: bool = False) -> ShardResult:
    """Compute one shard; one whose process died has errors for verdicts."""
    cell = unit.cell
    victim = victim_of(cell, weights=settings.weights, device=settings.device)
    rule = cell.rules.get(cell.attack, **dict(cell.attack_params))
    if died:
        rule = Died(rule.spec)
    data = _shard(cell, unit.index, settings)
    batch = (victim, rule, cell.threat, data.x, data.y, data.ids)
    if cell.certify:
        return certify_shard(*batch, seed=cell.seed, limits=settings.limits)
    result = evaluate_shard(
        *batch,
        seed=cell.seed,
        limits=settings.limits,
        events=lambda: _events(cell, unit.index, settings),
    )
    result.counts |= energy_of(victim, data, result, seed=cell.seed)
    return result


def energy_of(victim: ModuleVictim, data: Split, result: ShardResult, *, seed: int) -> dict[str, int]:
    """Measure the energy of the clean answers, and of the broken samples before and after the attack.

    Returns: whole picojoules summed over samples: energy_clean_pj (all n), energy_broken_pj (the broken
        samples, clean) and energy_adv_pj (the same, attacked).
    """
    everyone = torch.arange(len(data))
    broken = everyone[result.status == STATUS.index(Status.BROKEN)]
    parts = {
        "clean": (data.x, everyone),
        "broken": (data.x[broken], broken),
        "adv": (result.x_adv[broken], broken),
    }
    streams = RowStreams.derive(data.ids, seed, "energy", device=victim.device)
    found = {}
    for name, (x, rows) in parts.items():
        noise = streams.fork("draw", rows=rows.to(victim.device)) if victim.spec.stochastic else None
        total = count_synops(victim, x.to(victim.device), noise=noise).energy_nj().sum() if len(x) else 0.0
        found[f"energy_{name}_pj"] = round(float(total) * 1000)
    return found


def _shard(cell: Cell, index: int, settings: Settings) -> Split:
    return samples_of(cell, settings.root)[index * cell.shard : (index + 1) * cell.shard]


def _events(cell: Cell, index: int, settings: Settings) -> EventLists | None:
    data: Dataset = registry("datasets").get(cell.dataset)
    stop = min((index + 1) * cell.shard, cell.samples)
    return data.events(cell.split, range(index * cell.shard, stop), root=settings.root)  # type: ignore[arg-type]


def run(
    plan: Plan,
    settings: Settings,
    *,
    jobs: int = 1,
    on_tick: Callable[[Tick], None] | None = None,
) -> list[CellRecord]:
    """Measure every cell of a plan that is not there yet; return all their records in plan order.

    Raises: ContractError: a victim fails its checks (before anything is measured on it).
        ArtefactError: an existing record is damaged, or nothing can be written.
    """
    prepare(settings)
    store = Store(settings.out)
    with store.locked():
        store.clean()
        keyed = _identify(plan, settings)
        records = {key: _adopt(store, key, plan.suite) for key, _, _, _ in keyed if store.has(key)}
        units = [
            Unit(cell, key, index)
            for key, cell, _, _ in keyed
            if key not in records
            for index in range(cell.shards)
        ]
        _check_victims([unit.cell for unit in units], settings)
        if units and settings.command:
            provenance.note(settings.out, provenance.session(settings.command))
        waiting = {key: cell.shards for key, cell, _, _ in keyed if key not in records}
        total = sum(cell.shards for _, cell, _, _ in keyed)
        done = total - len(units)
        about = {key: (cell, digests, parameters) for key, cell, digests, parameters in keyed}
        for unit in _execute(units, settings, jobs):
            waiting[unit.key] -= 1
            if not waiting[unit.key]:
                cell, digests, parameters = about[unit.key]
                records[unit.key] = _finish(store, plan, unit.key, cell, digests, parameters, settings)
            done += 1
            if on_tick is not None:
                on_tick(Tick(done, total, unit.cell))
    return [records[key] for key, _, _, _ in keyed]


def _adopt(store: Store, key: str, suite: Suite) -> CellRecord:
    """Read a record that is there already, and note on it the suite that asks for it now."""
    record = store.read(key)
    known = dataclasses.replace(
        record, suite=suite.name, suite_version=suite.version, suite_digest=suite.digest
    )
    if known != record:
        store.note_suite(known)
    return known


def _identify(plan: Plan, settings: Settings) -> list[tuple[str, Cell, dict[str, str], dict[str, Any]]]:
    found: dict[str, tuple[str, Cell, dict[str, str], dict[str, Any]]] = {}
    for cell in plan.cells:
        key, digests, parameters = identity(
            cell, weights=settings.weights, root=settings.root, device=settings.device
        )
        found.setdefault(key, (key, cell, digests, parameters))
    return list(found.values())


def _check_victims(cells: Sequence[Cell], settings: Settings) -> None:
    seen = set()
    for cell in cells:
        which = (cell.victim, cell.victim_params, cell.defense, cell.victim_seed)
        if which in seen:
            continue
        seen.add(which)
        data = dataset_split(cell.dataset, cell.split, settings.root)
        check_victim(victim_of(cell, weights=settings.weights, device=settings.device), data.x)


def _execute(units: Sequence[Unit], settings: Settings, jobs: int) -> Iterator[Unit]:
    if jobs <= 1 or len(units) <= 1:
        for unit in units:
            yield work(unit, settings)
        return
    for unit, survived in in_processes(units, work_guarded, settings, jobs=jobs, start=prepare):
        if not survived:
            Store(settings.out).write_shard(unit.key, unit.index, compute(unit, settings, died=True))
        yield unit


def _finish(
    store: Store,
    plan: Plan,
    key: str,
    cell: Cell,
    digests: dict[str, str],
    parameters: dict[str, Any],
    settings: Settings,
) -> CellRecord:
    """Assemble the shards of a cell into its record and write it."""
    shards = []
    for index in range(cell.shards):
        shard = store.read_shard(key, index)
        if shard is None:  # damaged between writing and reading
            shard = compute(Unit(cell, key, index), settings)
        shards.append(shard)
    rows = tuple(row for shard in shards for row in sample_records(shard))
    samples = encode_samples(rows)
    victim = victim_of(cell, weights=settings.weights, device=settings.device)
    spec = victim.spec
    adversarials = adversarials_of(cell, shards)
    counts = count(rows)
    measures: dict[str, Any] = {}
    for shard in shards:
        for name, value in shard.counts.items():
            measures[name] = measures.get(name, 0) + value
    if spec.score_range is not None:
        measures["score_range"] = list(spec.score_range)
    attacked = measures.get("attacked", 0)
    record = CellRecord(
        key=key,
        suite=plan.suite.name,
        suite_version=plan.suite.version,
        suite_digest=plan.suite.digest,
        task=Task.CERTIFY if cell.certify else spec.task,
        victim=cell.victim_label,
        defense=cell.defense,
        attack=cell.attack,
        label=cell.label,
        parameters=json.loads(
            json.dumps(
                parameters
                | {"cell": cell_parameters(cell), "declared": _declared(cell, victim, settings.weights)}
            )
        ),
        dataset=cell.dataset,
        split=cell.split,
        samples=cell.samples,
        shard=cell.shard,
        threat=cell.threat,
        seed=cell.seed,
        counts=counts,
        cost={
            "attacked": attacked,
            "forwards": sum(row.forwards for row in rows),
            "backwards": sum(row.backwards for row in rows),
        },
        measures=measures,
        flags=cell_flags(measures, counts),
        errors=tuple(dict.fromkeys(message for shard in shards for message in shard.errors)),
        digests=digests | {"samples": sha256(samples), "adversarials": sha256(adversarials)},
        environment=environment(settings) | {"attack_from": cell.rules.entry(cell.attack).distribution},
        rows=rows,
    )
    store.write_record(record, samples, adversarials)
    return record


def adversarials_of(cell: Cell, shards: Sequence[ShardResult]) -> bytes:
    """Return adversarials.safetensors of a cell: the final inputs of its broken samples."""
    ids = torch.cat([s.ids for s in shards])
    broken = torch.cat([s.status for s in shards]) == STATUS.index(Status.BROKEN)
    x_adv = torch.cat([s.x_adv for s in shards])
    return pack_adversarials(ids[broken], x_adv[broken], binary=cell.threat.domain.value == "spikes")


def cell_parameters(cell: Cell) -> dict[str, Any]:
    """Return what a record must keep to be run again: names, changed parameters, training seed."""
    return {
        "victim": cell.victim,
        "victim_params": dict(cell.victim_params),
        "victim_seed": cell.victim_seed,
        "attack_params": dict(cell.attack_params),
    }


def cell_of(record: CellRecord) -> Cell:
    """Return the cell of a record. Raises: ArtefactError: the record does not say."""
    try:
        kept = record.parameters["cell"]
        return Cell(
            victim=kept["victim"],
            victim_params=frozen(kept["victim_params"]),
            victim_seed=int(kept["victim_seed"]),
            defense=record.defense,
            attack=record.attack,
            attack_params=frozen(kept["attack_params"]),
            threat=record.threat,
            dataset=record.dataset,
            split=record.split,
            samples=record.samples,
            shard=record.shard,
            seed=record.seed,
            certify=record.task is Task.CERTIFY,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"record {record.key}: does not say how to run its cell again ({error})."
        ) from error


def _declared(cell: Cell, victim: ModuleVictim, weights: Path | None) -> dict[str, Any]:
    """Return what victim and defense say about themselves, for a table that runs no model."""
    recipe = registry("victims").get(cell.victim, **dict(cell.victim_params))
    rule = registry("defenses").get(cell.defense)
    declared: dict[str, Any] = {}
    if cell.certify:
        certifier: Certifier = cell.rules.get(cell.attack, **dict(cell.attack_params))
        declared["certificate"] = {"norm": certifier.spec.norm, "confidence": certifier.confidence}
    return declared | {
        "adaptive": [need for need in rule.spec.adaptive if _applies(need, cell, victim)],
        "notes": list(victim.spec.notes),
        "neurons": len(victim.neurons),
        "training_passes": training_passes(recipe, cell.defense, cell.victim_seed, weights),
    }


def _applies(need: str, cell: Cell, victim: ModuleVictim) -> bool:
    """Say whether an adaptive attack that a defense names can be run under a cell's threat model."""
    if need == "wide_surrogate":
        return bool(victim.neurons)  # without spiking neurons there is no surrogate to exchange
    attacks = registry("attacks")
    return need not in attacks.names() or fits(attacks.get(need), cell.threat, victim.spec)


def sample_records(shard: ShardResult) -> list[SampleRecord]:
    """Return a shard's verdicts as records."""
    names = {field.name: field.name for field in dataclasses.fields(SampleRecord) if field.name != "extras"}
    names |= {"row": "ids", "label": "labels"}
    columns = {name: getattr(shard, source).tolist() for name, source in names.items()}
    columns["label"] = [float(label) for label in columns["label"]]
    columns["status"] = [STATUS[code] for code in columns["status"]]
    extras = {name: column.tolist() for name, column in shard.extras.items()}
    return [
        SampleRecord(
            **dict(zip(columns, values, strict=True)),
            extras={name: column[place] for name, column in extras.items()},
        )
        for place, values in enumerate(zip(*columns.values(), strict=True))
    ]


def environment(settings: Settings) -> dict[str, str]:
    """Describe where a record was made: versions, platform, device, threads."""
    device = settings.device
    if device.startswith("cuda"):
        device = f"{device} ({torch.cuda.get_device_name(device)})"
    return {
        "robustspike": version("robustspike"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "spikingjelly": version("spikingjelly"),
        "platform": f"{sys.platform} {platform.machine()}",
        "device": device,
        "threads": str(settings.threads),
    }
