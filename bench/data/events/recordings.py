"""A folder of one's own recordings as a data set: DIR/{train,test}/CLASS/FILE, in any known format."""

from __future__ import annotations

import itertools
import re
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from typing import ClassVar
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from robustspike.bench.contract.specs import Domain
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import stratified
from robustspike.bench.data.events.event_files import Size
from robustspike.bench.data.events.event_files import load_numpy
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.events import as_input
from robustspike.bench.data.events.events import bin_events
from robustspike.bench.data.events.events import domain_of
from robustspike.bench.data.events.formats import TimeUnit
from robustspike.bench.data.events.formats import identify
from robustspike.bench.data.events.formats import read_events
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError

SplitBy = Literal["number", "time", "window", "n_event_bins", "n_time_bins"]

_VALIDATION = 10
"""One in so many training recordings, of every class at least one, is held out for validation."""

_TEST_IDS = 1_000_000
"""Ids of test recordings start here, those of a validation folder at twice this."""


def frame_edges(t: npt.NDArray[np.int64], steps: int, split_by: SplitBy) -> list[slice]:
    """Cut a recording into frames as published work does: equal numbers of events, or equal times.

    Equal times run from the first event to the last. By "number" and "time" the last frame takes what is
    left over; by "n_event_bins" and "n_time_bins" that is dropped.

    Source: "number" and "time" as SpikingJelly's `cal_fixed_frames_number_segment_index` defines them, the
    others as tonic's `ToFrame`. Differs: none.
    """
    if split_by == "n_event_bins":
        each = len(t) // steps
        return [slice(each * step, each * (step + 1)) for step in range(steps)]
    if split_by == "n_time_bins":
        edges = np.searchsorted(t, t[0] + (int(t[-1]) - int(t[0])) // steps * np.arange(steps + 1))
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]
    if split_by == "number":
        each = len(t) // steps
        starts = [each * step for step in range(steps)]
    else:
        length = (int(t[-1]) - int(t[0])) // steps
        starts = [int(np.searchsorted(t, t[0] + length * step)) for step in range(steps)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(t)], strict=True)]


def resized(events: Recording, size: Size, side: Size) -> Recording:
    """Move events to the pixels of a smaller sensor: block by block where it divides, else the nearest."""
    if size == side:
        return events
    out = events.copy()
    out["x"] = events["x"].astype(np.int64) * side[1] // size[1]
    out["y"] = events["y"].astype(np.int64) * side[0] // size[0]
    return out


def event_frames(
    events: Recording, *, steps: int, size: Size, split_by: SplitBy, window: int = 0
) -> npt.NDArray[np.int32]:
    """Count the events of every frame: [T, 2, H, W]; channel 0 is OFF, channel 1 is ON.

    Args:
        split_by: as in `frame_edges`, or "window": absolute edges every `window` microseconds.
    """
    if split_by == "window":
        return bin_events(events, steps=steps, window=window, size=size)
    height, width = size
    frames = np.zeros((steps, 2, height, width), dtype=np.int32)
    for step, part in enumerate(frame_edges(events["t"], steps, split_by)):
        cut = events[part]
        np.add.at(frames[step], (cut["p"].astype(np.int64), cut["y"], cut["x"]), 1)
    return frames


@dataclass(frozen=True, kw_only=True)
class Recordings(Dataset):
    """Event frames of the recordings in a folder: `folder/{train,test}/CLASS/FILE`.

    A file is what its content says (see `formats`); an npz of integrated frames (SpikingJelly's
    `frames_number_*`) is read too. Classes are the names of the folders in order of the alphabet. A
    `validation` part is used where there is one, else one in ten training recordings is held out.

    Args:
        folder: the folder; relative to the working directory, or to --data where that is given.
        steps: frames T of a recording.
        side: height and width of the frames; 0 for the sensor's.
        sensor: height and width of the sensor; (0, 0) for what the files say.
        split_by: "number" of events or "time" (as SpikingJelly cuts), "n_event_bins" or "n_time_bins" (as
            tonic), or fixed "window"s.
        window: microseconds of a frame, for "window".
        time_unit: unit of times where a format does not fix it.
        counts: the most events of a cell, for networks that see event counts; 0 for binary frames.
    """

    folder: str = ""
    steps: int = 10
    side: int = 0
    sensor: tuple[int, int] = (0, 0)
    split_by: SplitBy = "number"
    window: int = 0
    time_unit: TimeUnit = "auto"
    counts: int = 0

    name: ClassVar[str] = "recordings"
    domain: ClassVar[Domain] = Domain.SPIKES
    source: ClassVar[str] = "The user's own recordings."

    def __post_init__(self) -> None:
        if self.steps < 1 or self.side < 0 or (self.split_by == "window") != (self.window > 0):
            raise ConfigError(
                f"data set '{self.name}': steps must be at least 1, side 0 (as recorded) or more, and window "
                f"above 0 exactly with split_by=window; got {self.steps}, {self.side}, {self.split_by} and "
                f"{self.window}."
            )
        if self.counts < 0:
            raise ConfigError(
                f"data set '{self.name}': counts must be 0 (binary) or more, got {self.counts}."
            )
        domain, bounds = domain_of(self.counts)
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "bounds", bounds)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(sorted({path.name for path in _folders(self._part(None, "train"))}))

    @property
    def classes(self) -> int:  # type: ignore[override]
        """The number of classes of the folder."""
        return len(self.labels) if self.folder else 0

    @cached_property
    def pixels(self) -> Size:
        """The sensor's (height, width)."""
        if all(self.sensor):
            return self.sensor
        first = self._listing(None, "train")[0][0]
        return _read(first, None, self.time_unit)[1]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of one input (T, 2, H, W)."""
        if not self.folder:
            return ()
        return (self.steps, 2, *((self.side, self.side) if self.side else self.pixels))

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        listing = self._listing(root, split)
        x = np.zeros((len(listing), *self.shape), dtype=np.float32)
        for row, (path, _, _) in enumerate(listing):
            x[row] = self._frames(path)
        y = torch.tensor([label for _, label, _ in listing], dtype=torch.int64)
        return Split(torch.from_numpy(x), y, torch.tensor([number for _, _, number in listing]))

    def _frames(self, path: Path) -> npt.NDArray[np.float32]:
        side: Size = (self.shape[2], self.shape[3])
        events, _ = _read(path, self.pixels, self.time_unit)
        if events.ndim == 4:
            if events.shape != self.shape:
                raise ArtefactError(
                    f"{path}: holds frames {list(events.shape)}, expected {list(self.shape)}. Set steps and "
                    "side to those of the files."
                )
            return as_input(events, self.counts, where=path)
        counts = event_frames(
            resized(events, self.pixels, side),
            steps=self.steps,
            size=side,
            split_by=self.split_by,
            window=self.window,
        )
        if not counts.any():
            raise ArtefactError(
                f"{path}: no event in the first {self.steps} windows of {self.window} us. Are its times in "
                "other units (time_unit), or its events later?"
            )
        return as_input(counts, self.counts, where=path)

    def _listing(self, root: Path | None, split: SplitName) -> list[tuple[Path, int, int]]:
        """List path, label and id of a split's recordings, ordered so that any prefix is a fair sample."""
        own = split != "validation" or self._part(root, split).is_dir()
        part = split if own else "train"
        folder = self._part(root, part)
        found = []
        for label, name in enumerate(self.labels):
            files = sorted(p for p in (folder / name).glob("*") if p.is_file() and not p.name.startswith("."))
            found += [(path, label) for path in files]
        if not found:
            raise ArtefactError(
                f"data set '{self.name}': no recordings under {folder}. Expected {folder}/CLASS/FILE."
            )
        base = {"train": 0, "test": _TEST_IDS, "validation": 2 * _TEST_IDS}[part]
        kept_back = part == "train" and not self._part(root, "validation").is_dir()
        held_out = (
            max(self.classes, len(found) // _VALIDATION) if kept_back else 0
        )  # of every class at least one
        parts = stratified(
            np.array([label for _, label in found]),
            {"validation": held_out, "train": -1},
            salt="recordings/1",
        )
        chosen = parts["validation" if not own else "train"]
        return [(*found[i], base + int(i)) for i in chosen]

    def _part(self, root: Path | None, part: str) -> Path:
        if not self.folder:
            raise ConfigError(
                f"data set '{self.name}' needs its folder: recordings(folder=DIR, steps=10), with "
                "DIR/train/CLASS/FILE and DIR/test/CLASS/FILE."
            )
        return (root or Path()) / self.folder / part


def _folders(part: Path) -> list[Path]:
    found = [p for p in part.glob("*") if p.is_dir() and not p.name.startswith(".")] if part.is_dir() else []
    if not found:
        raise ArtefactError(f"{part}: holds no folder of a class. Expected {part}/CLASS/FILE.")
    return found


def _read(path: Path, size: Size | None, unit: TimeUnit) -> tuple[npt.NDArray[Any], Size]:
    """Read a file: a recording, or frames [T, 2, H, W] in an npz of `frames` alone or in tonic's cache."""
    kind = identify(path)
    frames = _cached_frames(path) if kind == "hdf5" else None
    if kind == "npz" and _members(path) == {"frames"}:
        (frames,) = load_numpy(path, "frames")
    if frames is not None:
        if frames.ndim != 4 or frames.shape[1] != 2 or frames.dtype.kind not in "iufb":
            raise ArtefactError(
                f"{path}: expected frames [T, 2, H, W], got {list(frames.shape)} {frames.dtype}."
            )
        return frames, (frames.shape[2], frames.shape[3])
    return read_events(path, size=size, unit=unit)


def _cached_frames(path: Path) -> npt.NDArray[Any] | None:
    """Return the frames that tonic's DiskCachedDataset keeps as data/0; None where it keeps no frames."""
    try:
        import h5py

        with h5py.File(path, "r") as file:
            held = file.get("data/0")
            plain = isinstance(held, h5py.Dataset) and held.ndim == 4 and held.dtype.kind in "iufb"
            return np.asarray(held) if plain else None
    except (ImportError, OSError, KeyError, RuntimeError, ValueError):
        return None  # what is wrong with it is told by the reader of recordings


def _members(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {re.sub(r"\.npy$", "", name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return set()
