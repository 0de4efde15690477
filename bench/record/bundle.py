"""Bundles: records packed into one file that anyone can check, and unpacked without trust.

A bundle is a zip file: manifest.json (format, versions, sha256 of every file), records/KEY/..., run.json
(how they were made), and what no package brings: plugins/SHA256/NAME.py for components that came from single
files, weights/DIGEST/... for weights that do not ship. The adversarial inputs may be left out; `robustspike
verify --rerun` makes them again and compares digests. Reading refuses any other name, links, sizes beyond
what records have, and content that does not match its digest; plugins are never executed.
"""

from __future__ import annotations

import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ProtocolError
from robustspike.bench.files import sha256
from robustspike.bench.files import write_atomic
from robustspike.bench.record import provenance
from robustspike.bench.record.enclosures import PLUGIN
from robustspike.bench.record.enclosures import WEIGHTS
from robustspike.bench.record.enclosures import enclosed_files
from robustspike.bench.record.schema import PROTOCOL
from robustspike.bench.record.schema import read_limited
from robustspike.bench.record.store import record_folders

FORMAT = 1
MAX_FILES = 30_000
MAX_FILE_BYTES = 1 << 30
MAX_TOTAL_BYTES = 4 << 30
_NAME = re.compile(r"run\.json|records/[0-9a-f]{32}/(record\.json|samples\.csv|adversarials\.safetensors)")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def _may_hold(name: str) -> bool:
    return any(form.fullmatch(name) for form in (_NAME, PLUGIN, WEIGHTS))


def pack(root: Path, bundle: Path, *, inputs: bool = True) -> int:
    """Pack the records of a results folder into a bundle; returns how many. Equal records, equal bytes.

    Args:
        root: the results folder, with the plugin files and weights that lie beside its records.
        bundle: the file to write.
        inputs: enclose the adversarial inputs (most of the bytes).

    Raises: ArtefactError: a file that cannot be read or written, or that a bundle may not hold.
    """
    parts = ["record.json", "samples.csv", *(["adversarials.safetensors"] if inputs else [])]
    files = {
        f"records/{folder.name}/{name}": read_limited(folder / name)
        for folder in record_folders(root)
        for name in parts
    }
    if (root / provenance.NAME).exists():
        files[provenance.NAME] = read_limited(root / provenance.NAME)
    files |= {name: read_limited(path) for name, path in enclosed_files(root).items()}
    for name in files:
        if not _may_hold(name):
            raise ArtefactError(f"{name}: not a name that a bundle may hold. Rename the file.")
    manifest = {
        "format": FORMAT,
        "protocol": PROTOCOL,
        "files": {name: sha256(data) for name, data in sorted(files.items())},
    }
    files["manifest.json"] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "bundle.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in sorted(files):
                info = zipfile.ZipInfo(name, date_time=_EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, files[name])
        bundle.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(bundle, path.read_bytes())
    return len({name.split("/")[1] for name in files if name.startswith("records/")})


@contextmanager
def unpacked(bundle: Path) -> Iterator[Path]:
    """Unpack a bundle to a scratch folder for the length of the block, checking everything first.

    Raises: ArtefactError: not a bundle, a name or size it may not have, or a digest that differs.
    """
    try:
        with zipfile.ZipFile(bundle) as archive, TemporaryDirectory() as scratch:
            root = Path(scratch)
            for name, data in _contents(archive, bundle):
                target = root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            yield root
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArtefactError(f"{bundle}: not a readable bundle ({error}). Pack it again.") from error


def _contents(archive: zipfile.ZipFile, bundle: Path) -> Iterator[tuple[str, bytes]]:
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if len(infos) > MAX_FILES or len(set(names)) != len(names):
        raise ArtefactError(f"{bundle}: too many files, or one name twice. It is not a bundle.")
    if sum(info.file_size for info in infos) > MAX_TOTAL_BYTES:
        raise ArtefactError(f"{bundle}: unpacks to more than {MAX_TOTAL_BYTES} bytes. It is not a bundle.")
    manifest = _manifest(archive, bundle)
    allowed = {*manifest, "manifest.json"}
    for info in infos:
        name = info.filename
        if name not in allowed or not (name == "manifest.json" or _may_hold(name)):
            raise ArtefactError(f"{bundle}: holds '{name[:80]}', which no bundle may hold. Do not trust it.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArtefactError(f"{bundle}: '{name}' is a link, which no bundle may hold. Do not trust it.")
        if name != "manifest.json":
            data = _read(archive, info, bundle)
            if sha256(data) != manifest[name]:
                raise ArtefactError(f"{bundle}: '{name}' is not what its manifest says. Do not trust it.")
            yield name, data
    missing = sorted(set(manifest) - set(names))
    if missing:
        raise ArtefactError(f"{bundle}: lacks '{missing[0]}', which its manifest names.")


def _manifest(archive: zipfile.ZipFile, bundle: Path) -> dict[str, str]:
    try:
        value = json.loads(_read(archive, archive.getinfo("manifest.json"), bundle).decode("utf-8"))
    except (KeyError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtefactError(f"{bundle}: no readable manifest ({error}). It is not a bundle.") from error
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, dict) or value.get("format") != FORMAT:
        raise ArtefactError(f"{bundle}: not a bundle of format {FORMAT}.")
    if value.get("protocol") != PROTOCOL:
        raise ProtocolError(
            f"{bundle}: measured under protocol {value.get('protocol')!r}, this version's is {PROTOCOL!r}; "
            "its rows cannot stand in one table with these. Run the suite again."
        )
    return {str(name): str(digest) for name, digest in files.items()}


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, bundle: Path) -> bytes:
    """Read a member, never more than its declared and the allowed size."""
    if info.file_size > MAX_FILE_BYTES:
        raise ArtefactError(f"{bundle}: '{info.filename[:80]}' is larger than {MAX_FILE_BYTES} bytes.")
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ArtefactError(f"{bundle}: '{info.filename[:80]}' is not of its declared size.")
    return data
