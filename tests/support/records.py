"""Small made-up records for tests of tables and files (never of numbers that the product reports)."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.files import sha256
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.bench.record.schema import count
from robustspike.bench.record.schema import digest
from robustspike.bench.record.schema import encode_record
from robustspike.bench.record.schema import encode_samples

CODES = {
    "r": Status.ROBUST,
    "b": Status.BROKEN,
    "w": Status.WRONG_CLEAN,
    "e": Status.ERROR,
    "u": Status.UNCERTIFIED,
}


def make_record(
    verdicts: str = "rrbbw",
    *,
    victim: str = "net",
    defense: str = "none",
    attack: str = "pgd.linf",
    eps: Fraction | None = Fraction(1, 10),
    access: Access = Access.WHITE,
    measures: dict[str, Any] | None = None,
    data: str = "d1",
    seed: int = 0,
) -> CellRecord:
    """Make a record of made-up verdicts, one letter a sample: r, b, w, e or u."""
    rows = tuple(
        SampleRecord(
            row=i,
            label=float(i % 10),
            clean=i % 10,
            adv=i % 10,
            status=CODES[letter],
            distance=0.1 if letter == "b" else 0.0,
            forwards=0 if letter == "w" else 5,
            backwards=0 if letter == "w" else 4,
            first_hit=3 if letter == "b" else -1,
            clean_score=-1.0,
            adv_score=-0.5,
        )
        for i, letter in enumerate(verdicts)
    )
    counts = count(rows)
    attacked = len(verdicts) - verdicts.count("w")
    measured = {"attacked": attacked, **(measures or {})}
    return CellRecord(
        key=digest([verdicts, victim, defense, attack, str(eps), data, seed]),
        suite="test",
        suite_version=1,
        suite_digest="0" * 32,
        task=Task.CLASSIFY,
        victim=victim,
        defense=defense,
        attack=attack,
        label=attack,
        parameters={"attack": {}, "victim": {}, "defense": {}},
        dataset="digits",
        split="test",
        samples=len(rows),
        shard=125,
        threat=ThreatModel(eps=eps, access=access),
        seed=seed,
        counts=counts,
        cost={
            "attacked": attacked,
            "forwards": sum(r.forwards for r in rows),
            "backwards": sum(r.backwards for r in rows),
        },
        measures=measured,
        flags=cell_flags(measured, counts),
        errors=(),
        digests={
            "weights": f"{victim}{defense}",
            "data": data,
            "code": "c",
            "samples": sha256(encode_samples(rows)),
        },
        environment={"torch": "test"},
        rows=rows,
    )


def make_proof(verdicts: str, *, confidence: float = 1.0, **changes: Any) -> CellRecord:
    """Make a record of a made-up certificate."""
    record = make_record(verdicts, attack="intervals", **changes)
    stated = {"certificate": {"norm": "linf", "confidence": confidence}}
    rows = tuple(
        replace(row, extras={"radius": 0.1 if row.status is Status.ROBUST else -1.0}) for row in record.rows
    )
    parameters = record.parameters | {"declared": stated}
    return replace(record, task=Task.CERTIFY, parameters=parameters, rows=rows)


def write(record: CellRecord, root: Path) -> Path:
    """Write a record below a results folder; return the record's folder."""
    folder = root / "records" / record.key
    folder.mkdir(parents=True)
    (folder / "samples.csv").write_bytes(encode_samples(record.rows))
    (folder / "record.json").write_bytes(encode_record(record))
    return folder
