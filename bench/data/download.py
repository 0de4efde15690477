"""Fetch the published files of a data set, each checked by its published checksum."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePosixPath
from typing import Any

from robustspike.bench.errors import ArtefactError
from robustspike.bench.files import writing

Report = Callable[[str, int, int], None]
"""Called while a file arrives: its name, bytes so far, bytes in all (0 where the server does not say)."""

_CHUNK = 1 << 18
_PATIENCE = 30.0
"""Seconds without an answer before a server counts as silent."""


@dataclass(frozen=True)
class Published:
    """One file that the authors of a data set offer.

    Args:
        url: where it is.
        checksum: "md5:..." or "sha256:...", as published.
        name: the file's own name.
        folder: folder below the given one that it goes to, or is unpacked into.
        unpacks: for an archive: patterns of the members that are wanted, e.g. "cifar-10-batches-bin/*.bin".
    """

    url: str
    checksum: str
    name: str
    folder: str = ""
    unpacks: tuple[str, ...] = ()


def fetch(
    files: tuple[Published, ...], to: Path, *, mirror: str = "", report: Report | None = None
) -> list[Path]:
    """Download published files into a folder, and unpack archives there.

    What is there already with the right checksum is not fetched again; what was cut short goes on
    where it stopped, if the server can. A file counts only once its checksum is right.

    Args:
        to: the folder; made where it is absent.
        mirror: another place to fetch from, a http(s): or file: address of a folder that holds the files
            under their own names; the checksums stay.

    Returns: the files, and what was unpacked from them.
    Raises: ArtefactError: no network, a file that is not what was published, or a disk that refuses it.
    """
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    found = []
    for file in files:
        place = to / file.folder if file.folder and not file.unpacks else to
        source = f"{mirror.rstrip('/')}/{urllib.parse.quote(file.name)}" if mirror else file.url
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        partial = place / f"{file.name}.part"
        try:
            path = Path(
                pooch.retrieve(
                    source,
                    file.checksum,
                    fname=file.name,
                    path=place,
                    downloader=_Resuming(partial, file, report),
                )
            )
        except ValueError as error:  # a wrong checksum, or an address of no known kind
            partial.unlink(missing_ok=True)
            raise ArtefactError(
                f"{source}: not the published file: {error}. Try again, or a mirror."
            ) from error
        partial.unlink(missing_ok=True)
        found += [path, *(_unpack(path, to / file.folder, file.unpacks) if file.unpacks else ())]
    return found


class _Resuming:
    """A downloader for pooch that keeps what has arrived, and asks only for the rest the next time."""

    def __init__(self, partial: Path, file: Published, report: Report | None) -> None:
        self.partial = partial
        self.file = file
        self.report = report

    def __call__(self, url: str, output: str | Path, _: Any, check_only: bool = False) -> None:
        del check_only
        have = self.partial.stat().st_size if self.partial.exists() else 0
        try:
            self._receive(url, have)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:  # 416: nothing is left to send, or another file is there now
                raise self._failed(url, error) from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise self._failed(url, error) from error
        with writing(Path(output)):
            shutil.copyfile(self.partial, output)

    def _receive(self, url: str, have: int) -> None:
        headers = {"User-Agent": "robustspike"} | ({"Range": f"bytes={have}-"} if have else {})
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            resumes = getattr(answer, "status", None) == 206
            done = have if resumes else 0
            left = int(answer.headers.get("Content-Length") or 0)
            total = done + left if left else 0
            with writing(self.partial), self.partial.open("ab" if resumes else "wb") as kept:
                while chunk := answer.read(_CHUNK):
                    kept.write(chunk)
                    done += len(chunk)
                    if self.report is not None:
                        self.report(self.file.name, done, total)
            if total and done != total:
                raise http.client.IncompleteRead(b"", total - done)

    def _failed(self, url: str, error: Exception) -> ArtefactError:
        reason: object = error
        if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
            reason = error.reason
        return ArtefactError(
            f"{url}: cannot be fetched ({reason}). Check the network and run the same command to go on, name "
            f"another place with --mirror, or put {self.file.name} ({self.file.checksum}) into "
            f"{self.partial.parent} by hand."
        )


def _unpack(archive: Path, to: Path, wanted: tuple[str, ...]) -> list[Path]:
    """Write the wanted members of a tar or zip archive below a folder; nothing else, nowhere else."""
    found = []
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                for info in zipped.infolist():
                    if not info.is_dir() and _is_wanted(info.filename, wanted):
                        with zipped.open(info) as member:
                            found.append(_write(member, to / info.filename))
        else:
            with tarfile.open(archive) as packed:
                for entry in packed:
                    content = packed.extractfile(entry) if entry.isfile() else None
                    if content is not None and _is_wanted(entry.name, wanted):
                        with content as member:
                            found.append(_write(member, to / entry.name))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ArtefactError(
            f"{archive}: cannot be unpacked ({error}). Delete it and fetch it again."
        ) from error
    if not found:
        raise ArtefactError(f"{archive}: holds none of {', '.join(wanted)}. Delete it and fetch it again.")
    return found


def _is_wanted(name: str, wanted: tuple[str, ...]) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    return any(path.match(p) and len(path.parts) == len(PurePosixPath(p).parts) for p in wanted)


def _write(content: Any, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            shutil.copyfileobj(content, file, _CHUNK)
        temporary.replace(path)
    return path
