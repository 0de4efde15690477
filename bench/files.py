"""Files written whole or not at all, and the folder of those that can be made again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustspike.bench.errors import ArtefactError

_DIGEST = 32


def sha256(data: bytes) -> str:
    """Return the sha256 of bytes in hex."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the refusal of a disk into one clear line. Raises: ArtefactError."""
    try:
        yield
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be written: {error}. Free space or choose --out.") from error


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file, and its folder, so that a reader sees all of it or nothing, also after a crash.

    Args:
        path: the file.
        data: its bytes, or pieces of them.

    Raises: ArtefactError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def cache_folder() -> Path:
    """Return the folder of cached data: $XDG_CACHE_HOME/robustspike, by default ~/.cache/robustspike."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "robustspike"


def cached(name: str, make: Callable[[], bytes]) -> bytes:
    """Return the content of a cache file, making it where it is absent or damaged.

    The file starts with the sha256 of the rest, so a file cut short or changed is made again. A folder
    that cannot be written is no error: the content is then made once per process that asks.

    Args:
        name: file name; whatever the content depends on must be part of it.
        make: makes the content.
    """
    try:
        path = cache_folder() / name
        stored = path.read_bytes()
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        stored = b""
    content = stored[_DIGEST:]
    if len(stored) >= _DIGEST and hashlib.sha256(content).digest() == stored[:_DIGEST]:
        return content
    content = make()
    try:
        write_atomic(cache_folder() / name, hashlib.sha256(content).digest() + content)
    except (ArtefactError, RuntimeError):
        return content
    return content
