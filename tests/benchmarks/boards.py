"""What tables of many cells cost: seconds, memory and the size of the page.

    python tests/benchmarks/boards.py [CELLS] [--keep DIR]

Writes CELLS (20,000) made-up records, then builds their tables with `robustspike leaderboard DIR --out` in
processes of its own: from the folder and from bundles, each twice, the second time with the index; the bytes
must be the same. Parameters, measures and environments are those of committed records; victims, verdicts and
distances are drawn. A board has 20 attacks on up to 125 rows of 100 samples. Prints a line a build: wall and
processor seconds, largest resident memory, and what 100,000 cells would take if cost grew by the cell; then
the bytes of every file that was written.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.files import sha256
from robustspike.bench.record.bundle import unpacked
from robustspike.bench.record.index import NAME
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.bench.record.schema import count
from robustspike.bench.record.schema import encode_record
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.store import record_folders

BOARD = Path(__file__).resolve().parents[2] / "leaderboard" / "results"
ATTACKS = 20
ROWS = 125
SAMPLES = 100


Taken = tuple[float, float]


def templates() -> list[CellRecord]:
    """Return committed records of different attacks under one L-inf threat, as many as a row has attacks."""
    found: dict[str, CellRecord] = {}
    for bundle in sorted(BOARD.rglob("*.zip")):
        with unpacked(bundle) as root:
            for place in record_folders(root):
                record = read_record(place)
                if record.task is Task.CLASSIFY and record.threat.geometry == "linf":
                    found.setdefault(record.label, record)
    known = [found[label] for label in sorted(found)]
    return [
        dataclasses.replace(record, label=f"{record.label}[set={number}]")
        for number, record in enumerate(itertools.islice(itertools.cycle(known), ATTACKS))
    ]


def drawn(rng: np.random.Generator) -> tuple[SampleRecord, ...]:
    """Return made-up verdicts on the samples of a cell."""
    left, wrong = rng.random(), rng.random(SAMPLES) < 0.04
    held = rng.random(SAMPLES) < left
    scores = rng.normal(size=(SAMPLES, 2)).tolist()
    return tuple(
        SampleRecord(
            row=i,
            label=float(i % 10),
            clean=i % 10,
            adv=i % 10 if held[i] else (i + 1) % 10,
            status=Status.WRONG_CLEAN if wrong[i] else Status.ROBUST if held[i] else Status.BROKEN,
            distance=0.0 if wrong[i] or held[i] else 0.1,
            forwards=int(rng.integers(1, 500)),
            backwards=int(rng.integers(1, 500)),
            first_hit=-1 if wrong[i] or held[i] else 3,
            clean_score=scores[i][0],
            adv_score=scores[i][1],
        )
        for i in range(SAMPLES)
    )


def made(cells: int) -> Iterator[tuple[CellRecord, bytes]]:
    """Yield made-up records with their samples.csv."""
    rng = np.random.default_rng(0)
    known = templates()
    pool = [(rows, encode_samples(rows)) for rows in (drawn(rng) for _ in range(400))]
    for number in range(cells):
        row, attack = divmod(number, ATTACKS)
        board, place = divmod(row, ROWS)
        template = known[attack]
        rows, data = pool[int(rng.integers(len(pool)))]
        counts = dict(count(rows))
        digests = {**template.digests, "weights": sha256(f"weights {place}".encode())}
        yield (
            dataclasses.replace(
                template,
                key=hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(),
                suite="synthetic",
                victim=f"net{place}.digits",
                defense="none",
                samples=SAMPLES,
                threat=dataclasses.replace(template.threat, eps=Fraction(1 + board, 255)),
                counts=counts,
                digests=digests | {"samples": sha256(data), "data": "d1", "adversarials": sha256(b"")},
                rows=rows,
            ),
            data,
        )


def write(root: Path, cells: int) -> None:
    """Write a results folder of made-up records."""
    for record, data in made(cells):
        place = root / "records" / record.key
        place.mkdir(parents=True)
        (place / "samples.csv").write_bytes(data)
        (place / "record.json").write_bytes(encode_record(record))


def build(name: str, sources: list[Path], out: Path, cells: int, fixed: Taken = (0.0, 0.0)) -> Taken:
    """Build all tables in a process of its own, and say what it took.

    Args:
        name: what is built from.
        sources: folders and bundles.
        out: where to.
        cells: of them.
        fixed: what tables of next to no cells take.

    Returns: processor seconds and largest resident memory in GiB.
    """
    command = [
        sys.executable,
        "-m",
        "robustspike.bench.cli",
        "leaderboard",
        *map(str, sources),
        "--out",
        str(out),
    ]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}")
    wall, spent, peak = time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20
    more = [base + (value - base) * 1e5 / cells for value, base in zip((spent, peak), fixed, strict=True)]
    grown = f"; of 100,000 cells {more[0]:4.0f} s, {more[1]:.2f} GiB" if any(fixed) else ""
    print(  # noqa: T201
        f"{name:<16} {wall:6.1f} s, {spent:6.1f} s of processor, {peak:.2f} GiB{grown}", flush=True
    )
    return spent, peak


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="?", type=int, default=20_000)
    parser.add_argument("--keep", type=Path, help="Write the records there, or take those that are there.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = given.keep or Path(scratch) / "synthetic"
        if not (root / "records").is_dir():
            write(root, given.cells)
        out = Path(scratch) / "board"
        write(Path(scratch) / "few", ATTACKS)
        fixed = build(f"{ATTACKS} cells", [Path(scratch) / "few"], Path(scratch) / "few board", ATTACKS)
        (root / NAME).unlink(missing_ok=True)
        build("folder", [root], out, given.cells, fixed)
        build("folder, indexed", [root], out, given.cells, fixed)
        bundle = Path(scratch) / "bundle.zip"
        submit = [sys.executable, "-m", "robustspike.bench.cli", "submit", str(root), "--out", str(bundle)]
        subprocess.run([*submit, "--no-inputs"], check=True, stdout=subprocess.DEVNULL)
        parts = sorted(Path(scratch).glob("bundle*.zip"))
        again = Path(scratch) / "again"
        for name in (f"{len(parts)} bundles", "bundles, indexed"):
            build(name, parts, again, given.cells, fixed)
            if not all((again / path.name).read_bytes() == path.read_bytes() for path in out.iterdir()):
                raise SystemExit(f"{name}: other bytes than from the folder")
        for path in sorted(out.iterdir()):
            print(f"{path.name:<40} {path.stat().st_size:>12,} bytes")  # noqa: T201


if __name__ == "__main__":
    main()
