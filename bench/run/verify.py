"""Checking records against the victims: what another person does before believing a table.

The stored adversarial inputs are answered afresh by the victim; nothing that the attack reported is
used. With `rerun`, the attack is run again too and every sample row and input must come out the same;
only so can a bundle without its inputs be checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustspike.bench.attack.decide import Answer
from robustspike.bench.attack.decide import decide
from robustspike.bench.attack.decide import target_classes
from robustspike.bench.attack.probes import spike_extras
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import BenchError
from robustspike.bench.files import sha256
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.record.adversarials import unpack_adversarials
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.schema import read_limited
from robustspike.bench.record.schema import read_record
from robustspike.bench.run.assemble import adversarials_of
from robustspike.bench.run.assemble import cell_of
from robustspike.bench.run.assemble import sample_records
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import Unit
from robustspike.bench.run.compute import compute
from robustspike.bench.suite.identity import identity
from robustspike.bench.suite.loading import samples_of
from robustspike.bench.suite.loading import victim_of

SCORE_TOLERANCE = 1e-4
"""Largest change of a stored margin or score that rounding on another batch size explains."""


@dataclass(frozen=True)
class Verdict:
    """What verification found for one record.

    Args:
        record: the record, or None where it could not be read.
        where: its folder.
        confirmed: broken samples whose stored input is legal and fools the victim afresh.
        broken: broken samples that the record claims.
        problems: what does not hold, a line each; empty for a confirmed record.
    """

    record: CellRecord | None
    where: Path
    confirmed: int
    broken: int
    problems: tuple[str, ...]


def verify(folder: Path, settings: Settings, *, rerun: bool = False) -> Verdict:
    """Verify one record folder; what is wrong becomes a problem line, never an exception."""
    try:
        record = read_record(folder)
    except BenchError as error:
        return Verdict(None, folder, 0, 0, (str(error),))
    rerun = rerun or record.task is Task.CERTIFY  # a certificate is checked by proving it again
    try:
        confirmed, problems = _verify(record, folder, settings, rerun=rerun)
    except BenchError as error:
        confirmed, problems = 0, [str(error)]
    return Verdict(record, folder, confirmed, record.counts["broken"], tuple(problems))


def _verify(record: CellRecord, folder: Path, settings: Settings, *, rerun: bool) -> tuple[int, list[str]]:
    problems = _digests(record, settings)
    cell = cell_of(record)
    shards = [compute(Unit(cell, record.key, i), settings) for i in range(cell.shards)] if rerun else []
    path = folder / "adversarials.safetensors"
    if not rerun and not path.exists():
        return 0, [*problems, "its adversarial inputs are not enclosed: verify it with --rerun"]
    inputs = read_limited(path) if path.exists() else adversarials_of(cell, shards)
    if sha256(inputs) != record.digests.get("adversarials"):
        problems.append("its adversarial inputs are not those that were written (sha256)")
    victim = victim_of(cell, weights=settings.weights, device=settings.device)
    data = samples_of(cell, settings.root)
    if data.ids.tolist() != [row.row for row in record.rows]:
        return 0, [*problems, "its samples are not those of the data set, in order"]
    y = data.y.to(victim.device)
    streams = RowStreams.derive(data.ids, record.seed, "verify", device=victim.device)
    if victim.spec.task is Task.CLASSIFY:
        clean = decide(victim, data.x.to(victim.device), y, streams.fork("clean")).label.tolist()
        wrong = sum(now != row.clean for now, row in zip(clean, record.rows, strict=True))
        if wrong:
            problems.append(f"{wrong} clean predictions come out differently")
    rows, x_adv = unpack_adversarials(inputs, path)
    claimed = [place for place, row in enumerate(record.rows) if row.status is Status.BROKEN]
    if rows.tolist() != [record.rows[place].row for place in claimed]:
        return 0, [*problems, "its adversarial inputs are not those of its broken samples"]
    confirmed = 0
    if claimed:
        at = torch.tensor(claimed)
        x0, x = data.x[at].to(victim.device), x_adv.to(victim.device, data.x.dtype)
        eps = float("inf") if record.threat.eps is None else float(record.threat.eps)
        geometry = registry("geometries").get(record.threat.geometry)
        legal = geometry.legal(x0, x, eps=eps, bounds=record.threat.bounds)
        distance = geometry.distance(x0, x)
        stored = torch.tensor([record.rows[p].distance for p in claimed], dtype=torch.float64)
        answer = decide(victim, x, y[at], streams.fork("returned", rows=at.to(victim.device)))
        fooled = _fooled(record, answer, [record.rows[p] for p in claimed], victim.spec)
        confirmed = int((legal.cpu() & fooled).sum())
        if not bool(legal.all()):
            problems.append(f"{int((~legal).sum())} stored inputs leave the threat model")
        if not bool(fooled.all()):
            problems.append(f"{int((~fooled).sum())} stored inputs do not fool the victim as recorded")
        if not torch.allclose(distance.cpu(), stored, atol=1e-6):
            problems.append("recorded distances differ from those of the stored inputs")
        if victim.spec.domain is Domain.SPIKES:
            problems += _miscounted(spike_extras(x0, x), [record.rows[p] for p in claimed])
    if rerun:
        problems += _compare(record, tuple(row for shard in shards for row in sample_records(shard)))
    return confirmed, problems


def _fooled(record: CellRecord, answer: Answer, rows: list[SampleRecord], spec: VictimSpec) -> Tensor:
    """Say for every claimed sample whether the fresh answer is the recorded success: [n] bool, on the CPU."""
    if record.task is Task.QUALITY:
        recorded = torch.tensor([row.adv_score for row in rows], dtype=torch.float64)
        return (answer.score.cpu() - recorded).abs() <= SCORE_TOLERANCE * recorded.abs().clamp(min=1.0)
    label = answer.label.cpu()
    truth = torch.tensor([int(row.label) for row in rows])
    fooled = label != truth
    if record.threat.goal is Goal.TARGETED:
        fooled = label == target_classes(truth, torch.tensor([row.row for row in rows]), spec.classes)
    return fooled if spec.stochastic else fooled & (label == torch.tensor([row.adv for row in rows]))


def _miscounted(counted: dict[str, Tensor], rows: list[SampleRecord]) -> list[str]:
    """Compare recorded spike counts (older records have none) with those of the stored inputs."""
    wrong = any(
        row.extras.get(name, count) != count
        for name, column in counted.items()
        for row, count in zip(rows, column.tolist(), strict=True)
    )
    return ["recorded spike counts differ from those of the stored inputs"] if wrong else []


def _digests(record: CellRecord, settings: Settings) -> list[str]:
    problems = []
    key, digests, _ = identity(
        cell_of(record), weights=settings.weights, root=settings.root, device=settings.device
    )
    for name in ("weights", "data", "code"):
        if digests[name] != record.digests.get(name):
            problems.append(f"its {name} digest is not that of the {name} here")
    if not problems and key != record.key:
        problems.append("its key is not the digest of its parameters")
    return problems


def _compare(record: CellRecord, rows: tuple[SampleRecord, ...]) -> list[str]:
    if encode_samples(rows) == encode_samples(record.rows):
        return []
    differ = sum(a != b for a, b in zip(rows, record.rows, strict=True))
    return [f"running {record.label} again changes {differ} of {len(rows)} samples"]
