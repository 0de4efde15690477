"""From verdicts to a record: what `Evaluation.save` writes beside those of a run."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.decide import VERIFICATION_DRAWS
from robustspike.bench.attack.result import STATUS
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.contract import sources
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.contract.specs import params_of
from robustspike.bench.data.base import Split
from robustspike.bench.files import sha256
from robustspike.bench.record.adversarials import pack_adversarials
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.schema import PROTOCOL
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.bench.record.schema import count
from robustspike.bench.record.schema import digest
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.store import Store
from robustspike.bench.record.threat import encode_threat


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation was of.

    Args:
        victim: the victim's description.
        neurons: the number of its layers that make spikes.
        attack: the attack.
        threat: the threat model.
        x, y: the samples.
        seed, shard: as in `evaluate`.
        device: where the victim was.
        cut: samples of each pass, where a shard was more than one.
    """

    victim: VictimSpec
    neurons: int
    attack: Attack
    threat: ThreatModel
    x: Tensor
    y: Tensor
    seed: int
    shard: int
    device: str
    cut: Mapping[str, int]


def save(
    of: Evaluated, shards: Sequence[ShardResult], folder: Path, *, dataset: str, defense: str
) -> CellRecord:
    """Write the record of an evaluation into a results folder; see `Evaluation.save`."""
    rows = tuple(row for shard in shards for row in sample_records(shard))
    samples, counts = encode_samples(rows), count(rows)
    broken = torch.cat([s.status for s in shards]) == STATUS.index(Status.BROKEN)
    adversarials = pack_adversarials(
        torch.cat([s.ids for s in shards])[broken],
        torch.cat([s.x_adv for s in shards])[broken],
        binary=of.threat.domain.value == "spikes",
    )
    measures: dict[str, Any] = {}
    for shard in shards:
        for name, value in shard.counts.items():
            measures[name] = measures.get(name, 0) + value
    if of.victim.score_range is not None:
        measures["score_range"] = list(of.victim.score_range)
    ids = torch.arange(len(of.x))
    digests = {
        "weights": of.victim.weights,
        "data": Split(of.x.cpu(), of.y.cpu(), ids).digest,
        "code": sources.digest_of(sources.files(of.attack, "attacks")),
    }
    attack = json.loads(json.dumps(dict(params_of(of.attack)), default=str))
    geometry = registry("geometries").get(of.threat.geometry)
    parameters = {
        "victim": {},
        "defense": {},
        "attack": attack,
        "declared": {
            "geometry": {
                "unit": getattr(geometry, "unit", "distance"),
                "everywhere": getattr(geometry, "everywhere", True),
                "moves": getattr(geometry, "moves", False),
            },
            "draws": VERIFICATION_DRAWS if of.victim.stochastic else 1,
            "steps": of.victim.steps,
            "adaptive": [],
            "notes": list(of.victim.notes),
            "neurons": of.neurons,
            "training_passes": {},
        }
        | ({"samples_a_pass": dict(of.cut)} if of.cut else {}),
    }
    named: dict[str, Any] = {
        "victim": of.victim.name,
        "defense": defense,
        "attack": of.attack.spec.name,
        "dataset": dataset,
        "split": "test",
        "samples": len(of.x),
        "shard": of.shard,
        "seed": of.seed,
    }
    key = digest(
        {
            "protocol": PROTOCOL,
            "digests": digests,
            "parameters": parameters,
            "threat": encode_threat(of.threat),
        }
        | named
    )
    changed = _changed(of.attack)
    inside = ",".join(f"{name}={value}" for name, value in sorted(changed.items()))
    record = CellRecord(
        key=key,
        suite="evaluate",
        task=of.victim.task,
        label=f"{of.attack.spec.name}[{inside}]" if inside else of.attack.spec.name,
        parameters=parameters,
        threat=of.threat,
        counts=counts,
        cost={
            "attacked": measures.get("attacked", 0),
            "forwards": sum(row.forwards for row in rows),
            "backwards": sum(row.backwards for row in rows),
        },
        measures=measures,
        flags=cell_flags(measures, counts),
        errors=tuple(dict.fromkeys(message for shard in shards for message in shard.errors)),
        digests=digests | {"samples": sha256(samples), "adversarials": sha256(adversarials)},
        environment={
            "robustspike": version("robustspike"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "spikingjelly": version("spikingjelly"),
            "platform": f"{sys.platform} {platform.machine()}",
            "device": of.device,
            "threads": str(torch.get_num_threads()),
            "victim_from": "evaluate",
            "attack_from": _origin(of.attack),
        },
        rows=rows,
        **named,
    )
    store = Store(folder)
    with store.locked():
        store.write_record(record, samples, adversarials)
    return record


def _changed(attack: Attack) -> dict[str, Any]:
    """Return the parameters of an attack that are not those of its registered name."""
    known = registry("attacks")
    if attack.spec.name not in known.names():
        return {}
    usual = params_of(known.get(attack.spec.name))
    return {key: value for key, value in params_of(attack).items() if usual.get(key) != value}


def _origin(attack: Attack) -> str:
    known = registry("attacks")
    name = attack.spec.name
    return known.entry(name).distribution if name in known.names() else "file"


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
