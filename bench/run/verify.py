"""Checking records against the victims: what another person does before believing a table.

The stored adversarial inputs are judged afresh, shard by shard, by the rule and the random streams that
judged them when they were found; nothing that the attack reported is used. With `rerun`, the attack is run
again too and every sample row and input must come out the same; only so can robust samples, certificates,
and records without their inputs be checked.

A record is *confirmed*, *refuted* (something in it does not hold), or *cannot be checked* here: what it
needs is missing, or only the version and machine that measured it could tell. What could be checked of such
a record is checked nevertheless: what does not hold refutes it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from robustspike.bench.attack.decide import decide
from robustspike.bench.attack.decide import target_classes
from robustspike.bench.attack.judge import judge
from robustspike.bench.attack.meter import Meter
from robustspike.bench.attack.probes import spike_extras
from robustspike.bench.attack.result import ERROR
from robustspike.bench.attack.result import STATUS
from robustspike.bench.attack.result import WRONG
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.attack.result import blank
from robustspike.bench.attack.result import to_cpu
from robustspike.bench.attack.saving import sample_records
from robustspike.bench.attack.task import rules_of
from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.data.base import Split
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import ProtocolError
from robustspike.bench.files import sha256
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.record import given
from robustspike.bench.record.adversarials import unpack_adversarials
from robustspike.bench.record.enclosures import enclosed_weights
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.schema import read_limited
from robustspike.bench.record.schema import read_record
from robustspike.bench.run.assemble import adversarials_of
from robustspike.bench.run.assemble import cell_of
from robustspike.bench.run.assemble import environment
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import Unit
from robustspike.bench.run.compute import compute
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.identity import identity
from robustspike.bench.suite.loading import samples_of
from robustspike.bench.suite.loading import victim_of
from robustspike.bench.victim.module import ModuleVictim

SCORE_TOLERANCE = 1e-4
"""Largest change of a stored score that rounding explains, of its size or of 1."""

_BYTES_HANG_ON = ("torch", "spikingjelly", "platform", "cpu", "device", "threads")
"""What a record says of its environment that the last bits of a number can depend on."""


class Finding(StrEnum):
    """What verification says about a record."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    CANNOT = "cannot check"


@dataclass(frozen=True)
class Verdict:
    """What verification found for one record.

    Args:
        record: the record, or None where it could not be read.
        where: its folder.
        confirmed: broken samples whose stored input is legal and fools the victim afresh.
        broken: broken samples that the record claims.
        problems: what does not hold, a line each.
        missing: what could not be checked, and how it could be, a line each.
        notes: what a reader should know of a check that was made.
    """

    record: CellRecord | None
    where: Path
    confirmed: int
    broken: int
    problems: tuple[str, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def finding(self) -> Finding:
        """Refuted by any problem; else not checked if anything is missing; else confirmed."""
        if self.problems:
            return Finding.REFUTED
        return Finding.CANNOT if self.missing else Finding.CONFIRMED


@dataclass
class _Found:
    """A verdict in the making."""

    confirmed: int = 0
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(folder: Path, settings: Settings, *, rerun: bool = False) -> Verdict:
    """Verify one record folder; what is wrong or missing becomes a line of the verdict, never an exception.

    Weights that lie beside the records, in weights/DIGEST, are used for the records that name the digest.
    """
    try:
        record = read_record(folder)
    except ProtocolError as error:
        return Verdict(None, folder, 0, 0, (), (str(error),))
    except BenchError as error:
        return Verdict(None, folder, 0, 0, (str(error),))
    kept = enclosed_weights(folder.parent.parent, digest=record.digests["weights"])
    if kept is not None:
        settings = dataclasses.replace(settings, weights=kept)
    found = _Found()
    _verify(found, record, folder, settings, rerun=rerun)
    lines = tuple(found.problems), tuple(found.missing), tuple(found.notes)
    return Verdict(record, folder, found.confirmed, record.counts["broken"], *lines)


def _absent(cell: Cell, record: CellRecord) -> list[str]:
    """Name the components of a record that are not here, and where each came from."""
    named = {
        "victim": ("victims", cell.victim),
        "defense": ("defenses", parse_call(cell.defense)[0]),
        "data": ("datasets", parse_call(cell.dataset)[0]),
        **({} if given.by(record) else {"attack": (cell.rules.kind, cell.attack)}),
    }
    found = []
    for what, (kind, name) in named.items():
        if name in registry(kind).names():
            continue
        source = record.environment.get(f"{what}_from", "")
        how = {
            "file": "it came from a plugin file: --plugin FILE, or --trust for one that is enclosed",
            "": "install the package that has it, or give --plugin FILE",
        }.get(source, f"it came from the package {source}: install it")
        found.append(f"its {registry(kind).singular} '{name}' is not here; {how}")
    return found


def _digests_agree(found: _Found, record: CellRecord, victim: ModuleVictim, data: Split) -> bool:
    """Say whether victim and data are those that were measured; note for each what to get where not."""
    ways = {
        "weights": ("--weights DIR with them", victim.spec.weights),
        "data": ("--data DIR with the same files", data.digest),
    }
    differ = [name for name, (_, here) in ways.items() if here != record.digests[name]]
    for name in differ:
        way, here = ways[name]
        found.missing.append(
            f"its {name} digest is {record.digests[name][:12]}, that of the {name} here {here[:12]}: pass "
            f"{way}, or use the version that measured it"
        )
    return not differ


def _verify(found: _Found, record: CellRecord, folder: Path, settings: Settings, *, rerun: bool) -> None:
    if record.shard < 1 or record.samples < 1:
        found.problems.append(f"it says {record.samples} samples in shards of {record.shard}")
        return
    try:
        cell = cell_of(record)
        found.missing += _absent(cell, record)
        attack_is_here = not found.missing and not given.by(record)
        victim = victim_of(cell, weights=settings.weights, device=settings.device)
        data = samples_of(cell, settings.root)
    except BenchError as error:  # no such victim, weights or data here
        found.missing = found.missing or [str(error)]
        return
    if not _digests_agree(found, record, victim, data):
        return
    if data.ids.tolist() != [row.row for row in record.rows]:
        found.problems.append("its samples are not those of the data set, in order")
        return
    path = folder / "adversarials.safetensors"
    inputs = read_limited(path) if path.exists() else None
    if inputs is not None and sha256(inputs) != record.digests.get("adversarials"):
        found.problems.append("its adversarial inputs are not those that were written (sha256)")
    if given.by(record):
        _check_given(found, record, rerun=rerun)
    if attack_is_here:
        same_code = _identified(found, record, cell, settings)
        if rerun or record.task is Task.CERTIFY:  # a certificate is checked by proving it again
            again = _run_again(found, record, cell, settings, same_code=same_code)
            inputs = again if inputs is None else inputs
    if inputs is None:
        found.missing.append("its adversarial inputs are not enclosed: verify it with --rerun")
    try:
        stored = None if inputs is None else unpack_adversarials(inputs, path)
    except BenchError as error:
        found.problems.append(str(error))
        stored = None
    _judge_again(found, record, victim, data, stored)


def _check_given(found: _Found, record: CellRecord, *, rerun: bool) -> None:
    """Check the key of inputs that were handed in alone; what they do is checked as of any record."""
    try:
        if given.key_of(record) != record.key:
            found.problems.append("its key is not the digest of its parameters")
    except KeyError as error:
        found.problems.append(f"it does not say {error} of the inputs that were handed in")
    if rerun:
        found.notes.append("its inputs were handed in alone: there is no attack to run again")


def _identified(found: _Found, record: CellRecord, cell: Cell, settings: Settings) -> bool:
    """Say whether the code here is the code that measured the record; if so, its key must follow from it."""
    try:
        key, digests, _ = identity(cell, weights=settings.weights, root=settings.root, device=settings.device)
    except BenchError as error:
        found.missing.append(str(error))
        return False
    if digests["code"] != record.digests["code"]:
        found.notes.append(
            "the code of its victim, defense or attack is not what measured it (robustspike "
            f"{record.environment.get('robustspike', '?')}); what is confirmed holds with the code here"
        )
        return False
    if key != record.key:
        found.problems.append("its key is not the digest of its parameters")
    return True


def _run_again(
    found: _Found, record: CellRecord, cell: Cell, settings: Settings, *, same_code: bool
) -> bytes | None:
    """Run a cell again, compare it with the record, and return its adversarial inputs; None if it cannot run.

    Where the code, and all else that the bytes hang on, is the same, any difference refutes the record.
    Elsewhere rounding or the code may explain one: the verdicts must be the same, or it cannot be checked.
    """
    try:
        shards = [compute(Unit(cell, record.key, i), settings) for i in range(cell.shards)]
    except BenchError as error:
        found.missing.append(f"it cannot be run again here: {error}")
        return None
    rows = tuple(row for shard in shards for row in sample_records(shard))
    inputs = adversarials_of(cell, shards)
    line = difference(record, rows, sha256(inputs))
    if line is None:
        found.notes.append("run again, to the same bytes")
        return inputs
    others = elsewhere(record, environment(settings))
    if same_code and not others:
        found.problems.append(line)
        return inputs
    moved = verdicts_moved(record, rows)
    line += f", {moved} of them in their verdicts; not as when it was measured: " + ", ".join(
        [*(["code"] * (not same_code)), *others]
    )
    if moved:
        found.missing.append(f"{line}: run it again there")
    else:
        found.notes.append(line)
    return inputs


def difference(record: CellRecord, rows: Sequence[SampleRecord], inputs: str) -> str | None:
    """Say how running a record again differs from it; None where it gives the same bytes.

    Args:
        record: the record.
        rows: the samples, run again.
        inputs: sha256 of the adversarial inputs, run again.
    """
    if encode_samples(tuple(rows)) != encode_samples(record.rows):
        differ = sum(a != b for a, b in zip(rows, record.rows, strict=True))
        return f"running {record.label} again changes {differ} of {len(rows)} samples"
    if inputs != record.digests.get("adversarials"):
        return f"running {record.label} again gives other adversarial inputs (sha256)"
    return None


def elsewhere(record: CellRecord, here: Mapping[str, str]) -> list[str]:
    """Return what differs between an environment and a record's, of all that its bytes hang on."""
    return [name for name in _BYTES_HANG_ON if record.environment.get(name) != here[name]]


def verdicts_moved(record: CellRecord, rows: Sequence[SampleRecord]) -> int:
    """Return how many samples, run again, have another verdict or answer."""
    return sum(
        (a.status, a.clean, a.adv) != (b.status, b.clean, b.adv)
        for a, b in zip(rows, record.rows, strict=True)
    )


def _judge_again(
    found: _Found,
    record: CellRecord,
    victim: ModuleVictim,
    data: Split,
    stored: tuple[Tensor, Tensor] | None,
) -> None:
    """Judge clean and stored inputs shard by shard, as they were judged, and compare with the record."""
    claimed = [place for place, row in enumerate(record.rows) if row.status is Status.BROKEN]
    x_adv, is_claimed = data.x.clone(), torch.zeros(len(data), dtype=torch.bool)
    if stored is not None:
        rows, x = stored
        if rows.tolist() != [record.rows[place].row for place in claimed]:
            found.problems.append("its adversarial inputs are not those of its broken samples")
        elif x.shape[1:] != data.x.shape[1:]:
            found.problems.append("its adversarial inputs are not of the shape of the data")
        elif claimed:
            is_claimed[claimed] = True
            x_adv[is_claimed] = x.to(data.x.dtype)
    shards = []
    try:
        for start in range(0, len(data), record.shard):
            part = slice(start, start + record.shard)
            shards.append(judged_again(victim, record, data[part], x_adv[part], is_claimed[part]))
    except BenchError as error:
        found.missing.append(str(error))
        return
    _check_clean(found, record, victim, data, shards)
    if is_claimed.any():
        _check_broken(found, record, victim, data, x_adv, is_claimed, shards)


def judged_again(
    victim: ModuleVictim, record: CellRecord, data: Split, x_adv: Tensor, claimed: Tensor
) -> ShardResult:
    """Judge the stored inputs of one shard by the rule, the batch and the random streams of the evaluation.

    Args:
        victim: the victim.
        record: whose they are: its threat model and seed.
        data: the samples of the shard.
        x_adv: the final inputs; the clean ones where none is claimed.
        claimed: [N] bool, the samples that the record calls broken.

    Returns: the verdicts on these inputs; passes and measurements are left blank. What a stochastic victim
        decides depends on whether the attack returned an input or the oracle remembered it, which no record
        says: either stream may confirm it, as either could have broken it.
    """
    device, threat = victim.device, record.threat
    x, y, ids = data.x.to(device), data.y.to(device), data.ids.to(device)
    result = blank(x, y, ids)
    streams = RowStreams.derive(ids, record.seed, "verify", device=device)
    clean = decide(victim, x, y, streams.fork("clean"))
    result.clean, result.clean_score = clean.label, clean.score
    result.adv, result.adv_score = clean.label.clone(), clean.score.clone()
    result.status[~rules_of(victim.spec).correct(clean.label, y)] = WRONG
    result.status[~clean.finite] = ERROR
    rows = (result.status == 0).nonzero().squeeze(1)
    if not len(rows) or not claimed.any():
        return to_cpu(result)
    targeted = threat.goal is Goal.TARGETED
    meter = Meter(
        victim,
        threat,
        registry("geometries").get(threat.geometry),
        x[rows],
        y[rows],
        noise=streams,
        clean=clean.logits[rows],
        estimators=_no_gradients,
        targets=target_classes(y[rows], ids[rows], victim.spec.classes) if targeted else None,
    )
    final = x_adv.to(device)[rows]
    legal = meter.geometry.legal(meter.x0, final, eps=meter.eps, bounds=threat.bounds)
    meter.best, meter.hit = final, claimed.to(device)[rows] & legal
    judge(victim, meter, final, rows, streams, result)
    return to_cpu(result)


def _no_gradients(name: str) -> GradientEstimator:
    raise ContractError(f"verification computes no gradients, and needs no '{name}'.")


def _check_clean(
    found: _Found, record: CellRecord, victim: ModuleVictim, data: Split, shards: Sequence[ShardResult]
) -> None:
    """Compare labels, clean answers, and what follows from them."""
    labels = torch.tensor([row.label for row in record.rows], dtype=torch.float64)
    if not torch.equal(labels, data.y.double()):
        found.problems.append("its labels are not those of the data set")
    if rules_of(victim.spec).by_score:
        scores = torch.tensor([row.clean_score for row in record.rows], dtype=torch.float64)
        wrong = int((~_close(torch.cat([s.clean_score for s in shards]), scores)).sum())
        if wrong:
            found.problems.append(f"{wrong} clean scores come out differently")
        return
    clean = torch.cat([s.clean for s in shards]).tolist()
    wrong = sum(now != row.clean for now, row in zip(clean, record.rows, strict=True))
    if wrong:
        found.problems.append(f"{wrong} clean predictions come out differently")
    mixed = sum(
        (row.status is Status.WRONG_CLEAN) != (row.clean != row.label)
        for row in record.rows
        if row.status is not Status.ERROR
    )
    if mixed:
        found.problems.append(f"{mixed} verdicts contradict their own clean predictions")


def _check_broken(
    found: _Found,
    record: CellRecord,
    victim: ModuleVictim,
    data: Split,
    x_adv: Tensor,
    claimed: Tensor,
    shards: Sequence[ShardResult],
) -> None:
    """Compare the fresh verdicts on the stored inputs with those of the record."""
    rows = [row for row in record.rows if row.status is Status.BROKEN]
    x0, x = data.x[claimed], x_adv[claimed]
    eps = math.inf if record.threat.eps is None else float(record.threat.eps)
    geometry = registry("geometries").get(record.threat.geometry)
    legal = geometry.legal(x0, x, eps=eps, bounds=record.threat.bounds)
    fooled = torch.cat([s.status for s in shards])[claimed] == STATUS.index(Status.BROKEN)
    if rules_of(victim.spec).by_score:
        recorded = torch.tensor([row.adv_score for row in rows], dtype=torch.float64)
        fooled &= _close(torch.cat([s.adv_score for s in shards])[claimed], recorded)
    elif not victim.spec.stochastic:
        answered = torch.tensor([row.adv for row in rows])
        fooled &= torch.cat([s.adv for s in shards])[claimed] == answered
    found.confirmed = int((legal & fooled).sum())
    if not bool(legal.all()):
        found.problems.append(f"{int((~legal).sum())} stored inputs leave the threat model")
    if not bool(fooled.all()):
        found.problems.append(f"{int((~fooled).sum())} stored inputs do not fool the victim as recorded")
    distance = torch.tensor([row.distance for row in rows], dtype=torch.float64)
    if not torch.allclose(geometry.distance(x0, x), distance, atol=1e-6):
        found.problems.append("recorded distances differ from those of the stored inputs")
    if victim.spec.domain is not Domain.STATIC:
        counts = victim.spec.domain is Domain.EVENTS
        found.problems += _miscounted(spike_extras(x0, x, counts=counts), rows)


def _close(now: Tensor, recorded: Tensor) -> Tensor:
    return (now.double() - recorded).abs() <= SCORE_TOLERANCE * recorded.abs().clamp(min=1.0)


def _miscounted(counted: dict[str, Tensor], rows: list[SampleRecord]) -> list[str]:
    """Compare recorded spike counts (older records have none) with those of the stored inputs."""
    wrong = any(
        row.extras.get(name, count) != count
        for name, column in counted.items()
        for row, count in zip(rows, column.tolist(), strict=True)
    )
    return ["recorded spike counts differ from those of the stored inputs"] if wrong else []
