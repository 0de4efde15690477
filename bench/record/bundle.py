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
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ProtocolError
from robustspike.bench.files import sha256
from robustspike.bench.files import writing
from robustspike.bench.record import provenance
from robustspike.bench.record.enclosures import PLUGIN
from robustspike.bench.record.enclosures import WEIGHTS
from robustspike.bench.record.enclosures import enclosed_files
from robustspike.bench.record.schema import PROTOCOL
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import parse_record
from robustspike.bench.record.schema import read_limited
from robustspike.bench.record.store import record_folders

FORMAT = 1
MAX_FILES = 30_000
MAX_FILE_BYTES = 1 << 30
MAX_TOTAL_BYTES = 4 << 30
MANIFEST = "manifest.json"
_NAME = re.compile(
    r"run\.json|records/(?P<key>[0-9a-f]{32})/(record\.json|samples\.csv|adversarials\.safetensors)"
)
_EPOCH = (1980, 1, 1, 0, 0, 0)


def _may_hold(name: str) -> bool:
    return any(form.fullmatch(name) for form in (_NAME, PLUGIN, WEIGHTS))


def sources(given: Iterable[Path]) -> list[Path]:
    """Return results folders and bundles; a folder that has bundles and no records stands for its bundles.

    They may also lie in a folder `records` of it.
    """
    found = []
    for path in given:
        inside = path / "records"
        is_results = any((place / "record.json").is_file() for place in inside.glob("[!.]*"))
        bundles = [] if is_results else [*sorted(path.glob("*.zip")), *sorted(inside.glob("*.zip"))]
        found += bundles or [path]
    return found


@contextmanager
def unpacked_all(given: Iterable[Path]) -> Iterator[list[Path]]:
    """Return the results folders of some `sources`, bundles unpacked for the length of the block.

    Raises: ArtefactError: see `unpacked`.
    """
    with ExitStack() as stack:
        found = sources(given)
        yield [stack.enter_context(unpacked(path)) if path.is_file() else path for path in found]


def pack(root: Path, bundle: Path, *, inputs: bool | Collection[str] = True) -> dict[Path, int]:
    """Pack the records of a results folder into a bundle. Equal records, equal bytes.

    More files than a bundle may have make several, NAME-1-of-3.zip and so on. Each stands for itself, with
    what its records need; their manifests say which of how many they are.

    Args:
        root: the results folder, with the plugin files and weights that lie beside its records.
        bundle: the file to write.
        inputs: enclose the adversarial inputs (most of the bytes): of all records, of none, or of these keys.

    Returns: the bundles that were written, and the records of each.

    Raises: ArtefactError: a file that cannot be read or written, or that a bundle may not hold.
    """

    def parts(place: Path) -> list[str]:
        encloses = inputs if isinstance(inputs, bool) else place.name in inputs
        return ["record.json", "samples.csv", *(["adversarials.safetensors"] if encloses else [])]

    beside = enclosed_files(root)
    if (root / provenance.NAME).exists():
        beside[provenance.NAME] = root / provenance.NAME
    groups = _groups(record_folders(root), parts, len(beside) + 1)
    keys = sha256("".join(place.name for group in groups for place in group).encode())
    made = {}
    for number, group in enumerate(groups, start=1):
        files = {f"records/{place.name}/{name}": place / name for place in group for name in parts(place)}
        target = bundle
        if len(groups) > 1:
            target = bundle.with_name(f"{bundle.stem}-{number}-of-{len(groups)}{bundle.suffix}")
        part = {"number": number, "parts": len(groups), "records": keys} if len(groups) > 1 else None
        _write(target, files | beside, part)
        made[target] = len(group)
    return made


def _groups(places: Sequence[Path], parts: Callable[[Path], Sequence[str]], beside: int) -> list[list[Path]]:
    """Return the records of every bundle: as many as fit, in order."""
    groups: list[list[Path]] = [[]]
    files, size = beside, 0
    for place in places:
        names = parts(place)
        own = sum(path.stat().st_size for name in names if (path := place / name).is_file())
        if groups[-1] and (files + len(names) > MAX_FILES or size + own > MAX_TOTAL_BYTES // 2):
            groups.append([])
            files, size = beside, 0
        groups[-1].append(place)
        files, size = files + len(names), size + own
    return groups


def _write(bundle: Path, files: Mapping[str, Path], part: Mapping[str, Any] | None) -> None:
    for name in files:
        if not _may_hold(name):
            raise ArtefactError(f"{name}: not a name that a bundle may hold. Rename the file.")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "protocol": PROTOCOL,
        "files": {name: sha256(read_limited(path)) for name, path in sorted(files.items())},
    }
    if part is not None:
        manifest["part"] = part
    told = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    building = bundle.with_name(f".{bundle.name}.tmp")
    with writing(bundle):
        bundle.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(building, "w") as archive:
                for name in sorted([*files, MANIFEST]):
                    info = zipfile.ZipInfo(name, date_time=_EPOCH)
                    info.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(info, told if name == MANIFEST else read_limited(files[name]))
            building.replace(bundle)
        finally:
            building.unlink(missing_ok=True)


def parts_missing(bundles: Iterable[Path]) -> list[str]:
    """Return a line for every set of bundles some of whose parts are not among those given."""
    known: dict[tuple[str, int], dict[int, Path]] = defaultdict(dict)
    for bundle in bundles:
        with _archive(bundle) as archive:
            part = _told(archive, bundle).get("part")
        if part is None:
            continue
        try:
            known[str(part["records"]), int(part["parts"])][int(part["number"])] = bundle
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(
                f"{bundle}: its manifest does not say which part it is ({error!r})."
            ) from error
    lines = []
    for (_, parts), given in known.items():
        missing = [str(number) for number in range(1, min(parts, 1000) + 1) if number not in given]
        if missing:
            some = next(iter(given.values()))
            lines.append(f"{some}: one of {parts} bundles; of them {', '.join(missing)} were not given.")
    return lines


@contextmanager
def unpacked(bundle: Path) -> Iterator[Path]:
    """Unpack a bundle to a scratch folder for the length of the block, checking everything first.

    Raises: ArtefactError: not a bundle, a name or size it may not have, or a digest that differs.
    """
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, data in contents(bundle):
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        yield root


def count_records(bundle: Path) -> int:
    """Return how many records a bundle says that it holds. Raises: ArtefactError: not a readable bundle."""
    with _archive(bundle) as archive:
        return sum(name.endswith("/record.json") for name in archive.namelist())


def read_bundle(
    bundle: Path, on_run: Callable[[bytes], object] = bytes
) -> Iterator[CellRecord | ProtocolError]:
    """Read the records of a bundle without unpacking it; in place of one of another protocol its refusal.

    Args:
        bundle: the file.
        on_run: is given the bytes of its run.json.

    Raises: ArtefactError: as `unpacked` and `read_record`.
    """
    halves: dict[str, dict[str, bytes]] = defaultdict(dict)
    is_empty = True
    for name, data in contents(bundle):
        if name == provenance.NAME:
            on_run(data)
        match = _NAME.fullmatch(name)
        if match is None or not match["key"] or name.endswith(".safetensors"):
            continue
        key = match["key"]
        halves[key][name.rpartition("/")[2]] = data
        if len(halves[key]) == 2:
            found, is_empty = halves.pop(key), False
            try:
                yield parse_record(
                    bundle / "records" / key, found["record.json"], partial(found.__getitem__, "samples.csv")
                )
            except ProtocolError as error:
                yield error
    for key, found in halves.items():
        lost = "samples.csv" if "record.json" in found else "record.json"
        raise ArtefactError(f"{bundle}: lacks 'records/{key}/{lost}'. Pack it again.")
    if is_empty:
        raise ArtefactError(
            f"{bundle}: holds no records. Pack a folder that robustspike run wrote with --out."
        )


def contents(bundle: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of the files of a bundle, each checked. Raises: ArtefactError: see `unpacked`."""
    with _archive(bundle) as archive:
        yield from _contents(archive, bundle)


@contextmanager
def _archive(bundle: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(bundle) as archive:
            yield archive
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
    allowed = {*manifest, MANIFEST}
    for info in infos:
        name = info.filename
        if name not in allowed or not (name == MANIFEST or _may_hold(name)):
            raise ArtefactError(f"{bundle}: holds '{name[:80]}', which no bundle may hold. Do not trust it.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArtefactError(f"{bundle}: '{name}' is a link, which no bundle may hold. Do not trust it.")
        if name != MANIFEST:
            data = _read(archive, info, bundle)
            if sha256(data) != manifest[name]:
                raise ArtefactError(f"{bundle}: '{name}' is not what its manifest says. Do not trust it.")
            yield name, data
    missing = sorted(set(manifest) - set(names))
    if missing:
        raise ArtefactError(f"{bundle}: lacks '{missing[0]}', which its manifest names.")


def _manifest(archive: zipfile.ZipFile, bundle: Path) -> dict[str, str]:
    """Return the digests of a bundle's files."""
    return {str(name): str(digest) for name, digest in _told(archive, bundle)["files"].items()}


def _told(archive: zipfile.ZipFile, bundle: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(archive, archive.getinfo(MANIFEST), bundle).decode("utf-8"))
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
    return value


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, bundle: Path) -> bytes:
    """Read a member, never more than its declared and the allowed size."""
    if info.file_size > MAX_FILE_BYTES:
        raise ArtefactError(f"{bundle}: '{info.filename[:80]}' is larger than {MAX_FILE_BYTES} bytes.")
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ArtefactError(f"{bundle}: '{info.filename[:80]}' is not of its declared size.")
    return data
