"""Files written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from robustspike.bench.errors import ArtefactError


def sha256(data: bytes) -> str:
    """Return the sha256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ArtefactError(f"{path}: cannot be written: {error}. Free space or choose --out.") from error
