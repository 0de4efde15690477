"""From the shards of a cell to its record, and back to the cell."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from robustspike.bench.attack.decide import VERIFICATION_DRAWS
from robustspike.bench.attack.result import STATUS
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.attack.saving import sample_records
from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.errors import ArtefactError
from robustspike.bench.files import sha256
from robustspike.bench.record import provenance
from robustspike.bench.record.adversarials import pack_adversarials
from robustspike.bench.record.enclosures import keep_plugin
from robustspike.bench.record.enclosures import keep_weights
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import count
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.store import Store
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import Unit
from robustspike.bench.run.compute import compute
from robustspike.bench.run.compute import job_of
from robustspike.bench.run.shards import read_shard
from robustspike.bench.snn import fused
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.cell import fits
from robustspike.bench.suite.cell import frozen
from robustspike.bench.suite.loading import victim_of
from robustspike.bench.suite.plan import Plan
from robustspike.bench.suite.variant import variant_of
from robustspike.bench.training.weights import shipped_weights
from robustspike.bench.training.weights import training_passes
from robustspike.bench.victim.module import ModuleVictim


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
        shard = read_shard(store.shards, key, index)
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
        task=job_of(cell).task(spec),
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
        digests=digests
        | {
            "weights_after": " ".join(dict.fromkeys(shard.weights for shard in shards)),
            "samples": sha256(samples),
            "adversarials": sha256(adversarials),
        },
        environment=environment(settings) | sources(cell, victim.spec.weights, settings),
        rows=rows,
    )
    store.write_record(record, samples, adversarials)
    if settings.command:
        seconds = sum(shard.seconds for shard in shards)
        spent = {name: record.cost[name] for name in ("forwards", "backwards")}
        provenance.note_cost(settings.out, key, seconds=seconds, **spent)
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
    } | ({"compiled": True} if cell.compiled else {})


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
            compiled=kept.get("compiled") is True,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"record {record.key}: does not say how to run its cell again ({error})."
        ) from error


def _declared(cell: Cell, victim: ModuleVictim, weights: Path | None) -> dict[str, Any]:
    """Return what victim and defense say about themselves, for a table that runs no model."""
    variant = variant_of(cell, weights)
    declared = job_of(cell).declared(cell.rules.get(cell.attack, **dict(cell.attack_params)))
    if cut := victim.cut(cell.shard):
        declared = declared | {"samples_a_pass": cut}
    geometry = registry("geometries").get(cell.threat.geometry)
    return declared | {
        "geometry": {
            "unit": getattr(geometry, "unit", "distance"),
            "everywhere": getattr(geometry, "everywhere", True),
            "moves": getattr(geometry, "moves", False),
            "natural": getattr(geometry, "natural", False),
        },
        "score_label": registry("datasets").get(cell.dataset).score_label,
        "draws": VERIFICATION_DRAWS if victim.spec.stochastic else 1,
        "steps": victim.spec.steps,
        "family": variant.recipe.family,
        "adaptive": [need for need in variant.rule.spec.adaptive if _applies(need, cell, victim)],
        "notes": list(victim.spec.notes),
        "neurons": len(victim.neurons),
        "training_passes": training_passes(variant.recipe, cell.defense, cell.victim_seed, weights),
    }


def _applies(need: str, cell: Cell, victim: ModuleVictim) -> bool:
    """Say whether an adaptive attack that a defense names can be run under a cell's threat model."""
    if need == "wide_surrogate":
        return bool(victim.neurons)  # without spiking neurons there is no surrogate to exchange
    attacks = registry("attacks")
    return need not in attacks.names() or fits(attacks.get(need), cell.threat, victim.spec)


def sources(cell: Cell, weights: str, settings: Settings, *, attacked: bool = True) -> dict[str, str]:
    """Say where the components of a cell came from, and keep in the results folder what no package brings.

    Returns: attack_from, victim_from, defense_from and data_from: a distribution, or "file" for a plugin
        file; plugins: the sha256 of these files; weights_from: "package", or "file" for weights that came
        from another folder.

    Args:
        weights: the digest of the victim's parameters and buffers.
        attacked: whether its attack is among them; inputs that were handed in alone have none.
    """
    variant = variant_of(cell, settings.weights)
    named = {"attack": cell.rules.entry(cell.attack)} if attacked else {}
    named |= {
        "victim": registry("victims").entry(cell.victim),
        "defense": registry("defenses").entry(variant.family),
        "data": registry("datasets").entry(parse_call(cell.dataset)[0]),
    }
    loose = {entry.target.rpartition(":")[0] for entry in named.values() if not entry.is_installed}
    kept = sorted(keep_plugin(settings.out, Path(path)) for path in loose)
    path = variant.weights
    is_shipped = path is None or path.parent == shipped_weights(variant.recipe)
    if path is not None and not is_shipped:
        keep_weights(settings.out, weights, path)
    found = {f"{what}_from": entry.distribution for what, entry in named.items()}
    found["weights_from"] = "package" if is_shipped else "file"
    return found | ({"plugins": " ".join(kept)} if kept else {})


def environment(settings: Settings) -> dict[str, str]:
    """Describe where a record was made: versions, platform, instruction set, device, threads.

    And whether spiking layers ran compiled (`bench.snn.fused`), which changes no number.
    """
    device = settings.device
    if device.startswith("cuda"):
        device = f"{device} ({torch.cuda.get_device_name(device)})"
    return {
        "robustspike": version("robustspike"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "spikingjelly": version("spikingjelly"),
        "platform": f"{sys.platform} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "threads": str(settings.threads),
        "lif": "python" if fused.library() is None else "compiled",
    }
