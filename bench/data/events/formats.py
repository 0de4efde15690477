"""Event recordings of any format that users have: what a file is comes from its content, not from its name.

Read here: Prophesee RAW (EVT 2.0, EVT 3.0) and DAT, AEDAT 2.0 of DVS128 and DAVIS sensors, structured or
plain numpy arrays, npz (SpikingJelly's `events_np` among them), HDF5 (DSEC's layout among them) and MATLAB
files; through `event_files` AEDAT 3.1, AEDAT 4 and the 5-byte address events of N-MNIST. Nothing in a file is
trusted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

import numpy as np
import numpy.typing as npt

from robustspike.bench.data.events.event_files import Size
from robustspike.bench.data.events.event_files import read_aedat4
from robustspike.bench.data.events.event_files import read_aedat31
from robustspike.bench.data.events.event_files import read_aer_bin
from robustspike.bench.data.events.event_files import read_bytes
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.events import recording
from robustspike.bench.errors import ArtefactError

TimeUnit = Literal["auto", "us", "ms", "s"]
MICROSECONDS = {"us": 1, "ms": 1_000, "s": 1_000_000}

Columns = Mapping[str, npt.NDArray[Any]]
"""x, y, t and p as they stand in a file, of equal length."""

NAMES = {
    "x": ("x", "x_pos", "xs"),
    "y": ("y", "y_pos", "ys"),
    "t": ("t", "ts", "timestamp", "timestamps", "time", "t_us"),
    "p": ("p", "pol", "polarity", "on", "ps"),
}
"""What columns are called in other people's files."""

_LEAST_MICROSECONDS = 10_000
"""Whole numbers that span less are not taken for microseconds unless told so: 10 ms, or 10 s in ms."""

_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Raw:
    """A file as decoded.

    Args:
        columns: x, y, t, p.
        size: the sensor's (height, width) where the file says it.
        unit: the unit of t where the format fixes it, else "auto".
    """

    columns: Columns
    size: Size | None = None
    unit: TimeUnit = "auto"


def identify(path: Path) -> str:
    """Name the format of a file by its content.

    Returns: evt2, evt3, dat, aedat2, aedat3, aedat4, npz, npy, hdf5, mat or aer_bin.
    Raises: ArtefactError: unreadable, empty, or none of these; a good file of another format is called that.
    """
    content = read_bytes(path)[:_HEADER_BYTES]
    for magic, name in _MAGIC.items():
        if content.startswith(magic):
            return name
    if content.startswith(b"%"):
        header, _ = _percent_header(content)
        if match := re.search(r"(?:evt|format EVT) ?([234])", header):
            if match[1] in "23":
                return f"evt{match[1]}"
            raise ArtefactError(
                f"{path}: is Prophesee EVT {match[1]}.0, which is not read. Convert it with Metavision's "
                "metavision_file_to_hdf5 or to EVT 3.0."
            )
        return "dat"
    for magic, name in _OTHERS.items():
        if content.lstrip().startswith(magic):
            raise ArtefactError(
                f"{path}: is {name}, not a recording of events. Known: {', '.join(_READERS)}."
            )
    if path.suffix == ".bin":
        return "aer_bin"
    raise ArtefactError(
        f"{path}: starts with {content[:8]!r}, which is no format of event recordings known here. Known: "
        f"{', '.join(_READERS)}."
    )


def read_events(path: Path, *, size: Size | None = None, unit: TimeUnit = "auto") -> tuple[Recording, Size]:
    """Read a recording of any known format; times in microseconds from its first event.

    Args:
        size: the sensor's (height, width); None for what the file says, else the smallest that holds all.
        unit: unit of the file's times where the format does not fix it. "auto" takes whole numbers that span
            10 ms or more for microseconds and refuses everything else.

    Returns: the events, and the sensor's (height, width).
    Raises: ArtefactError: unreadable, damaged, no event, events outside the sensor, or times of unknown unit.
    """
    raw = _READERS[identify(path)](path)
    lengths = {len(column) for column in raw.columns.values()}
    if len(lengths) != 1:
        raise ArtefactError(
            f"{path}: x, y, t and p differ in length ({sorted(lengths)}). The file is damaged."
        )
    if not lengths.pop():
        raise ArtefactError(f"{path}: holds no events. Leave it out.")
    x, y, p = (_whole(path, name, raw.columns[name]) for name in "xyp")
    if p.min() < 0 and set(np.unique(p)) <= {-1, 1}:
        p = (p > 0).astype(np.int64)
    t = _microseconds(path, raw.columns["t"], raw.unit if raw.unit != "auto" else unit)
    found = size or raw.size or (max(1, int(y.max()) + 1), max(1, int(x.max()) + 1))
    return recording(x, y, t - t.min(), p, size=found, where=str(path)), found


def _whole(path: Path, name: str, column: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if column.dtype.kind not in "iufb" or not np.isfinite(column).all() or (column != np.floor(column)).any():
        raise ArtefactError(
            f"{path}: column {name} holds values that are no whole numbers. The file is damaged."
        )
    return column.astype(np.int64)


def _microseconds(path: Path, t: npt.NDArray[Any], unit: TimeUnit) -> npt.NDArray[np.int64]:
    """Return times in microseconds. Raises: ArtefactError: NaN, or a unit that nothing tells."""
    if t.dtype.kind not in "iuf" or not np.isfinite(t).all() or np.abs(t.astype(np.float64)).max() > 1e18:
        raise ArtefactError(
            f"{path}: times hold NaN, infinity or values beyond any clock. The file is damaged."
        )
    if unit == "auto":
        whole = t.dtype.kind in "iu" or bool((t == np.floor(t)).all())
        span = float(t.max()) - float(t.min())
        if not whole or span < _LEAST_MICROSECONDS:
            kind = "whole numbers" if whole else "fractions"
            raise ArtefactError(
                f"{path}: times are {kind} that span {span:g}: microseconds, milliseconds and seconds cannot "
                "be told apart. Say which: time_unit=us, ms or s."
            )
        unit = "us"
    factor = MICROSECONDS[unit]
    return t.astype(np.int64) * factor if t.dtype.kind in "iu" else np.floor(t * factor).astype(np.int64)


def _percent_header(content: bytes) -> tuple[str, int]:
    """Return the text of the leading lines that start with "%", and where the data start."""
    at = 0
    while content[at : at + 1] == b"%":
        end = content.find(b"\n", at)
        if end < 0:
            return content.decode("latin-1"), len(content)
        line, at = content[at:end], end + 1
        if line.strip() == b"% end":
            break
    return content[:at].decode("latin-1"), at


def _prophesee(path: Path) -> tuple[bytes, Size | None]:
    """Return the data of a Prophesee file, and the sensor's (height, width) where its header says it."""
    content = read_bytes(path)
    header, at = _percent_header(content)
    found = re.search(r"geometry:? ?(\d+)x(\d+)", header, re.IGNORECASE)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    for name, value in re.findall(r"(width|height)[ =:]+(\d+)", header, re.IGNORECASE):
        width, height = (int(value), height) if name.lower() == "width" else (width, int(value))
    return content[at:], (height, width) if width and height else None


def _words(path: Path, body: bytes, dtype: str) -> npt.NDArray[np.int64]:
    width = np.dtype(dtype).itemsize
    if len(body) % width:
        raise ArtefactError(
            f"{path}: {len(body)} bytes after the header are not a whole number of {width}-byte words. The "
            "file is cut short."
        )
    return np.frombuffer(body, dtype=dtype).astype(np.int64)


def _unwrapped(high: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """Return a counter of some bits without its wraps: a fall by more than half of its range is one."""
    falls = np.diff(high, prepend=high[:1]) < -(1 << (bits - 1))
    return high + (np.cumsum(falls) << bits)


def _latest(at: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return for every place the last place at or before it where `at` holds, -1 where there is none."""
    return np.maximum.accumulate(np.where(at, np.arange(len(at)), -1))


def read_evt2(path: Path) -> Raw:
    """Read Prophesee EVT 2.0: 32-bit words, type in the top four bits (0 off, 1 on, 8 time).

    Source: Prophesee's format description. Differs: events before the first time word are dropped.
    """
    body, size = _prophesee(path)
    words = _words(path, body, "<u4")
    kind = words >> 28
    base = _latest(kind == 8)
    high = _unwrapped(words[kind == 8] & 0x0FFFFFFF, 28)
    order = np.cumsum(kind == 8) - 1
    event = ((kind == 0) | (kind == 1)) & (base >= 0)
    chosen = words[event]
    t = (high[order[event]] << 6 | (chosen >> 22 & 63)) if len(high) else chosen[:0]
    columns = {"x": chosen >> 11 & 2047, "y": chosen & 2047, "t": t, "p": kind[event]}
    return Raw(columns, size, "us")


def read_evt3(path: Path) -> Raw:
    """Read Prophesee EVT 3.0: 16-bit words that set row, column and time, or give one or up to twelve events.

    Source: Prophesee's format description. Differs: events before the first row and time words are dropped;
    low bits of the time that fall without a new high word are one wrap (expelliarmus writes such files).
    """
    body, size = _prophesee(path)
    words = _words(path, body, "<u2")
    kind, value = words >> 12, words & 0x0FFF
    row, base, low, is_high = (_latest(kind == k) for k in (0x0, 0x3, 0x6, 0x8))
    high = _unwrapped(value[kind == 0x8], 12)
    order = np.cumsum(kind == 0x8) - 1
    steps = np.select([kind == 0x4, kind == 0x5], [12, 8], 0)
    passed = np.cumsum(steps) - steps
    known = (row >= 0) & (is_high >= 0)
    vector = known & ((kind == 0x4) | (kind == 0x5)) & (base >= 0)
    parts = []
    single = np.flatnonzero(known & (kind == 0x2))
    parts.append((single, value[single] & 2047, value[single] >> 11))
    for bit in range(12):
        at = np.flatnonzero(vector & (bit < steps) & ((value >> bit & 1) == 1))
        origin = base[at]
        parts.append((at, (value[origin] & 2047) + passed[at] - passed[origin] + bit, value[origin] >> 11))
    at, x, p = (np.concatenate(column) for column in zip(*parts, strict=True))
    order_of = np.argsort(at, kind="stable")
    at, x, p = at[order_of], x[order_of], p[order_of]
    if not len(at):
        return Raw({"x": x, "y": x, "t": x, "p": x}, size, "us")
    missed = np.zeros_like(words)
    lows = np.flatnonzero(kind == 0x6)
    fell = (np.diff(value[lows], prepend=0) < 0) & (np.diff(order[lows], prepend=-1) == 0)
    missed[lows] = fell
    missed = np.cumsum(missed)
    missed -= np.where(is_high >= 0, missed[np.maximum(is_high, 0)], 0)
    fine = np.where(low[at] >= 0, value[np.maximum(low[at], 0)], 0)
    t = (high[order[at]] + missed[at] << 12) + fine
    return Raw({"x": x, "y": value[row[at]] & 2047, "t": t, "p": p}, size, "us")


def read_dat(path: Path) -> Raw:
    """Read Prophesee DAT: after the header two bytes (event type and size), then time and packed x, y, p.

    Source: Prophesee's format description. Differs: none.
    """
    body, size = _prophesee(path)
    if len(body) < 2 or body[1] != 8:
        raise ArtefactError(f"{path}: expected 8-byte events after its header of %-lines. It is no DAT file.")
    words = _words(path, body[2:], "<u4")
    if len(words) % 2:
        raise ArtefactError(f"{path}: ends inside an event. The file is cut short.")
    t, packed = words[::2], words[1::2]
    columns = {
        "x": packed & 0x3FFF,
        "y": packed >> 14 & 0x3FFF,
        "t": _unwrapped(t, 32),
        "p": packed >> 28 & 1,
    }
    return Raw(columns, size, "us")


_DAVIS = {"DAVIS240": (180, 240), "DAVIS346": (260, 346), "DAVIS640": (480, 640), "DAVIS128": (128, 128)}


def read_aedat2_any(path: Path) -> Raw:
    """Read AEDAT 2.0 of a DVS128 or a DAVIS sensor, which the header names.

    Pairs of big-endian 32-bit words, address and time in microseconds. DVS128: x in bits 7-1, y in 14-8, bit
    0 is 0 for ON, bit 15 marks an external event. DAVIS: x in bits 21-12, y in 30-22, bit 11 is 1 for ON, bit
    10 marks an external event, bit 31 a pixel value. Times are signed and wrap.

    Source: iniVation, AEDAT file formats. Differs: external events and pixel values are left out; of a
    DVS128 both axes are mirrored and change places, as SpikingJelly reads CIFAR10-DVS (the sensor stood
    turned); of a DAVIS both are mirrored.
    """
    content = read_bytes(path)
    at = 0
    while content[at : at + 1] == b"#":
        end = content.find(b"\n", at)
        if end < 0:
            raise ArtefactError(f"{path}: ends inside its header. The file is cut short.")
        at = end + 1
    header = content[:at].decode("latin-1")
    body = content[at:]
    if len(body) % 8:
        raise ArtefactError(
            f"{path}: {len(body)} bytes after the header are not a whole number of 8-byte events. The file "
            "is cut short."
        )
    words = np.frombuffer(body, dtype=">u4").reshape(-1, 2).astype(np.int64)
    address, t = words[:, 0], _unwrapped(words[:, 1], 32)
    chip = next((size for name, size in _DAVIS.items() if name in header.upper()), None)
    if chip is not None:
        keep = (address >> 31 == 0) & ((address >> 10 & 1) == 0)
        address, t = address[keep], t[keep]
        height, width = chip
        columns = {
            "x": width - 1 - (address >> 12 & 0x3FF),
            "y": height - 1 - (address >> 22 & 0x1FF),
            "t": t,
            "p": address >> 11 & 1,
        }
        return Raw(columns, chip, "us")
    keep = (address >> 15 & 1) == 0
    address, t = address[keep], t[keep]
    columns = {
        "x": 127 - (address >> 8 & 127),
        "y": 127 - (address >> 1 & 127),
        "t": t,
        "p": 1 - (address & 1),
    }
    return Raw(columns, (128, 128), "us")


def columns_of(path: Path, found: Mapping[str, Any]) -> Columns:
    """Pick x, y, t and p out of named arrays, whatever their order. Raises: ArtefactError: one is missing."""
    lower = {name.lower(): value for name, value in found.items()}
    picked = {}
    for wanted, names in NAMES.items():
        name = next((name for name in names if name in lower), None)
        if name is None:
            raise ArtefactError(
                f"{path}: has no column {wanted} (looked for {', '.join(names)}); it holds "
                f"{', '.join(sorted(map(str, found))) or 'nothing'}. Frames are no recording of events."
            )
        picked[wanted] = np.asarray(lower[name]).ravel()
    return picked


def read_npy(path: Path) -> Raw:
    """Read one numpy array: structured, with fields in any order, or [n, 4] as x, y, p, t (ms).

    The plain array is tonic's cut of DVS128 Gesture.
    """
    table = _numpy(path)
    if not isinstance(table, np.ndarray):
        raise ArtefactError(f"{path}: holds no array. It is no recording of events.")
    if table.dtype.names:
        return Raw(columns_of(path, {name: table[name] for name in table.dtype.names}))
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
        raise ArtefactError(
            f"{path}: expected a structured array or numbers [n, 4] of x, y, p, t, got {list(table.shape)} "
            f"{table.dtype}."
        )
    return Raw({"x": table[:, 0], "y": table[:, 1], "p": table[:, 2], "t": table[:, 3]}, None, "ms")


def read_npz(path: Path) -> Raw:
    """Read an npz with arrays for x, y, t and p (SpikingJelly's `events_np`), or one structured array."""
    found = _numpy(path)
    try:
        arrays = {name: found[name] for name in found.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own on a damaged member
        raise ArtefactError(f"{path}: cannot be read ({error}). The file is damaged.") from error
    structured = [value for value in arrays.values() if value.dtype.names]
    if len(arrays) == 1 and structured:
        (table,) = structured
        return Raw(columns_of(path, {name: table[name] for name in table.dtype.names}))
    return Raw(columns_of(path, arrays))


def _numpy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # numpy, zipfile, zlib and ast each raise their own on a damaged file
        raise ArtefactError(f"{path}: not a readable numpy file ({error}).") from error


def read_hdf5(path: Path) -> Raw:
    """Read HDF5 with arrays for x, y, t and p at its root or in a group (`events`: DSEC), or one table.

    DSEC's `t_offset` is added. Raises: ArtefactError: h5py is not installed, or the file is something else.
    """
    try:
        import h5py
    except ImportError as error:
        raise ArtefactError(f"{path}: HDF5 needs h5py. pip install 'robustspike[events]'.") from error
    try:
        with h5py.File(path, "r") as file:
            places: list[Any] = [file]
            file.visititems(lambda _, item: places.append(item))
            for place in places:
                named = _hdf5_columns(place, h5py)
                if named is not None:
                    columns = dict(columns_of(path, named))
                    if "t_offset" in file:
                        columns["t"] = columns["t"].astype(np.int64) + int(file["t_offset"][()])
                    return Raw(columns)
    except ArtefactError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError and RuntimeError on damaged files
        raise ArtefactError(f"{path}: cannot be read as HDF5 ({error}).") from error
    raise ArtefactError(f"{path}: no group or table with x, y, t and p. It is no recording of events.")


def _hdf5_columns(place: Any, h5py: Any) -> dict[str, Any] | None:
    """Return the arrays of a group or the fields of a table if x and y are among them."""
    if isinstance(place, h5py.Dataset):
        fields = place.dtype.names or ()
        return {name: place[name] for name in fields} if {"x", "y"} <= set(fields) else None
    sets = {name: item for name, item in place.items() if isinstance(item, h5py.Dataset)}
    return {name: item[()] for name, item in sets.items()} if {"x", "y"} <= sets.keys() else None


def read_mat(path: Path) -> Raw:
    """Read a MATLAB file (to version 7.2): x, y, ts and pol at its top or in one struct (N-CARS, ASL-DVS)."""
    from scipy.io import loadmat

    try:
        found = loadmat(str(path), simplify_cells=True)
    except Exception as error:  # scipy raises whatever its parser meets
        raise ArtefactError(f"{path}: cannot be read as a MATLAB file ({error}).") from error
    named = {name: value for name, value in found.items() if not name.startswith("__")}
    inner = [value for value in named.values() if isinstance(value, dict)]
    return Raw(columns_of(path, inner[0] if len(inner) == 1 and len(named) == 1 else named))


def _through(reader: Callable[..., Recording], size: Size) -> Callable[[Path], Raw]:
    def read(path: Path) -> Raw:
        events = reader(path, size=size)
        return Raw({name: events[name] for name in "xytp"}, size, "us")

    return read


_MAGIC = {
    b"#!AER-DAT2": "aedat2",
    b"#!AER-DAT3": "aedat3",
    b"#!AER-DAT4": "aedat4",
    b"PK\x03\x04": "npz",
    b"\x93NUMPY": "npy",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"MATLAB 5.0 MAT-file": "mat",
}
_OTHERS = {
    b"<": "HTML or XML",
    b"#ROSBAG": "a ROS bag",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"BM": "a BMP image",
    b"\x1f\x8b": "gzip (unpack it)",
    b"BZh": "bzip2 (unpack it)",
    b"Rar!": "a RAR archive (unpack it)",
    b"7z\xbc\xaf": "a 7z archive (unpack it)",
    b"\x28\xb5\x2f\xfd": "zstd (unpack it)",
    b"\x80": "a pickle, which is not opened",
    b"GIF8": "a GIF image",
}
_READERS: dict[str, Callable[[Path], Raw]] = {
    "evt2": read_evt2,
    "evt3": read_evt3,
    "dat": read_dat,
    "aedat2": read_aedat2_any,
    "aedat3": _through(read_aedat31, (128, 128)),
    "aedat4": _through(read_aedat4, (1 << 15, 1 << 15)),
    "npz": read_npz,
    "npy": read_npy,
    "hdf5": read_hdf5,
    "mat": read_mat,
    "aer_bin": _through(read_aer_bin, (240, 256)),
}
