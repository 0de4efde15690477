"""What a finished cell leaves behind, and how it is read back: the schema of every number.

A record is a folder named by the cell's key:

    record.json                counts, costs, digests, environment; JSON, sorted keys
    samples.csv                one line a sample: the verdict and what it cost
    adversarials.safetensors   the final inputs of the broken samples

Reading is strict: sizes are limited, nothing is unpickled, digests are compared, counts recounted.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from robustspike.bench.contract.decode import decode
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ProtocolError
from robustspike.bench.files import sha256
from robustspike.bench.record.threat import decode_threat
from robustspike.bench.record.threat import encode_threat
from robustspike.bench.record.types import Cost
from robustspike.bench.record.types import Digests
from robustspike.bench.record.types import Line
from robustspike.bench.record.types import Measures
from robustspike.bench.record.types import Parameters
from robustspike.bench.record.types import Whole
from robustspike.bench.record.types import Wholes

FORMAT = 1
"""Version of the record format; a reader refuses any other."""

PROTOCOL = "1"
"""Version of the measuring rules (verdicts, random streams, sharding); part of every cell's key."""

MAX_BYTES = {"record.json": 4 << 20, "samples.csv": 256 << 20}

_COLUMNS: dict[str, type] = {
    "row": int,
    "label": float,
    "clean": int,
    "adv": int,
    "status": str,
    "distance": float,
    "forwards": int,
    "backwards": int,
    "first_hit": int,
    "clean_score": float,
    "adv_score": float,
}
_STATUS = list(_COLUMNS).index("status")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """The verdict on one sample; the fields are those of `ShardResult`, one sample each."""

    row: int
    label: float
    clean: int
    adv: int
    status: Status
    distance: float
    forwards: int
    backwards: int
    first_hit: int
    clean_score: float
    adv_score: float
    extras: Mapping[str, float] = dataclasses.field(default_factory=dict)


STATUSES = tuple(Status)
"""What the column "status" of `Samples` counts through."""
_PLACES = {str(status): place for place, status in enumerate(STATUSES)}


class Samples(Sequence[SampleRecord]):
    """The samples of a cell, packed by columns: tables of many cells hold them all at once.

    Args:
        names: the columns of samples.csv, in order.
        length: how many samples.
        packed: the columns one after the other, compressed; see `pack`.

    Cost: 2 kB for 100 samples instead of 60; a column is unpacked when it is asked for.
    """

    __slots__ = ("_length", "names", "packed")

    def __init__(self, names: tuple[str, ...], length: int, packed: bytes) -> None:
        self.names, self._length, self.packed = names, length, packed

    @classmethod
    def pack(cls, names: Sequence[str], columns: Sequence[Sequence[Any]]) -> Samples:
        """Pack columns, of which "status" holds places in `STATUSES`. Raises: OverflowError: over 64 bits."""
        kinds = [
            _COLUMNS.get(name, float) if place < len(_COLUMNS) else float for place, name in enumerate(names)
        ]
        arrays = [
            np.array(values, dtype=np.float64 if kind is float else np.int64)
            for values, kind in zip(columns, kinds, strict=True)
        ]
        data = zlib.compress(b"".join(array.tobytes() for array in arrays), 1)
        return cls(tuple(names), len(columns[0]), data)

    @classmethod
    def of(cls, rows: Sequence[SampleRecord]) -> Samples:
        """Pack samples; those that are packed stay as they are."""
        if isinstance(rows, Samples):
            return rows
        extras = sorted({name for row in rows for name in row.extras})
        columns = [[getattr(row, name) for row in rows] for name in _COLUMNS]
        columns[_STATUS] = [STATUSES.index(status) for status in columns[_STATUS]]
        columns += [[row.extras.get(name, math.nan) for row in rows] for name in extras]
        return cls.pack([*_COLUMNS, *extras], columns)

    def column(self, name: str) -> np.ndarray:
        """Return one column [n]: int64, or float64 for numbers. "status" holds places in `STATUSES`."""
        return self._columns()[self.names.index(name)]

    def is_status(self, *statuses: Status) -> np.ndarray:
        """Return which samples have one of some statuses: [n] bool."""
        found = self.column("status")
        return np.logical_or.reduce([found == STATUSES.index(status) for status in statuses])

    def _columns(self) -> tuple[np.ndarray, ...]:
        return _unpacked(self.packed, len(self.names), self._length)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self)[place]
        return self._made([column[place].item() for column in self._columns()])

    def __iter__(self) -> Iterator[SampleRecord]:
        return map(self._made, zip(*(column.tolist() for column in self._columns()), strict=True))

    def _made(self, values: Sequence[Any]) -> SampleRecord:
        fixed = dict(zip(_COLUMNS, values, strict=False))
        fixed["status"] = STATUSES[fixed["status"]]
        extras = dict(zip(self.names[len(_COLUMNS) :], values[len(_COLUMNS) :], strict=True))
        return SampleRecord(**fixed, extras=extras)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Samples):
            return (self.names, self._length, self.packed) == (other.names, other._length, other.packed)
        return isinstance(other, tuple) and tuple(self) == other

    def __hash__(self) -> int:
        return hash((self.names, self.packed))


@lru_cache(maxsize=1024)
def _unpacked(packed: bytes, columns: int, length: int) -> tuple[np.ndarray, ...]:
    size = 8 * length
    data = zlib.decompressobj().decompress(packed, columns * size + 1)
    if len(data) != columns * size:
        raise ArtefactError(f"packed samples: {len(data)} bytes, expected {columns} columns of {length}.")
    return tuple(
        np.frombuffer(data, np.float64 if is_number else np.int64, length, place * size)
        for place, is_number in enumerate(_numbers(columns))
    )


def _numbers(columns: int) -> Iterator[bool]:
    """Say of every column whether it holds numbers; the others hold whole ones."""
    yield from (kind is float for kind in _COLUMNS.values())
    yield from (True for _ in range(columns - len(_COLUMNS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRecord:
    """One victim x defense x data x attack x threat model x seed, measured.

    Args:
        key: digest of everything below that defines the experiment.
        suite, suite_version, suite_digest: the suite that last asked for it (not part of the key); 0 and ""
            where the record is older than these fields.
        task: "classify", "quality", or "certify" for a certificate (attack is then the certifier).
        victim, defense, attack: registry names; the label of the attack includes changed parameters.
        parameters: full parameters of victim, defense and attack.
        dataset, split, samples, shard: the data and how it was cut.
        threat: the threat model.
        seed: root seed of the attack.
        counts: n, clean, robust, broken, wrong_clean, errors.
        cost: forwards and backwards spent by the attack, summed over samples, and the attacked samples.
        measures: counters that flags are computed from.
        flags: codes raised by this cell alone.
        errors: messages of what could not be computed.
        digests: sha256 of weights, data, code, samples.csv and adversarials.safetensors; weights_after are
            those of the weights after each shard, and equal to weights unless a shard is an error.
        environment: versions, platform, device.
        rows: the samples; of a record that was read `Samples`.
    """

    key: Line
    suite: Line
    task: Task
    victim: Line
    defense: Line
    attack: Line
    label: Line
    parameters: Parameters
    dataset: Line
    split: Line
    samples: Whole
    shard: Whole
    threat: ThreatModel
    seed: Whole
    counts: Wholes
    cost: Cost
    measures: Measures
    flags: tuple[Line, ...]
    errors: tuple[str, ...]
    digests: Digests
    environment: Mapping[str, Line]
    rows: Sequence[SampleRecord]
    suite_version: Whole = 0
    suite_digest: Line = ""


def canonical(value: Any) -> bytes:
    """Return JSON bytes that depend on the value alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the digest of a JSON value: 32 hex digits."""
    return hashlib.blake2b(canonical(value), digest_size=16).hexdigest()


def encode_samples(rows: Sequence[SampleRecord]) -> bytes:
    """Return samples.csv: the fixed columns, then the extras in alphabetical order."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    extras = sorted({name for row in rows for name in row.extras})
    writer.writerow([*_COLUMNS, *extras])
    for row in rows:
        fixed = [_cell(getattr(row, column)) for column in _COLUMNS]
        writer.writerow(fixed + [_cell(row.extras.get(name, math.nan)) for name in extras])
    return out.getvalue().encode()


def _cell(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def decode_samples(data: bytes, where: Path) -> Samples:
    """Read samples.csv back. Raises: ArtefactError: naming the line at fault."""
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArtefactError(f"{where}: not a CSV text ({error}). Delete the record and run again.") from error
    if not lines or lines[0][: len(_COLUMNS)] != list(_COLUMNS):
        raise ArtefactError(f"{where}: line 1 must name the columns {', '.join(_COLUMNS)}.")
    names, *body = lines
    try:
        return _of_lines(names, body)
    except (ValueError, OverflowError):
        for number, line in enumerate(body, start=2):
            try:
                _of_lines(names, [line])
            except (ValueError, OverflowError) as error:
                raise ArtefactError(f"{where}: line {number} is not a sample ({error}).") from error
        raise


def _of_lines(names: Sequence[str], lines: Sequence[Sequence[str]]) -> Samples:
    columns: list[Sequence[Any]] = list(zip(*lines, strict=True)) or [()] * len(names)
    if len(columns) != len(names):
        raise ValueError(f"{len(columns)} cells, expected {len(names)}")
    for place, kind in enumerate(_COLUMNS.values()):
        if kind is not str:
            columns[place] = [kind(cell) for cell in columns[place]]
    if unknown := {*columns[_STATUS]} - _PLACES.keys():
        raise ValueError(f"{min(unknown)!r} is not a status")
    columns[_STATUS] = [_PLACES[cell] for cell in columns[_STATUS]]
    columns[len(_COLUMNS) :] = [[float(cell) for cell in cells] for cells in columns[len(_COLUMNS) :]]
    return Samples.pack(names, columns)


def encode_record(record: CellRecord) -> bytes:
    """Return record.json (without the rows, which are in samples.csv)."""
    value = {
        field.name: getattr(record, field.name)
        for field in dataclasses.fields(record)
        if field.name not in ("rows", "threat")
    }
    value |= {"format": FORMAT, "protocol": PROTOCOL, "threat": encode_threat(record.threat)}
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def count(rows: Sequence[SampleRecord]) -> dict[str, int]:
    """Count verdicts: n, clean (correct on the clean input), robust, broken, wrong_clean, errors.

    A certificate that leaves samples open also counts them: uncertified.
    """
    found = np.bincount(Samples.of(rows).column("status"), minlength=len(STATUSES)).tolist()
    of = dict(zip(STATUSES, found, strict=True))
    uncertified = of[Status.UNCERTIFIED]
    return ({"uncertified": uncertified} if uncertified else {}) | {
        "n": len(rows),
        "clean": of[Status.ROBUST] + of[Status.BROKEN] + uncertified,
        "robust": of[Status.ROBUST],
        "broken": of[Status.BROKEN],
        "wrong_clean": of[Status.WRONG_CLEAN],
        "errors": of[Status.ERROR],
    }


def read_limited(path: Path) -> bytes:
    """Read a file of a record, refusing links and sizes that no record has."""
    limit = MAX_BYTES.get(path.name, 1 << 32)
    try:
        if path.is_symlink() or not path.is_file():
            raise ArtefactError(f"{path}: missing, or not a plain file. Delete the record and run again.")
        size = path.stat().st_size
        if size > limit:
            raise ArtefactError(f"{path}: {size} bytes, expected at most {limit}. It is not a record.")
        return path.read_bytes()
    except PermissionError as error:
        raise ArtefactError(f"{path}: cannot be read: {error}.") from error


def read_record(folder: Path) -> CellRecord:
    """Read a record back and check it against itself.

    Raises: ArtefactError: unreadable, of another format, or its parts disagree. ProtocolError: measured
        under another protocol.
    """
    return parse_record(
        folder, read_limited(folder / "record.json"), lambda: read_limited(folder / "samples.csv")
    )


def parse_record(folder: Path, data: bytes, read_samples: Callable[[], bytes]) -> CellRecord:
    """Return the record of the bytes of its files, as `read_record`.

    Args:
        folder: where they are from: its name is the key, and messages name it.
        data: record.json.
        read_samples: returns samples.csv; called for a record that can be read.
    """
    path, samples = folder / "record.json", folder / "samples.csv"
    try:
        value = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtefactError(
            f"{path}: not readable JSON ({error}). Delete the folder and run the suite again."
        ) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ArtefactError(f"{path}: not a record of format {FORMAT}. Delete the folder and run again.")
    if value.get("protocol") != PROTOCOL:
        raise ProtocolError(
            f"{path}: measured under protocol {value.get('protocol')!r}, this version's is {PROTOCOL!r}. "
            "Run the suite again, or read it with the version that made it."
        )
    value = {k: v for k, v in value.items() if k not in ("format", "protocol")}
    text = read_samples()
    rows = decode_samples(text, samples)
    try:
        threat = decode_threat(value.get("threat"))
        record: CellRecord = decode({**value, "threat": threat, "rows": ()}, CellRecord, "")
    except ConfigError as error:
        raise ArtefactError(f"{path}: a field is missing or wrong ({error}).") from error
    record = dataclasses.replace(record, rows=rows)
    if sha256(text) != record.digests["samples"]:
        raise ArtefactError(f"{samples}: changed after it was written (its sha256 is not the record's).")
    if dict(record.counts) != count(rows):
        raise ArtefactError(f"{path}: its counts do not follow from samples.csv; do not trust it.")
    if record.key != folder.name:
        raise ArtefactError(f"{path}: holds the record of {record.key}; the folder was renamed.")
    return record
