"""Readers of event recordings in the formats in which they are published: AER .bin, AEDAT 3.1 and 4.

Nothing in a file is trusted: one that is cut short, is something else, or holds events outside the sensor
is an `ArtefactError` that names the file.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.events import recording
from robustspike.bench.errors import ArtefactError
from robustspike.bench.numbers.rng import global_randomness_kept

Size = tuple[int, int]
T = TypeVar("T")

_OVERFLOW_ROW, _OVERFLOW = 240, 1 << 13
_POLARITY, _PACKET_HEADER = 1, 28


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises: ArtefactError: missing, unreadable or empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{path}: cannot be read ({error}). Check the folder given with --data."
        ) from error
    if not content:
        raise ArtefactError(f"{path}: the file is empty. Fetch it again.")
    return content


def read_aer_bin(path: Path, *, size: Size) -> Recording:
    """Read the 5-byte address events of N-MNIST and N-Caltech101.

    An event is x, y, then 1 bit of polarity and 23 bits of time in microseconds, big-endian. Rows of 240
    are no events: each adds 8192 microseconds to the time of all that follow.

    Source: Orchard et al. 2015, Frontiers in Neuroscience 9:437. Differs: none.
    """
    content = read_bytes(path)
    if len(content) % 5:
        raise ArtefactError(
            f"{path}: {len(content)} bytes are not a whole number of 5-byte events. The file is cut short or "
            "is not an AER .bin file; fetch it again."
        )
    raw = np.frombuffer(content, dtype=np.uint8).reshape(-1, 5).astype(np.int64)
    t = (raw[:, 2] & 127) << 16 | raw[:, 3] << 8 | raw[:, 4]
    overflow = raw[:, 1] == _OVERFLOW_ROW
    t = (t + np.cumsum(overflow) * _OVERFLOW)[~overflow]
    raw = raw[~overflow]
    return recording(raw[:, 0], raw[:, 1], t, raw[:, 2] >> 7, size=size, where=str(path))


def read_aedat31(path: Path, *, size: Size = (128, 128)) -> Recording:
    """Read the polarity events of an AEDAT 3.1 file, as DVS128 Gesture has them; times as in the file.

    After lines that start with "#" come packets: a 28-byte little-endian header (type, source, event size,
    time offset, overflows, capacity, number, valid) and the events, two 32-bit words each: address (bit 0
    valid, bit 1 polarity, 15 bits y, 15 bits x) and time.

    Source: iniVation's AEDAT 3.1 specification. Differs: other event types are skipped.
    """
    content = read_bytes(path)
    at = _text_header(path, content, b"#!AER-DAT3")
    parts: list[npt.NDArray[np.int64]] = []
    while at < len(content):
        if len(content) - at < _PACKET_HEADER:
            raise ArtefactError(f"{path}: a packet header at byte {at} is cut short. Fetch the file again.")
        kind, _, width, _, overflows, capacity, number, _ = struct.unpack_from("<hhiiiiii", content, at)
        at += _PACKET_HEADER
        length = capacity * width
        if width < 8 or not 0 <= number <= capacity or overflows < 0 or length > len(content) - at:
            raise ArtefactError(
                f"{path}: the packet at byte {at - _PACKET_HEADER} claims {number} of {capacity} events of "
                f"{width} bytes, and {len(content) - at} bytes follow. The file is damaged or cut short."
            )
        if kind == _POLARITY:
            if width != 8:
                raise ArtefactError(
                    f"{path}: polarity events of {width} bytes, expected 8. The file is damaged."
                )
            words = np.frombuffer(content, dtype="<u4", count=2 * number, offset=at).reshape(-1, 2)
            words = words.astype(np.int64)[(words[:, 0] & 1) == 1]
            words[:, 1] += overflows << 31
            parts.append(words)
        at += length
    words = np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.int64)
    if not len(words):
        raise ArtefactError(f"{path}: holds no polarity events. Fetch the file again.")
    address = words[:, 0]
    return recording(
        address >> 17 & 0x7FFF,
        address >> 2 & 0x7FFF,
        words[:, 1],
        address >> 1 & 1,
        size=size,
        where=str(path),
    )


def read_aedat4(path: Path, *, size: Size = (128, 128)) -> Recording:
    """Read an AEDAT 4 file through tonic; times count from the first event.

    Raises: ArtefactError: tonic or its decoder is not installed, or the file is damaged.
    """
    read_bytes(path)
    decode = from_tonic("tonic.io", where=str(path)).read_aedat4
    from_tonic("aedat", where=str(path))
    found = guarded(lambda: decode(str(path)), where=str(path))
    names = found.dtype.names
    p = found["on" if "on" in names else "p"]
    t = found["t"].astype(np.int64)
    if not len(t):
        raise ArtefactError(f"{path}: holds no events. Fetch it again.")
    return recording(found["x"], found["y"], t - t.min(), p, size=size, where=str(path))


def one_line(error: BaseException) -> str:
    """Return the type of a foreign error and what it says, without its line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def from_tonic(module: str, *, where: str) -> ModuleType:
    """Import a module of tonic, or of what it reads files with.

    Raises: ArtefactError: whatever keeps it from being imported, told as its absence.
    """
    try:
        with global_randomness_kept():
            return importlib.import_module(module)
    except Exception as error:  # a package that is there but broken is as good as absent
        raise ArtefactError(
            f"{where}: is read through tonic, which cannot be used here ({one_line(error)}). "
            "pip install 'robustspike[events]'."
        ) from error


def guarded(read: Callable[[], T], *, where: str) -> T:
    """Call a foreign reader of a file. Raises: ArtefactError: for all that it raises.

    The decoder of AEDAT 4 panics on damaged files, and a panic is no `Exception`.
    """
    try:
        return read()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ArtefactError(
            f"{where}: tonic cannot read it ({one_line(error)}). The file is damaged, cut short or of "
            "another format."
        ) from error


def load_numpy(path: Path, *names: str) -> list[npt.NDArray[Any]]:
    """Read the named arrays of an .npz, or the one array of an .npy where no names are given.

    Raises: ArtefactError: it cannot be read, or lacks an array.
    """
    read_bytes(path)
    try:
        found = np.load(path, allow_pickle=False)
        if not names:
            return [found] if isinstance(found, np.ndarray) else []
        with found:
            return [found[name] for name in names]
    except Exception as error:  # numpy, zipfile, zlib and ast each raise their own on a damaged file
        wanted = f" with {' and '.join(names)}" if names else ""
        raise ArtefactError(
            f"{path}: not a readable numpy file{wanted} ({error}). Fetch it again."
        ) from error


def read_npy_events(path: Path, *, size: Size) -> Recording:
    """Read an array [n, 4] of x, y, polarity and time in milliseconds: tonic's cut of DVS128 Gesture."""
    found = load_numpy(path)
    table = found[0] if found else np.empty(0)
    if table.dtype.kind not in "iuf" or table.ndim != 2 or table.shape[1] != 4 or not table.size:
        raise ArtefactError(
            f"{path}: expected numbers [n, 4] of x, y, p, t, got {list(table.shape)} {table.dtype}."
        )
    if not (np.abs(table) < 1e12).all():
        raise ArtefactError(f"{path}: holds NaN, infinity or a time beyond 30 years. The file is damaged.")
    return recording(table[:, 0], table[:, 1], table[:, 3] * 1000, table[:, 2], size=size, where=str(path))


def read_gesture_labels(path: Path) -> list[tuple[int, int, int]]:
    """Read the gestures of a DVS128 Gesture recording: (class from 0, first microsecond, end).

    The first line is a heading and may be missing; blank lines are skipped.
    """
    text = read_bytes(path).decode("utf-8-sig", errors="replace")
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or (number == 1 and not line.strip()[0].isdigit()):
            continue
        row = line.split(",")
        try:
            label, start, end = (int(value) for value in row)
        except ValueError:
            label, start, end = 0, 0, 0
        if not (1 <= label <= 11 and 0 <= start < end):
            raise ArtefactError(
                f"{path}, line {number}: expected class 1..11, start and end in microseconds, got "
                f"'{line[:60]}'. The file is damaged."
            )
        found.append((label - 1, start, end))
    if not found:
        raise ArtefactError(f"{path}: lists no gestures. Fetch it again.")
    return found


def _text_header(path: Path, content: bytes, magic: bytes) -> int:
    """Return where the data start after the comment lines. Raises: ArtefactError: another format."""
    if not content.startswith(magic):
        hint = " It looks like HTML." if content.lstrip()[:1] == b"<" else ""
        raise ArtefactError(
            f"{path}: starts with {content[:10]!r}, expected {magic.decode()}.{hint} Fetch the file again."
        )
    at = 0
    while content[at : at + 1] == b"#":
        end = content.find(b"\n", at)
        if end < 0:
            raise ArtefactError(f"{path}: ends inside its header. The file is cut short; fetch it again.")
        line, at = content[at : end + 1], end + 1
        if line.startswith(b"#!END-HEADER"):
            break
    return at
