"""Shards of cells that are not finished: files that a killed run leaves for the next one."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch

from robustspike.bench.attack.result import ShardResult
from robustspike.bench.files import write_atomic


def shard_path(folder: Path, key: str, index: int) -> Path:
    """Return the file of one shard, below the folder of all shards."""
    return folder / key / f"{index:05d}.safetensors"


def pack_shard(result: ShardResult) -> bytes:
    """Return the content of a shard's file."""
    tensors = {name: getattr(result, name).contiguous() for name in ShardResult.TENSORS}
    tensors |= {f"extra:{name}": column.contiguous() for name, column in result.extras.items()}
    about = {"errors": json.dumps(result.errors), "counts": json.dumps(result.counts)}
    about |= {"weights": result.weights, "seconds": repr(result.seconds)}
    return safetensors.torch.save(tensors, about)


def write_shard(folder: Path, key: str, index: int, content: bytes) -> None:
    """Keep one packed shard until its cell is finished. Raises: ArtefactError."""
    write_atomic(shard_path(folder, key, index), content)


def read_shard(folder: Path, key: str, index: int) -> ShardResult | None:
    """Return a shard, or None where it is missing or was damaged (it is then run again)."""
    path = shard_path(folder, key, index)
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
            weights=about["weights"],
            seconds=float(about["seconds"]),
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError):
        path.unlink(missing_ok=True)
        return None
