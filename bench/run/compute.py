"""One shard of one cell: the unit of work."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol

import torch
from torch import Tensor

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.evaluate import evaluate_shard
from robustspike.bench.attack.evaluate import failed
from robustspike.bench.attack.fitting import refused_gradient
from robustspike.bench.attack.known import Known
from robustspike.bench.attack.known import known_of
from robustspike.bench.attack.limits import NO_LIMITS
from robustspike.bench.attack.limits import Limits
from robustspike.bench.attack.limits import keep_freed_memory
from robustspike.bench.attack.oracle import Oracle
from robustspike.bench.attack.result import ERROR
from robustspike.bench.attack.result import STATUS
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.certify.base import certify_shard
from robustspike.bench.certify.contract import Certifier
from robustspike.bench.certify.result import Certified
from robustspike.bench.contract.registry import load_file
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import AttackSpec
from robustspike.bench.contract.specs import CertifierSpec
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.loading import VICTIMS
from robustspike.bench.suite.loading import samples_of
from robustspike.bench.victim.compiling import compiled
from robustspike.bench.victim.energy import CONVENTIONS
from robustspike.bench.victim.energy import USUAL
from robustspike.bench.victim.energy import EnergyCost
from robustspike.bench.victim.energy import SynapticCounts
from robustspike.bench.victim.energy import count_synops
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.state import weights_now


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


def set_up(threads: int, plugins: Iterable[Path]) -> None:
    """Set up a process that computes: its memory, its threads and single-file plugins."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    for path in plugins:
        load_file(path)


@dataclass(frozen=True)
class Unit:
    """One shard of one cell."""

    cell: Cell
    key: str
    index: int


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
    """Compute one shard; one whose process died has errors for verdicts.

    The victim is compared with what was loaded before its next use: whoever changed it, the shard is an
    error. After that, and after any other failure, it is loaded afresh.
    """
    start = time.process_time()
    where: dict[str, Any] = {"weights": settings.weights, "device": settings.device}
    loaded = VICTIMS.pristine(unit.cell, **where)
    kept = False
    try:
        result = _measured(unit, loaded.victim, settings, died=died)
        what = loaded.changed()
        result.weights = loaded.victim.spec.weights if what is None else weights_now(loaded.victim)
        if what is not None:
            result.status.fill_(ERROR)
            result.errors.append(
                f"{unit.cell.label}: the victim was not the same after this shard ({what}); none of its "
                "numbers count. Mend what changes it, remove the record, and run again."
            )
        kept = not result.errors
        result.seconds = time.process_time() - start
    finally:
        if not kept:
            VICTIMS.drop(unit.cell, **where)
    return result


def _measured(unit: Unit, victim: ModuleVictim, settings: Settings, *, died: bool) -> ShardResult:
    cell = unit.cell
    rule = cell.rules.get(cell.attack, **dict(cell.attack_params))
    if died:
        rule = Died(rule.spec)
    data = shard_of(cell, unit.index, settings)
    try:
        result = job_of(cell).measured(unit, victim, rule, data, settings)
    except ContractError as error:  # the victim's own fault: attacks and certifiers are guarded
        return failed_shard(unit, settings, str(error))
    made_from = registry("datasets").get(cell.dataset).sources(data.ids, root=settings.root)
    if made_from is not None:
        result.extras["source"] = made_from.double()
    return result


def failed_shard(unit: Unit, settings: Settings, message: str) -> ShardResult:
    """Return a shard of which nothing can be computed, for a reason that is not the attack's."""
    data = shard_of(unit.cell, unit.index, settings)
    result = failed(data.x, data.y, data.ids, message)
    result.extras |= job_of(unit.cell).nothing(len(data))
    return result


class Job(Protocol):
    """What differs between cells that attack and cells that certify."""

    def measured(
        self, unit: Unit, victim: ModuleVictim, rule: Any, data: Split, settings: Settings
    ) -> ShardResult:
        """Measure one shard. Raises: ContractError: the victim is at fault."""
        ...

    def nothing(self, n: int) -> dict[str, Tensor]:
        """Return the extra columns of n samples of which nothing is known."""
        ...

    def task(self, spec: VictimSpec) -> Task:
        """Return the task that the record is kept under."""
        ...

    def declared(self, rule: Any) -> dict[str, Any]:
        """Return what tables must know of the attack or certifier."""
        ...

    def refusal(self, rule: Any, victim: ModuleVictim) -> str | None:
        """Say why the attack's gradient, or the certifier, does not apply to a loaded victim, or None."""
        ...


class Attacking:
    """Cells that run an attack."""

    def measured(
        self, unit: Unit, victim: ModuleVictim, rule: Attack, data: Split, settings: Settings
    ) -> ShardResult:
        cell = unit.cell
        known = known_of(
            victim,
            {
                "data": samples_of(cell, settings.root).digest,
                "start": unit.index * cell.shard,
                "n": len(data),
                "seed": cell.seed,
            },
        )
        result = evaluate_shard(
            victim,
            rule,
            cell.threat,
            data.x,
            data.y,
            data.ids,
            seed=cell.seed,
            limits=settings.limits,
            events=lambda: _events(cell, unit.index, settings),
            known=known,
            asked=compiled(victim) if cell.compiled else None,
        )
        try:
            result.counts |= energy_of(victim, data, result, known, seed=cell.seed)
        except ContractError as error:  # the verdicts stand; what the victim costs is not known
            result.errors.append(str(error))
        return result

    def nothing(self, n: int) -> dict[str, Tensor]:
        return {}

    def task(self, spec: VictimSpec) -> Task:
        return spec.task

    def declared(self, rule: Attack) -> dict[str, Any]:
        return {}

    def refusal(self, rule: Attack, victim: ModuleVictim) -> str | None:
        return refused_gradient(rule, victim)


class Certifying:
    """Cells that prove what no attack can do, and attack nothing."""

    def measured(
        self, unit: Unit, victim: ModuleVictim, rule: Certifier, data: Split, settings: Settings
    ) -> ShardResult:
        cell = unit.cell
        batch = (victim, rule, cell.threat, data.x, data.y, data.ids)
        return certify_shard(*batch, seed=cell.seed, limits=settings.limits)

    def nothing(self, n: int) -> dict[str, Tensor]:
        return {"radius": torch.full((n,), -1.0, dtype=torch.float64)}

    def task(self, spec: VictimSpec) -> Task:
        return Task.CERTIFY

    def declared(self, rule: Certifier) -> dict[str, Any]:
        return {"certificate": {"norm": rule.spec.norm, "confidence": rule.confidence}}

    def refusal(self, rule: Certifier, victim: ModuleVictim) -> str | None:
        return rule.fits(victim)


JOBS: dict[str, Job] = {"attacks": Attacking(), "certifiers": Certifying()}


def job_of(cell: Cell) -> Job:
    """Return what is done in a cell."""
    return JOBS[cell.kind]


def energy_of(
    victim: ModuleVictim, data: Split, result: ShardResult, known: Known, *, seed: int
) -> dict[str, int]:
    """Measure the energy of the clean answers, and of the broken samples before and after the attack.

    Returns: whole picojoules of one draw, summed over samples: energy_clean_pj (all n), energy_broken_pj (the
        broken samples, clean) and energy_adv_pj (the same, attacked), by the default convention; and of all
        n, clean, by the others: energy_once_pj, energy_dense_pj and energy_dense_once_pj.
    """
    everyone = torch.arange(len(data))
    broken = everyone[result.status == STATUS.index(Status.BROKEN)]

    def counted(x: Tensor, rows: Tensor) -> SynapticCounts | None:
        noise = None
        if victim.spec.stochastic:
            streams = RowStreams.derive(data.ids, seed, "energy", device=victim.device)
            noise = streams.fork("draw", rows=rows.to(victim.device))
        return count_synops(victim, x.to(victim.device), noise=noise) if len(x) else None

    def total(counts: SynapticCounts | None, rows: Tensor | None = None, cost: EnergyCost = USUAL) -> int:
        if counts is None:
            return 0
        energy = counts.energy_nj(cost)
        return round(float((energy if rows is None else energy[rows]).sum()) * 1000)

    clean = known.once("energy", lambda: counted(data.x, everyone))
    found = {f"energy_{name}_pj": total(clean, cost=cost) for name, cost in CONVENTIONS.items()}
    found["energy_broken_pj"] = total(clean, broken)
    return found | {"energy_adv_pj": total(counted(result.x_adv[broken], broken))}


def shard_of(cell: Cell, index: int, settings: Settings) -> Split:
    """Return the samples of one shard of a cell."""
    return samples_of(cell, settings.root)[index * cell.shard : (index + 1) * cell.shard]


def _events(cell: Cell, index: int, settings: Settings) -> EventLists | None:
    data: Dataset = registry("datasets").get(cell.dataset)
    stop = min((index + 1) * cell.shard, cell.samples)
    return data.events(cell.split, range(index * cell.shard, stop), root=settings.root)  # type: ignore[arg-type]
