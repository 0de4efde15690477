"""An index of a folder or bundle of many records, so that tables need not read and check them all again.

It is one SQLite file, `records.sqlite` beside the folders or `NAME.zip.sqlite` beside a bundle, and may be
deleted at any time: it is made again from the records, and never trusted over them. An entry holds for files
whose size, times of content and of status, and number are those of the files it was made from; the time of
status is the system's own, so that no archive can bring an index that speaks for its records. Whatever
differs is read anew, a bundle as a whole, and another version's index is thrown away. Few records have none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import stat
import sys
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from robustspike.bench.contract.specs import Task
from robustspike.bench.errors import ProtocolError
from robustspike.bench.record.bundle import read_bundle
from robustspike.bench.record.schema import FORMAT
from robustspike.bench.record.schema import PROTOCOL
from robustspike.bench.record.schema import STATUSES
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import Samples
from robustspike.bench.record.schema import canonical
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.threat import decode_threat
from robustspike.bench.record.threat import encode_threat

NAME = "records.sqlite"

LEAST = 1000
"""Records from which on a folder or bundle has an index: fewer are read in about a second."""

_FILES = ("record.json", "samples.csv")
_WHOLE = ""
"""Key of the entry of a bundle as a whole: its records in order, its refusals in place, its run.json."""
_FIELDS = tuple(
    field.name for field in dataclasses.fields(CellRecord) if field.name not in ("rows", "threat")
)
_LAYOUT = "2"
_TABLES = """
CREATE TABLE about (made TEXT);
CREATE TABLE shared (id INTEGER PRIMARY KEY, text TEXT, sum INTEGER);
CREATE TABLE cells (key TEXT PRIMARY KEY, files TEXT, own TEXT, length INTEGER, packed BLOB, sum INTEGER);
"""


def _made_by() -> str:
    """Return what an index must have been made by to be read: its layout, and the types that it restores."""
    kinds = [_LAYOUT, FORMAT, PROTOCOL, version("robustspike"), *_FIELDS, *map(str, STATUSES)]
    return canonical(kinds).decode()


class Shared:
    """Values that many records hold, each kept once: parameters, environments, threat models, texts."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self._values: dict[int, Any] = {}
        self._texts: dict[int, str] = {}

    def add(self, text: str, number: int) -> None:
        """Take a text of the index, under its number."""
        self.ids[text], self._texts[number] = number, text

    def number(self, value: Any) -> int:
        """Return the number of a JSON value, a new one for a new value."""
        text = canonical(value).decode()
        if text not in self.ids:
            self.add(text, len(self.ids))
        return self.ids[text]

    def text(self, number: int) -> str:
        """Return the JSON text of a number."""
        return self._texts[number]

    def value(self, number: int) -> Any:
        """Return the value of a number, the same object every time."""
        if number not in self._values:
            self._values[number] = json.loads(self._texts[number])
        return self._values[number]

    def threat(self, number: int) -> Any:
        """Return the threat model of a number."""
        value = self.value(number)
        if isinstance(value, dict):
            value = self._values[number] = decode_threat(value)
        return value


class Index:
    """Reads the records of one folder or bundle, with the index beside them where there is one.

        with Index(root) as index:
            record = index.read(root / "records" / key)

    Records that it returns share what is equal among them, and hold their samples packed.

    Args:
        root: the results folder, or the bundle.
        records: how many it holds; from `LEAST` on an index is kept.

    Attributes:
        problem: why there is no index, in a line; empty otherwise.
    """

    def __init__(self, root: Path, records: int = 0) -> None:
        self.root = root
        self.path = root.with_name(f"{root.name}.sqlite") if root.is_file() else root / NAME
        self.problem = ""
        self._wanted = records >= LEAST
        self._shared = Shared()
        self._saved = 0
        self._file: sqlite3.Connection | None = None
        self._seen: set[str] = set()

    def __enter__(self) -> Index:
        if self._wanted:
            self._open()
        return self

    def __exit__(self, *failed: object) -> None:
        if self._file is None:
            return
        with closing(self._file) as file:
            try:
                if failed[0] is None:
                    gone = [
                        (key,) for (key,) in file.execute("SELECT key FROM cells") if key not in self._seen
                    ]
                    if gone:
                        file.executemany("DELETE FROM cells WHERE key = ?", gone)
                file.commit()
            except sqlite3.Error as error:
                self._give_up(error)
        self._file = None

    def read(self, place: Path) -> CellRecord:
        """Read a record as `read_record` does, from the index where its files are as they were."""
        files = _signature(*(f"{place}/{name}" for name in _FILES))
        found = self._find(place.name, files)
        if found is not None:
            return found
        return self._share(read_record(place), files)

    def read_bundle(self, on_run: Callable[[bytes], object] = bytes) -> Iterator[CellRecord | ProtocolError]:
        """Read the records of the bundle as `read_bundle` does, from the index where the file is as then."""
        path = os.path.realpath(self.root)  # a bundle may be a link, its records may not
        files = _signature(path)
        whole = self._entry(_WHOLE, files)
        if whole is not None:
            own, _, run = whole
            told = json.loads(own)
            found = [ProtocolError(key[0]) if type(key) is list else self._find(key, files) for key in told]
            if None not in found:
                if run:
                    on_run(run)
                yield from filter(None, found)
                return
        order: list[str | list[str]] = []
        runs: list[bytes] = []

        def keep_run(data: bytes) -> None:
            on_run(data)
            runs.append(data)

        for record in read_bundle(self.root, keep_run):
            if isinstance(record, ProtocolError):
                order.append([str(record)])
                yield record
            else:
                order.append(record.key)
                yield self._share(record, files)
        if files and _signature(path) == files:
            self._keep((_WHOLE, files, json.dumps(order), len(order), b"".join(runs)))

    def _share(self, record: CellRecord, files: str) -> CellRecord:
        """Return a record that shares what is equal among those of this index, and keep it.

        Args:
            record: the record.
            files: what its files were when it was read; "": it is not kept.
        """
        own, samples = self._encoded(record), Samples.of(record.rows)
        if files:
            self._keep((record.key, files, own, len(samples), samples.packed))
        return self._record(own, len(samples), samples.packed)

    def _open(self) -> None:
        """Open the index, empty where it is another version's or damaged; without one where that fails."""
        for is_last in (False, True):
            try:
                if self.path.is_symlink():
                    raise sqlite3.OperationalError("it is a link")
                self._file = sqlite3.connect(self.path, timeout=2)
                self._file.execute("PRAGMA trusted_schema = OFF")
                if not list(self._file.execute("SELECT name FROM sqlite_master")):
                    self._file.executescript(_TABLES)
                    self._file.execute("INSERT INTO about VALUES (?)", (_made_by(),))
                elif [made for (made,) in self._file.execute("SELECT made FROM about")] != [_made_by()]:
                    raise sqlite3.DatabaseError("made by another version")
                for number, text, told in self._file.execute("SELECT * FROM shared ORDER BY id"):
                    if number != len(self._shared.ids) or told != _sum(text):
                        raise sqlite3.DatabaseError("damaged")
                    self._shared.add(text, number)
                self._saved = len(self._shared.ids)
                return
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)
                if is_last or not _is_damage(error):
                    return
                self._shared, self.problem = Shared(), ""

    def _give_up(self, error: Exception) -> None:
        if self._file is not None:
            with suppress(sqlite3.Error):
                self._file.close()
        self._file = None
        if _is_damage(error):
            with suppress(OSError):
                self.path.unlink()
        self.problem = f"{self.path}: no index is used ({error}); the records were read one by one."

    def _find(self, key: str, files: str) -> CellRecord | None:
        entry = self._entry(key, files)
        return None if entry is None else self._record(*entry)

    def _entry(self, key: str, files: str) -> tuple[str, int, bytes] | None:
        """Return what is kept of files that are as they were: what is its own, a length, packed bytes."""
        if self._file is None or not files:
            return None
        try:
            entry = self._file.execute(
                "SELECT files, own, length, packed, sum FROM cells WHERE key = ?", (key,)
            ).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        if entry is None or entry[0] != files or entry[4] != _sum(key, *entry[:4]):
            return None
        self._seen.add(key)
        return entry[1], entry[2], entry[3]

    def _keep(self, entry: tuple[str, str, str, int, bytes]) -> None:
        if self._file is None:
            return
        self._seen.add(entry[0])
        try:
            new = ((n, self._shared.text(n)) for n in range(self._saved, len(self._shared.ids)))
            self._file.executemany(
                "INSERT INTO shared VALUES (?, ?, ?)", ((n, text, _sum(text)) for n, text in new)
            )
            self._saved = len(self._shared.ids)
            self._file.execute(
                "INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?, ?)", (*entry, _sum(*entry))
            )
        except sqlite3.Error as error:
            self._give_up(error)

    def _encoded(self, record: CellRecord) -> str:
        """Return what is a record's own as JSON, with numbers for what it shares with others."""
        value = {name: getattr(record, name) for name in _FIELDS}
        value["threat"] = self._shared.number(encode_threat(record.threat))
        value["environment"] = self._shared.number(record.environment)
        value["parameters"] = {name: self._shared.number(table) for name, table in record.parameters.items()}
        value["names"] = self._shared.number(list(Samples.of(record.rows).names))
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    def _record(self, own: str, length: int, packed: bytes) -> CellRecord:
        value: dict[str, Any] = json.loads(own)
        names = tuple(self._shared.value(value.pop("names")))
        parameters = {sys.intern(name): self._shared.value(n) for name, n in value["parameters"].items()}
        value |= {
            "threat": self._shared.threat(value["threat"]),
            "environment": self._shared.value(value["environment"]),
            "parameters": parameters,
            "flags": tuple(map(sys.intern, value["flags"])),
            "errors": tuple(value["errors"]),
            "rows": Samples(names, length, packed),
        }
        for name in ("counts", "cost", "measures"):
            value[name] = {sys.intern(key): number for key, number in value[name].items()}
        value["digests"] = {sys.intern(key): sys.intern(text) for key, text in value["digests"].items()}
        for name, text in value.items():
            value[name] = sys.intern(text) if type(text) is str else text
        value["task"] = Task(value["task"])
        return CellRecord(**value)


def _is_damage(error: Exception) -> bool:
    """Say whether an index must be made again: it is none, or lacks tables. Else its place is at fault."""
    is_of_place = isinstance(error, sqlite3.OperationalError) and "no such" not in str(error)
    return isinstance(error, sqlite3.DatabaseError) and not is_of_place


def _sum(*values: str | int | bytes) -> int:
    found = 0
    for value in values:
        found = zlib.crc32(value if isinstance(value, bytes) else str(value).encode(), found)
    return found


def _signature(*paths: str) -> str:
    """Return what tells whether files are still those that were read; "" if one is none."""
    parts = []
    for path in paths:
        try:
            found = os.lstat(path)
        except OSError:
            return ""
        if not stat.S_ISREG(found.st_mode):
            return ""
        parts += [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return " ".join(map(str, parts))
