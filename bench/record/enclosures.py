"""What records need and no package brings, kept beside them: plugin files, and weights that do not ship.

A results folder and a bundle hold them by content, so that two files of one name never stand for each other:

    plugins/SHA256/NAME.py               a plugin file, by the sha256 of its bytes
    weights/DIGEST/NAME.safetensors      weights, by the digest that the records name, with their certificate
    weights/DIGEST/NAME.json

Nothing here is run: `robustspike verify` loads a plugin file only by an explicit word.
"""

from __future__ import annotations

import re
from pathlib import Path

from robustspike.bench.errors import ArtefactError
from robustspike.bench.files import sha256
from robustspike.bench.files import write_atomic
from robustspike.bench.record.schema import read_limited

PLUGIN = re.compile(r"plugins/(?P<digest>[0-9a-f]{64})/[A-Za-z0-9_-][A-Za-z0-9_.-]*\.py")
WEIGHTS = re.compile(
    r"weights/(?P<digest>[0-9a-f]{64})/[A-Za-z0-9_][\w.+@()=,'\[\]{}: -]*\.(safetensors|json)", re.ASCII
)
MAX_PLUGIN_BYTES = 4 << 20


def keep_plugin(root: Path, path: Path) -> str:
    """Keep a copy of a plugin file below a folder; returns its sha256.

    Raises: ArtefactError: too large, or of a name that a bundle may not hold.
    """
    data = path.read_bytes()
    digest = sha256(data)
    name = f"plugins/{digest}/{path.name}"
    if len(data) > MAX_PLUGIN_BYTES or not PLUGIN.fullmatch(name):
        raise ArtefactError(
            f"plugin file '{path}': expected at most {MAX_PLUGIN_BYTES} bytes and a name of letters, digits, "
            f"'_', '-' and '.' that ends in .py, got {len(data)} bytes. Rename or cut the file."
        )
    if not (root / name).exists():
        write_atomic(root / name, data)
    return digest


def keep_weights(root: Path, digest: str, path: Path) -> None:
    """Keep a copy of a weights file and its certificate below a folder, by the digest of its parameters."""
    for file in (path, path.with_name(path.name.removesuffix(".safetensors") + ".json")):
        name = f"weights/{digest}/{file.name}"
        if not WEIGHTS.fullmatch(name):
            raise ArtefactError(f"weights '{file}': not a name that a bundle may hold. Rename the file.")
        if not (root / name).exists():
            write_atomic(root / name, file.read_bytes())


def enclosed_plugins(root: Path) -> dict[str, Path]:
    """Return the plugin files kept below a folder, by sha256. Raises: ArtefactError: one is not it."""
    found = {}
    for path in sorted((root / "plugins").glob("*/*.py")):
        name = path.relative_to(root).as_posix()
        match = PLUGIN.fullmatch(name)
        if match is None or sha256(read_limited(path)) != match["digest"]:
            raise ArtefactError(f"{path}: is not the file that its folder names (sha256). Do not trust it.")
        found[match["digest"]] = path
    return found


def enclosed_weights(*roots: Path, digest: str) -> Path | None:
    """Return the folder of the weights of a digest kept below one of some folders, or None if none has it."""
    if WEIGHTS.fullmatch(f"weights/{digest}/x.json") is None:
        return None
    return next((place for root in roots if (place := root / "weights" / digest).is_dir()), None)


def enclosed_files(root: Path) -> dict[str, Path]:
    """Return every file kept below a folder, by the name that it has in a bundle."""
    found = {path.relative_to(root).as_posix(): path for path in enclosed_plugins(root).values()}
    for path in sorted((root / "weights").glob("*/*")):
        name = path.relative_to(root).as_posix()
        if WEIGHTS.fullmatch(name):
            found[name] = path
    return found
