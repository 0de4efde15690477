"""Running a plan: shards in any order, on any number of processes, with the same bytes.

The unit of work is one shard of one cell. Each is written as soon as it is done; when all shards of
a cell are there, its record is written. A run that finds records or shards does not repeat them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustspike.bench.attack.limits import data_bytes
from robustspike.bench.attack.limits import watchdog
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ConfigError
from robustspike.bench.record import provenance
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.store import Store
from robustspike.bench.run.assemble import _finish
from robustspike.bench.run.cluster import in_ray
from robustspike.bench.run.cluster import joined
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import Unit
from robustspike.bench.run.compute import compute
from robustspike.bench.run.compute import failed_shard
from robustspike.bench.run.compute import job_of
from robustspike.bench.run.compute import set_up
from robustspike.bench.run.pool import in_processes
from robustspike.bench.run.shards import pack_shard
from robustspike.bench.run.shards import read_shard
from robustspike.bench.run.shards import write_shard
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.cell import NotApplicable
from robustspike.bench.suite.file import Suite
from robustspike.bench.suite.identity import identity
from robustspike.bench.suite.loading import samples_of
from robustspike.bench.suite.loading import victim_of
from robustspike.bench.suite.part import WHOLE
from robustspike.bench.suite.part import Part
from robustspike.bench.suite.plan import Plan
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.compiling import refusal as uncompiled
from robustspike.bench.victim.module import ModuleVictim


@dataclass(frozen=True)
class Tick:
    """What `run` reports: shards done of all shards, and the cell that moved."""

    done: int
    total: int
    cell: Cell


def prepare(settings: Settings) -> None:
    """Set up a process of a run here."""
    set_up(settings.threads, settings.plugins)


def work(unit: Unit, settings: Settings) -> Unit:
    """Compute one shard and write it."""
    store = Store(settings.out)
    if read_shard(store.shards, unit.key, unit.index) is None:
        write_shard(store.shards, unit.key, unit.index, pack_shard(compute(unit, settings)))
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


def run(
    plan: Plan,
    settings: Settings,
    *,
    jobs: int = 1,
    part: Part = WHOLE,
    cluster: str | None = None,
    on_tick: Callable[[Tick], None] | None = None,
    on_start: Callable[[Cell], None] | None = None,
    on_misfit: Callable[[NotApplicable], None] | None = None,
) -> list[CellRecord]:
    """Measure every cell of a plan that is not there yet; return all their records in plan order.

    A victim that fails its checks has errors in its own cells, with what it failed; a cell whose gradient
    estimator or certifier does not apply to its victim has no record, and `on_misfit` is told why.

    Args:
        jobs: worker processes here.
        part: measure these cells alone; none of the plan may be among them.
        cluster: address of a Ray cluster to work on instead, or "local" (see `joined`).
        on_tick: called after each shard.
        on_start: called with the cell of each shard that starts, or is handed to a cluster.
        on_misfit: called with each cell that does not apply.

    Raises: ConfigError: nothing applies. ArtefactError: a record is damaged, or nothing can be written.
    """
    prepare(settings)
    store = Store(settings.out)
    with store.locked(), joined(cluster, settings.device):
        store.clean()
        keyed = [entry for entry in _identify(plan, settings) if part.has(entry[0])]
        if not keyed:
            return []
        records = {key: _adopt(store, key, plan.suite) for key, _, _, _ in keyed if store.has(key)}
        missing = [cell for key, cell, _, _ in keyed if key not in records]
        faults, misfits = _examine(missing, settings)
        for cell, reason in misfits.items():
            if on_misfit is not None:
                on_misfit(NotApplicable(cell.victim_label, cell.defense, f"{cell.label}: {reason}"))
        keyed = [entry for entry in keyed if entry[1] not in misfits]
        if not keyed:
            reason = next(iter(misfits.values()))
            raise ConfigError(f"suite '{plan.suite.name}': nothing to measure ({reason}).")
        units = [
            Unit(cell, key, index)
            for key, cell, _, _ in keyed
            if key not in records
            for index in range(cell.shards)
        ]
        for unit in units:
            if fault := faults.get(unit.cell):
                content = pack_shard(failed_shard(unit, settings, fault))
                write_shard(store.shards, unit.key, unit.index, content)
        if units and settings.command:
            provenance.note(settings.out, provenance.session(settings.command))
        waiting = {key: cell.shards for key, cell, _, _ in keyed if key not in records}
        total = sum(cell.shards for _, cell, _, _ in keyed)
        done = total - len(units)
        about = {key: (cell, digests, parameters) for key, cell, digests, parameters in keyed}
        for unit in _execute(units, settings, jobs, cluster, on_start):
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


def _examine(cells: Sequence[Cell], settings: Settings) -> tuple[dict[Cell, str], dict[Cell, str]]:
    """Check every victim once; return what is wrong with those of some cells, and cells that do not apply."""
    found: dict[object, str | None] = {}
    faults: dict[Cell, str] = {}
    misfits: dict[Cell, str] = {}
    for cell in cells:
        victim = victim_of(cell, weights=settings.weights, device=settings.device)
        which = (cell.victim, cell.victim_params, cell.defense, cell.victim_seed)
        if which not in found:
            found[which] = _fault(victim, samples_of(cell, settings.root).x)
        if (fault := found[which]) is not None:
            faults[cell] = fault
        elif (reason := _does_not_apply(cell, victim)) is not None:
            misfits[cell] = reason
    return faults, misfits


def _does_not_apply(cell: Cell, victim: ModuleVictim) -> str | None:
    """Say why an attack's gradient, or a certifier, does not apply to a loaded victim, or None."""
    rule = cell.rules.get(cell.attack, **dict(cell.attack_params))
    if cell.compiled and (reason := uncompiled(victim)) is not None:
        return f"not with --compile: {reason}"
    return job_of(cell).refusal(rule, victim)


def _fault(victim: ModuleVictim, x: Tensor) -> str | None:
    """Say which check a victim fails, or None."""
    try:
        check_victim(victim, x)
    except Exception as error:  # noqa: BLE001  (a network is foreign code: it raises what it likes)
        text = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        return text if victim.spec.name in text else f"victim '{victim.spec.name}': {text}"
    return None


def _execute(
    units: Sequence[Unit],
    settings: Settings,
    jobs: int,
    cluster: str | None,
    on_start: Callable[[Cell], None] | None,
) -> Iterator[Unit]:
    """Compute units and write their shards, here, in processes, or on a cluster; the same bytes every way."""

    def starts(unit: Unit) -> None:
        if on_start is not None:
            on_start(unit.cell)

    if cluster is not None and units:
        folder = Store(settings.out).shards
        here = [unit for unit in units if read_shard(folder, unit.key, unit.index) is not None]
        yield from here
        missing = [unit for unit in units if unit not in set(here)]
        done = in_ray(missing, settings, on_start=starts) if missing else ()
        for unit, content in done:
            _keep(unit, settings, content)
            yield unit
    elif jobs <= 1 or len(units) <= 1:
        for unit in units:
            starts(unit)
            yield work(unit, settings)
    else:
        for unit, survived in in_processes(
            units, work_guarded, settings, jobs=jobs, start=prepare, on_start=starts
        ):
            if not survived:
                _keep(unit, settings, None)
            yield unit


def _keep(unit: Unit, settings: Settings, content: bytes | None) -> None:
    """Write a shard; without content, one whose process died."""
    content = content or pack_shard(compute(unit, settings, died=True))
    write_shard(Store(settings.out).shards, unit.key, unit.index, content)
