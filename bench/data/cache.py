"""Files that can be made again at any time, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_DIGEST = 32


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
        path = cache_folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        temporary.replace(path)
    except (OSError, RuntimeError):
        return content
    return content
