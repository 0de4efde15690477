"""tonic's data sets as ours: any of its classes of recordings with a label, read from its own folders."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import stratified
from robustspike.bench.data.events.event_files import from_tonic
from robustspike.bench.data.events.event_files import guarded
from robustspike.bench.data.events.event_files import one_line
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.events import as_input
from robustspike.bench.data.events.events import domain_of
from robustspike.bench.data.events.events import recording
from robustspike.bench.data.events.recordings import SplitBy
from robustspike.bench.data.events.recordings import event_frames
from robustspike.bench.data.events.recordings import resized
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError

_SIZES = {"NCALTECH101": (240, 180, 2), "SMNIST": (100, 1, 1)}
"""Sensors (width, height, polarities) that tonic's classes leave open or, SMNIST, name one column short."""

_CLASSES = {"NCALTECH101": 101, "SHD": 20, "SSC": 35}
"""Numbers of classes that tonic's classes tell only from their files."""

_FROM_START = ("NMNIST", "NCALTECH101", "DVSGesture", "POKERDVS", "SMNIST", "SHD", "SSC")
"""Sets whose times count from the start of a sample; those of all others here count from its first event."""

_TEST_IDS = 1_000_000
_TENTH = 10
"""One in so many training samples is held out for validation; and tests, where a set has no split."""

_LONGEST = 120_000_000
"""Microseconds; a sample of these sets lasts seconds, so more means times of another unit."""


@dataclass(frozen=True, kw_only=True)
class Tonic(Dataset):
    """Event frames of one of tonic's data sets: `tonic(DVSGesture, steps=10)`.

    Read as tonic reads it, from the folder that was its `save_to`; nothing is downloaded. The splits are
    those of tonic's `train` or `split` argument where its class has one; else the last tenth of each class,
    in the order of the numbers in the names, is the test part. One in ten training samples, by the hash of
    its place, is held out for validation unless the set brings a validation part (SSC).

    Args:
        kind: name of tonic's class: NMNIST, DVSGesture, CIFAR10DVS, NCALTECH101, ASLDVS, POKERDVS, SMNIST,
            SHD, SSC, or any other of labelled recordings.
        folder: tonic's `save_to`; by default the folder given with --data.
        steps: frames T of a recording.
        side: height and width of the frames (of data without rows: width); 0 for the sensor's.
        split_by, window, counts: see `Recordings`.

    Shape: x [N, T, P, H, W] float32 of 0 and 1, or of event counts; with two polarities channel 0 is OFF,
        channel 1 is ON. Data without rows (SHD, SSC, SMNIST) have P = H = 1.
    """

    kind: str = ""
    folder: str = ""
    steps: int = 10
    side: int = 0
    split_by: SplitBy = "number"
    window: int = 0
    counts: int = 0

    name: ClassVar[str] = "tonic"
    source: ClassVar[str] = (
        "A published data set through tonic (Lenz et al. 2021, doi:10.5281/zenodo.5079802)."
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or self.side < 0 or (self.split_by == "window") != (self.window > 0):
            raise ConfigError(
                "data set 'tonic': steps must be at least 1, side 0 (as recorded) or more, and window above "
                f"0 exactly with split_by=window; got {self.steps}, {self.side}, {self.split_by} and "
                f"{self.window}."
            )
        if self.counts < 0:
            raise ConfigError(f"data set 'tonic': counts must be 0 (binary) or more, got {self.counts}.")

    @property
    def domain(self) -> Domain:  # type: ignore[override]
        """Event counts or binary frames."""
        return domain_of(self.counts)[0]

    @property
    def bounds(self) -> tuple[float, float]:  # type: ignore[override]
        """The least and the most events of a cell."""
        return domain_of(self.counts)[1]

    @property
    def needs_root(self) -> bool:  # type: ignore[override]
        """Whether --data must name tonic's folder."""
        return bool(self.kind) and not self.folder

    @property
    def classes(self) -> int:  # type: ignore[override]
        """The number of classes."""
        if not self.kind:
            return 0
        found = _CLASSES.get(self.kind) or len(getattr(self._class(), "classes", ()))
        if not found:
            raise ConfigError(f"data set 'tonic': {self.kind} has no classes; only labelled recordings fit.")
        return found

    @property
    def pixels(self) -> tuple[int, int, int]:
        """The sensor's polarities, height and width."""
        size = _SIZES.get(self.kind) or getattr(self._class(), "sensor_size", None)
        if size is None:
            raise ConfigError(f"data set 'tonic': {self.kind} names no sensor, so it makes no frames.")
        width, height, polarities = size
        return polarities, height, width

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of one input (T, P, H, W)."""
        if not self.kind:
            return ()
        polarities, height, width = self.pixels
        side = (height, width) if not self.side else (self.side if height > 1 else 1, self.side)
        return (self.steps, polarities, *side)

    def present(self, root: Path) -> bool:
        try:
            return bool(self._listing("test", root))
        except ArtefactError:
            return False

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None, root=root)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        return len(self._listing(split, root))

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        listing = self._listing(split, root)[:n]
        x = np.zeros((len(listing), *self.shape), dtype=np.float32)
        for row, (part, index, _, _) in enumerate(listing):
            x[row] = self._frames(part, index)
        return Split(
            torch.from_numpy(x),
            torch.tensor([label for _, _, label, _ in listing], dtype=torch.int64),
            torch.tensor([number for _, _, _, number in listing]),
        )

    def _frames(self, part: Any, index: int) -> npt.NDArray[np.float32]:
        where = _place(part, index, self.kind)
        polarities, height, width = self.pixels
        events = events_of(guarded(lambda: part[index][0], where=where), self.pixels, where=where)
        if self.kind not in _FROM_START:
            events["t"] -= events["t"][0]
        lasts = int(events["t"][-1] - events["t"][0])
        if lasts > _LONGEST:
            raise ArtefactError(
                f"{where}: lasts {lasts / 1e6:g} s, expected seconds. Its times are not in the unit that "
                "tonic takes them for (DVSGesture: milliseconds)."
            )
        side = self.shape[2:]
        counts = event_frames(
            resized(events, (height, width), (side[0], side[1])),
            steps=self.steps,
            size=(side[0], side[1]),
            split_by=self.split_by,
            window=self.window,
        )
        if not counts.any():
            raise ArtefactError(
                f"{where}: no event in the {self.steps} frames of split_by={self.split_by}. Is window ("
                f"{self.window} us) too short, or are its times in another unit?"
            )
        return as_input(counts[:, :polarities], self.counts, where=where)

    def _class(self) -> Any:
        """Return tonic's class. Raises: ConfigError: it has none of this name, or none is named."""
        if not self.kind:
            raise ConfigError("data set 'tonic' needs a class of tonic's: tonic(DVSGesture, steps=10).")
        module = from_tonic("tonic.datasets", where=f"data set 'tonic({self.kind})'")
        found = getattr(module, self.kind, None)
        if not inspect.isclass(found):
            known = [name for name in module.__all__ if inspect.isclass(getattr(module, name))]
            version = getattr(from_tonic("tonic", where="tonic"), "__version__", "")
            raise ConfigError(
                f"data set 'tonic': tonic {version} has no data set '{self.kind}'."
                f"{did_you_mean(self.kind, known)} It has: {', '.join(sorted(known))}."
            )
        return found

    def _part(self, root: Path | None, **which: Any) -> Any:
        """Open a part of tonic's data set as its files are, without letting it download.

        Raises: ArtefactError: nothing of it is there, with the line that downloads it.
        """
        kind = self._class()
        home = (root or Path()) / self.folder
        if not self.folder and root is None:
            raise ArtefactError(
                f"data set 'tonic({self.kind})' is read from tonic's folder: pass --data DIR."
            )
        if home.name == self.kind and not (home / self.kind).is_dir():
            home = home.parent
        absent = (
            f"data set 'tonic({self.kind})': {home} holds no file of it that tonic can read. Point --data at "
            f"the folder that was tonic's save_to, or let tonic fetch it: {_download_line(kind, home)}"
        )
        try:
            made = _offline(kind)(str(home), **which)
            found = len(made)
        except Exception as error:  # what is missing or damaged shows in as many ways as tonic has classes
            reason = "" if isinstance(error, _Absent | FileNotFoundError) else f" ({one_line(error)})"
            raise ArtefactError(absent + reason) from error
        if not found:
            raise ArtefactError(absent)
        return made

    def _listing(self, split: SplitName, root: Path | None) -> list[tuple[Any, int, int, int]]:
        """List part, index in it, label and id of a split's samples, any prefix a fair sample."""
        takes, classes = inspect.signature(self._class()).parameters, self.classes
        own_validation = "split" in takes
        if own_validation:
            which: dict[str, Any] = {"split": {"validation": "valid"}.get(split, split)}
        else:
            which = {"train": split != "test"} if "train" in takes else {}
        part = self._part(root, **which)
        order = sorted(range(len(part)), key=lambda index: _natural(part, index))
        labels = _labels(part, self.kind, classes)[order]
        chosen = np.arange(len(order))
        if not which:
            chosen = chosen[_last_of_each(labels) == (split == "test")]
        if not own_validation:
            least = len(set(labels[chosen].tolist()))
            held_out = 0 if split == "test" else max(least, len(chosen) // _TENTH)
            sizes = {"validation": held_out, "train": -1}
            parts = stratified(labels[chosen], sizes, salt=f"tonic/{self.kind}/1")
            chosen = chosen[parts["train" if split == "test" else split]]
        else:
            chosen = chosen[stratified(labels, {"all": -1}, salt=f"tonic/{self.kind}/1")["all"]]
        base = {"train": 0, "test": 1, "validation": 2 if own_validation else 0}[split] * _TEST_IDS
        return [(part, order[place], int(labels[place]), base + int(place)) for place in chosen]


def events_of(table: Any, pixels: tuple[int, int, int], *, where: str) -> Recording:
    """Turn a structured array of tonic's, with or without rows, into a recording.

    Args:
        pixels: the sensor's polarities, height and width; with one polarity, what p says is left aside.
    Raises: ArtefactError: no events, fields missing, or events outside the sensor.
    """
    names = getattr(getattr(table, "dtype", None), "names", None) or ()
    if not {"x", "t", "p"} <= set(names):
        raise ArtefactError(
            f"{where}: tonic gives {type(table).__name__} with {', '.join(names) or 'no fields'}, expected "
            "events with x, t and p. This data set is no set of labelled recordings."
        )
    if not len(table):
        raise ArtefactError(f"{where}: holds no events.")
    polarities, height, width = pixels
    zeros = np.zeros(len(table), dtype=np.int64)
    return recording(
        table["x"],
        table["y"] if "y" in names else zeros,
        table["t"],
        table["p"] if polarities > 1 else zeros,
        size=(height, width),
        where=where,
    )


class _Absent(Exception):
    """tonic wanted to download."""


def _offline(kind: Any) -> Any:
    """Return a class of tonic's that takes the files that are there, however many, and fetches none."""

    def refuse(*_: Any) -> None:
        raise _Absent

    return type(
        kind.__name__,  # tonic's folder has the name of the class
        (kind,),
        {"_check_exists": lambda _: True, "download": refuse, "_copy_and_extract_local_data": refuse},
    )


def _download_line(kind: Any, home: Path) -> str:
    takes = inspect.signature(kind).parameters
    calls = [""]
    if "split" in takes:
        calls = [f", split='{name}'" for name in ("train", "valid", "test")]
    elif "train" in takes:
        calls = [", train=True", ", train=False"]
    made = "; ".join(f"D('{home}'{call})" for call in calls)
    return f'python -c "from tonic.datasets import {kind.__name__} as D; {made}"'


def _place(part: Any, index: int, kind: str) -> str:
    files = getattr(part, "data", [])
    if index < len(files) and isinstance(files[index], str | Path):
        return str(files[index])
    return f"tonic's {kind} in {part.location_on_system}, sample {index}"


def _natural(part: Any, index: int) -> tuple[Any, ...]:
    """Return what sorts samples by their paths, numbers in them as numbers; others by their index."""
    files = getattr(part, "data", [])
    if index < len(files) and isinstance(files[index], str | Path):
        path = Path(files[index]).relative_to(part.location_on_system).as_posix()
        return tuple(
            (0, int(word), "") if word.isdigit() else (1, 0, word) for word in re.findall(r"\d+|\D+", path)
        )
    return ((0, index, ""),)


def _labels(part: Any, kind: str, classes: int) -> npt.NDArray[np.int64]:
    """Return the class of every sample; names count by the alphabet."""
    found: Sequence[Any] | None = None
    for name in ("targets", "label_data"):
        held = getattr(part, name, None)
        if held is not None and len(held) == len(part):
            found = held
    if found is None:
        found = [guarded(lambda i=i: part[i][1], where=_place(part, i, kind)) for i in range(len(part))]  # type: ignore[misc]
    if isinstance(found[0], str):
        names = sorted(set(found))
        found = [names.index(label) for label in found]
    labels = np.asarray(found)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < classes:
        raise ArtefactError(
            f"data set 'tonic({kind})': its targets are no classes below {classes}; only labelled recordings "
            "fit. Is a file of labels damaged?"
        )
    return labels.astype(np.int64)


def _last_of_each(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which samples are in the last tenth, at least one, of their class."""
    last = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of = np.flatnonzero(labels == label)
        last[of[len(of) - max(1, len(of) // _TENTH) :]] = True
    return last
