"""Where records live on disk: atomic writes, one writer at a time, resumable to the shard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import write_atomic
from robustspike.bench.files import writing
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import encode_record
from robustspike.bench.record.schema import read_record


class Store:
    """A results folder.

    records/KEY/   finished cells
    shards/KEY/    shards of cells that are not finished
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records = root / "records"
        self.shards = root / "shards"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one run. Raises: ConfigError: another run holds it, or no access."""
        try:
            self.records.mkdir(parents=True, exist_ok=True)
            self.shards.mkdir(exist_ok=True)
            held = filelock.FileLock(self.root / ".lock").acquire(blocking=False)
        except filelock.Timeout as error:
            raise ConfigError(
                f"--out {self.root}: another run is writing there. Wait for it, or choose another folder."
            ) from error
        except (OSError, NotImplementedError) as error:
            raise ConfigError(
                f"--out {self.root}: cannot be used: {error}. Choose another folder."
            ) from error
        with held:
            yield

    def has(self, key: str) -> bool:
        """Say whether a cell is finished."""
        return (self.records / key / "record.json").is_file()

    def read(self, key: str) -> CellRecord:
        """Read a finished cell."""
        return read_record(self.records / key)

    def write_record(self, record: CellRecord, samples: bytes, adversarials: bytes) -> None:
        """Write a finished cell in one step and drop its shards."""
        final = self.records / record.key
        building = self.records / f".{record.key}.{os.getpid()}.tmp"
        shutil.rmtree(building, ignore_errors=True)
        with writing(building):
            building.mkdir()
        write_atomic(building / "samples.csv", samples)
        write_atomic(building / "adversarials.safetensors", adversarials)
        write_atomic(building / "record.json", encode_record(record))
        shutil.rmtree(final, ignore_errors=True)
        with writing(final):
            building.rename(final)
        shutil.rmtree(self.shards / record.key, ignore_errors=True)

    def note_suite(self, record: CellRecord) -> None:
        """Write record.json of a finished cell again; nothing but its suite may have changed."""
        write_atomic(self.records / record.key / "record.json", encode_record(record))

    def clean(self) -> None:
        """Remove what killed runs left behind."""
        for leftover in self.records.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.shards.glob("*/.*.tmp"):
            leftover.unlink(missing_ok=True)
        for shards in self.shards.iterdir():
            if self.has(shards.name):  # killed after its record was in place
                shutil.rmtree(shards, ignore_errors=True)


def record_folders(*folders: Path) -> list[Path]:
    """List the record folders below results folders; of a key that is in several, the last one.

    Raises: ArtefactError: one of them holds none.
    """
    found = {}
    for folder in folders:
        try:
            with os.scandir(folder / "records") as entries:
                names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        except OSError:
            names = []
        if not names:
            raise ArtefactError(
                f"{folder}: holds no records (expected {folder}/records/KEY/record.json). Give a folder that "
                "robustspike run wrote with --out, a bundle of robustspike submit, or a folder of bundles."
            )
        found.update({name: folder / "records" / name for name in names})
    return list(found.values())
