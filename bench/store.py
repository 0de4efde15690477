"""Where records live on disk: atomic writes, one writer at a time, resumable to the shard."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import write_atomic
from robustspike.bench.records import CellRecord
from robustspike.bench.records import encode_record
from robustspike.bench.records import read_limited
from robustspike.bench.records import read_record
from robustspike.bench.verdicts import ShardResult


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn the refusal of a disk into one clear line. Raises: ArtefactError."""
    try:
        yield
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be written: {error}. Free space or choose --out.") from error


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
            handle = (self.root / ".lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"--out {self.root}: cannot be used: {error}. Choose another folder."
            ) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"--out {self.root}: another run is writing there. Wait for it, or choose another folder."
                ) from error
            yield

    def has(self, key: str) -> bool:
        """Say whether a cell is finished."""
        return (self.records / key / "record.json").is_file()

    def read(self, key: str) -> CellRecord:
        """Read a finished cell."""
        return read_record(self.records / key)

    def shard_path(self, key: str, index: int) -> Path:
        """Return the file of one shard."""
        return self.shards / key / f"{index:05d}.safetensors"

    def write_shard(self, key: str, index: int, result: ShardResult) -> None:
        """Keep one shard until its cell is finished."""
        path = self.shard_path(key, index)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(result, name).contiguous() for name in ShardResult.TENSORS}
        tensors |= {f"extra:{name}": column.contiguous() for name, column in result.extras.items()}
        about = {"errors": json.dumps(result.errors), "counts": json.dumps(result.counts)}
        write_atomic(path, safetensors.torch.save(tensors, about))

    def read_shard(self, key: str, index: int) -> ShardResult | None:
        """Return a shard, or None where it is missing or was damaged (it is then run again)."""
        path = self.shard_path(key, index)
        if not path.is_file():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in ShardResult.TENSORS}
                extras = {
                    key.removeprefix("extra:"): file.get_tensor(key)
                    for key in file.keys()  # noqa: SIM118  (a safetensors file is not a mapping)
                    if key.startswith("extra:")
                }
                about = file.metadata()
            return ShardResult(
                **tensors,
                errors=json.loads(about["errors"]),
                counts=json.loads(about["counts"]),
                extras=extras,
            )
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError):
            path.unlink(missing_ok=True)
            return None

    def write_record(self, record: CellRecord, samples: bytes, adversarials: bytes) -> None:
        """Write a finished cell in one step and drop its shards."""
        final = self.records / record.key
        building = self.records / f".{record.key}.{os.getpid()}.tmp"
        shutil.rmtree(building, ignore_errors=True)
        with _writing(building):
            building.mkdir()
        write_atomic(building / "samples.csv", samples)
        write_atomic(building / "adversarials.safetensors", adversarials)
        write_atomic(building / "record.json", encode_record(record))
        shutil.rmtree(final, ignore_errors=True)
        with _writing(final):
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


def read_adversarials(folder: Path) -> tuple[Tensor, Tensor]:
    """Read the adversarial inputs of a record folder: sample ids [n] and inputs [n, ...]."""
    path = folder / "adversarials.safetensors"
    return unpack_adversarials(read_limited(path), path)


def unpack_adversarials(data: bytes, where: Path) -> tuple[Tensor, Tensor]:
    """Read adversarials.safetensors back: sample ids [n] and inputs [n, ...]. Raises: ArtefactError."""
    try:
        tensors = safetensors.torch.load(data)
        rows, x = tensors["rows"], tensors["x"]
        if "shape" in tensors:
            shape = [int(size) for size in tensors["shape"]]
            bits = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
            flat = ((x[..., None] & bits) > 0).flatten(1).float()
            x = flat[:, : math.prod(shape)].reshape(len(x), *shape)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtefactError(f"{where}: not readable adversarial inputs ({error}).") from error
    if rows.dim() != 1 or len(rows) != len(x):
        raise ArtefactError(f"{where}: {len(rows)} sample ids for {len(x)} inputs.")
    return rows, x


def pack_adversarials(rows: Tensor, x_adv: Tensor, *, binary: bool) -> bytes:
    """Return adversarials.safetensors: "rows" (sample ids) and "x".

    Real inputs are float32; binary frames are packed 8 to a byte (bit 7 first) with "shape" beside them.
    """
    if not binary:
        return safetensors.torch.save({"rows": rows, "x": x_adv.float().contiguous()})
    size = math.prod(x_adv.shape[1:])
    flat = x_adv.reshape(len(x_adv), size).to(torch.uint8)
    bits = torch.nn.functional.pad(flat, (0, -size % 8)).view(len(flat), -(-size // 8), 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    packed = (bits * weights).sum(dim=2, dtype=torch.uint8)
    shape = torch.tensor(x_adv.shape[1:], dtype=torch.int64)
    return safetensors.torch.save({"rows": rows, "x": packed.contiguous(), "shape": shape})


def record_folders(folder: Path) -> list[Path]:
    """List the record folders below a results folder. Raises: ArtefactError: there is none."""
    places = sorted(p for p in (folder / "records").glob("[!.]*") if p.is_dir())
    if not places:
        raise ArtefactError(
            f"{folder}: holds no records (expected {folder}/records/KEY/record.json). Give a folder that "
            "robustspike run wrote with --out, or a bundle of robustspike submit."
        )
    return places
