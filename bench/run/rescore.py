"""Inputs alone against a row: held against its threat model, judged as it was, kept as a record."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from robustspike.bench.attack.judge import violation
from robustspike.bench.attack.known import Known
from robustspike.bench.attack.probes import spike_extras
from robustspike.bench.attack.result import BROKEN
from robustspike.bench.attack.result import ROBUST
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.attack.saving import sample_records
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.data.base import Split
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.files import sha256
from robustspike.bench.record import given
from robustspike.bench.record.adversarials import pack_adversarials
from robustspike.bench.record.adversarials import unpack_adversarials
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import count
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.schema import read_limited
from robustspike.bench.record.store import Store
from robustspike.bench.run.assemble import cell_of
from robustspike.bench.run.assemble import environment
from robustspike.bench.run.assemble import sources
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import energy_of
from robustspike.bench.run.verify import judged_again
from robustspike.bench.suite.loading import samples_of
from robustspike.bench.suite.loading import victim_of
from robustspike.bench.victim.module import ModuleVictim


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table as this machine has it.

    Args:
        of: one of its records, whose threat model, samples, shards and seed are those of the table.
        victim: its network.
        data: its samples.
    """

    of: CellRecord
    victim: ModuleVictim
    data: Split


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Handed-in inputs: sample ids [n] and x [n, ...], in the type of the data."""

    ids: Tensor
    x: Tensor

    def of(self, data: Split) -> Inputs:
        """Return those of the samples that a table has."""
        there = torch.isin(self.ids, data.ids)
        return Inputs(self.ids[there], self.x[there])


@dataclasses.dataclass(frozen=True)
class Rescored:
    """What handed-in inputs do to a row: the record, and its samples and inputs as bytes."""

    record: CellRecord
    samples: bytes
    inputs: bytes


def load_row(record: CellRecord, settings: Settings) -> Row:
    """Load network and samples of a row. Raises: ConfigError: they are not those that were measured."""
    if record.task is not Task.CLASSIFY:
        raise ConfigError(
            f"{record.victim}: its rows are of the kind '{record.task}'; inputs alone are "
            "judged on classifiers."
        )
    cell = cell_of(record)
    victim = victim_of(cell, weights=settings.weights, device=settings.device)
    data = samples_of(cell, settings.root)
    for name, here, way in (("weights", victim.spec.weights, "weights"), ("data", data.digest, "data")):
        if here != record.digests[name]:
            raise ConfigError(
                f"{record.victim} + {record.defense}: its {name} have the digest "
                f"{record.digests[name][:12]}, those here {here[:12]}. Give --{way} DIR "
                "with those that were measured."
            )
    return Row(record, victim, data)


def read_inputs(path: Path, spec: VictimSpec, data: Split) -> Inputs:
    """Read inputs that were handed in and hold them against what a victim takes, whatever the threat model.

    Args:
        path: a safetensors file with "rows", the sample ids [n], and "x", the inputs [n, ...]: float32, or 0
            and 1 (uint8, bool or float32) for binary frames; an adversarials.safetensors will do.
        spec: of the victim.
        data: the samples of the row.

    Raises: ArtefactError: not such a file, or a sample that no threat model allows; it is named.
    """
    if not path.exists():
        raise ArtefactError(f"{path}: no such file. Give a safetensors file with 'rows' and 'x'.")
    rows, x = unpack_adversarials(read_limited(path), path)
    kinds = (torch.float32, torch.uint8, torch.bool) if spec.domain is Domain.SPIKES else (torch.float32,)
    if x.dtype not in kinds:
        wanted = " or ".join(_name(kind) for kind in kinds)
        raise ArtefactError(
            f"{path}: x is {_name(x.dtype)}, expected {wanted} in [{spec.bounds[0]:g}, {spec.bounds[1]:g}]. "
            "Convert it, and check that it still fools the victim."
        )
    if rows.dtype not in (torch.int64, torch.int32):
        raise ArtefactError(f"{path}: rows is {_name(rows.dtype)}, expected sample ids as int64.")
    if x.shape[1:] != data.x.shape[1:]:
        raise ArtefactError(
            f"{path}: inputs of shape {list(x.shape[1:])}, expected {list(data.x.shape[1:])} as the data of "
            f"victim '{spec.name}' have."
        )
    ids = rows.long()
    if not len(ids):
        raise ArtefactError(f"{path}: holds no input.")
    twice = [sample for sample, times in Counter(ids.tolist()).items() if times > 1]
    if twice:
        raise ArtefactError(f"{path}: sample {twice[0]} comes twice. Hand in one input for each sample.")
    known = set(data.ids.tolist())
    strange = [sample for sample in ids.tolist() if sample not in known]
    if strange:
        raise ArtefactError(
            f"{path}: sample {strange[0]} is none of the row's {len(known)} samples, whose ids go from "
            f"{min(known)} to {max(known)}. Use the ids of the data set, or leave it out."
        )
    broken = ~torch.isfinite(x.float()).flatten(1).all(dim=1)
    if bool(broken.any()):
        raise ArtefactError(f"{path}: sample {int(ids[broken][0])} holds NaN or infinity.")
    return Inputs(ids, x.to(data.x.dtype))


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def illegal(inputs: Inputs, data: Split, threat: ThreatModel) -> str | None:
    """Say which input leaves a threat model, and how; None where all are legal."""
    x0 = data.x[_places(inputs, data)]
    geometry = registry("geometries").get(threat.geometry)
    eps = math.inf if threat.eps is None else float(threat.eps)
    legal = geometry.legal(x0, inputs.x, eps=eps, bounds=threat.bounds)
    return None if bool(legal.all()) else violation(geometry, threat, x0, inputs.x, legal, inputs.ids)


def _places(inputs: Inputs, data: Split) -> Tensor:
    """Return where the samples of the inputs stand in the data: [n]."""
    place = {sample: at for at, sample in enumerate(data.ids.tolist())}
    return torch.tensor([place[sample] for sample in inputs.ids.tolist()])


def rescore(row: Row, inputs: Inputs, settings: Settings, *, by: str, source: str = "") -> Rescored:
    """Judge handed-in inputs on a row; those that break it make a record.

    Every sample is answered as in a run: same shards, streams and rule. A sample without an input, or whose
    input does not fool the victim, counts as not broken by this record.

    Args:
        row: the row.
        inputs: legal inputs, see `illegal`.
        settings: those that the row was loaded with.
        by: who is credited.
        source: where the inputs are described.

    Raises: ContractError: the victim fails.
    """
    record, data, victim = row.of, row.data, row.victim
    places = _places(inputs, data)
    x_adv, handed_in = data.x.clone(), torch.zeros(len(data), dtype=torch.bool)
    x_adv[places], handed_in[places] = inputs.x, True
    shards, measures = [], Counter[str]()
    for start in range(0, len(data), record.shard):
        part = slice(start, start + record.shard)
        shard = judged_again(victim, record, data[part], x_adv[part], handed_in[part])
        spared = (shard.status == BROKEN) & ~handed_in[part]  # noise alone: nobody handed in an input for it
        shard.status[spared], shard.adv[spared] = ROBUST, shard.clean[spared]
        if victim.spec.domain is Domain.SPIKES:
            shard.extras |= spike_extras(data.x[part], shard.x_adv)
        attacked = sum(shard.count(status) for status in (Status.ROBUST, Status.BROKEN))
        measures.update({"attacked": attacked, "noisy": attacked if victim.spec.stochastic else 0})
        measures.update(_energy(victim, data[part], shard, record.seed))
        shards.append(shard)
    kept = _inputs_of(record, shards)
    made = _record(row, shards, kept, dict(measures), settings, by=by, source=source)
    return Rescored(made, encode_samples(made.rows), kept)


def keep(found: Rescored, row: Row, settings: Settings) -> None:
    """Write the record of handed-in inputs below `settings.out`, with what else a reader needs of the row.

    Raises: ConfigError, ArtefactError: the folder cannot be used, or a file not be kept.
    """
    store = Store(settings.out)
    with store.locked():
        origin = sources(cell_of(row.of), row.victim.spec.weights, settings, attacked=False)
        record = dataclasses.replace(found.record, environment={**found.record.environment, **origin})
        store.write_record(record, found.samples, found.inputs)


def _energy(victim: ModuleVictim, data: Split, shard: ShardResult, seed: int) -> dict[str, int]:
    try:
        return energy_of(victim, data, shard, Known(), seed=seed)
    except ContractError:  # the verdicts stand; the other records of the row say what the victim costs
        return {}


def _inputs_of(record: CellRecord, shards: list[ShardResult]) -> bytes:
    broken = torch.cat([shard.status for shard in shards]) == BROKEN
    ids, x = (torch.cat([getattr(shard, name) for shard in shards]) for name in ("ids", "x_adv"))
    return pack_adversarials(ids[broken], x[broken], binary=record.threat.domain is Domain.SPIKES)


def _record(
    row: Row,
    shards: list[ShardResult],
    inputs: bytes,
    measures: dict[str, int],
    settings: Settings,
    *,
    by: str,
    source: str,
) -> CellRecord:
    of = row.of
    rows = tuple(line for shard in shards for line in sample_records(shard))
    counts = count(rows)
    said = {"by": by, "source": source} if source else {"by": by}
    kept = dict(of.parameters["cell"]) | {"attack_params": {}}
    kept.pop("compiled", None)
    described = {name: of.parameters.get(name, {}) for name in ("victim", "defense", "declared")}
    made = dataclasses.replace(
        of,
        key="",
        attack=given.ATTACK,
        label=f"{given.ATTACK} by {by}",
        parameters=described | {"attack": {}, "cell": kept, "given": said},
        threat=dataclasses.replace(of.threat, access=Access.WHITE),
        counts=counts,
        cost={"attacked": measures["attacked"], "forwards": 0, "backwards": 0},
        measures=measures,
        flags=cell_flags(measures, counts),
        errors=tuple(dict.fromkeys(message for shard in shards for message in shard.errors)),
        digests={
            **{name: of.digests[name] for name in ("weights", "data")},
            "code": "",
            "samples": sha256(encode_samples(rows)),
            "adversarials": sha256(inputs),
        },
        environment=environment(settings),
        rows=rows,
    )
    return dataclasses.replace(made, key=given.key_of(made))
