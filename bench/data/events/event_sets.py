"""Published event data sets, read from their own files: N-MNIST, DVS128 Gesture and CIFAR10-DVS."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import Any
from typing import ClassVar

import numpy as np
import torch

from robustspike.bench.contract.specs import Domain
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import stratified
from robustspike.bench.data.download import Published
from robustspike.bench.data.events.event_files import read_aedat31
from robustspike.bench.data.events.event_files import read_aer_bin
from robustspike.bench.data.events.event_files import read_bytes
from robustspike.bench.data.events.event_files import read_gesture_labels
from robustspike.bench.data.events.event_files import read_npy_events
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.events import as_input
from robustspike.bench.data.events.events import domain_of
from robustspike.bench.data.events.formats import read_events
from robustspike.bench.data.events.sensor import Sensor
from robustspike.bench.data.events.sensor import with_noise
from robustspike.bench.data.events.simulated import check_options
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.numbers.rng import RowStreams

_VALIDATION = 10
"""One in so many training samples, of every class at least one, is held out for validation."""

_ADDED = ("background", "hot_pixels", "hot_rate_hz", "leak_rate_hz")
"""Noise that can be added to what a real sensor recorded; its thresholds cannot be changed any more."""

_LONGEST_GESTURE = 120_000_000
"""Microseconds beyond which the times of a cut gesture (7 s on average) are taken for another unit."""


@dataclass(frozen=True)
class Sample:
    """Where one recording is: its file, label, global id, and the part of the file (microseconds)."""

    path: Path
    label: int
    id: int
    part: tuple[int, int] | None = None


class EventSet(Dataset):
    """Base of event data sets: a listing of files, a reader, and fixed time windows.

    Subclasses are frozen dataclasses with `steps` and `side`, the height and width of the frames: the
    sensor's, or a divisor of it, and then events of side x side blocks fall into one pixel; and `counts`, the
    most events of a cell for networks that see event counts, 0 for binary frames.

    Class attributes:
        sensor: height and width of the sensor.
        duration: microseconds that are cut into windows; later events are dropped.
        folder: name of the data set's folder, looked for inside the given one.
    """

    steps: int
    side: int
    counts: int
    domain: ClassVar[Domain] = Domain.SPIKES
    needs_root: ClassVar[bool] = True
    sensor: ClassVar[int] = 128
    duration: ClassVar[int] = 0
    folder: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.duration or self.side < 4 or self.sensor % self.side:
            raise ConfigError(
                f"{self.name}: steps must be 1..{self.duration} and side a divisor of {self.sensor} from 4, "
                f"got {self.steps} and {self.side}."
            )
        if self.counts < 0:
            raise ConfigError(f"{self.name}: counts must be 0 (binary frames) or more, got {self.counts}.")
        domain, bounds = domain_of(self.counts)
        object.__setattr__(self, "shape", (self.steps, 2, self.side, self.side))
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "bounds", bounds)

    def samples(self, root: Path, *, test: bool) -> list[Sample]:
        """List the samples of the published training or test part, in a fixed order."""
        raise TypeError(f"{type(self).__name__} does not define samples().")

    def read(self, sample: Sample) -> Recording:
        """Read one recording; its times start near 0."""
        raise TypeError(f"{type(self).__name__} does not define read().")

    def lists(self, recordings: Sequence[Recording], donors: Mapping[int, Recording]) -> EventLists:
        """Say how recordings of this data set become frames."""
        return EventLists(recordings, self.duration // self.steps, donors, self.sensor // self.side)

    def frames(self, events: Recording) -> np.ndarray:
        """Bin a recording to frames [T, 2, side, side] with fixed edges."""
        frames = self.lists([], {}).counts(events, steps=self.steps, size=(self.side, self.side))
        return as_input(frames, self.counts, where=f"data set '{self.name}'")

    def events(self, split: SplitName, rows: range, *, root: Path | None = None) -> EventLists:
        chosen = self._chosen(split, root)[rows.start : rows.stop]
        first: dict[int, Sample] = {}
        for sample in self._chosen("train", root):
            first.setdefault(sample.label, sample)
        read, donors = (dict(self._read_all(part)) for part in (chosen, list(first.values())))
        recordings = [read[row] for row in range(len(chosen))]
        lists = self.lists(recordings, {label: donors[row] for row, label in enumerate(first)})

        def again(changes: Mapping[str, Any]) -> Sequence[Recording]:
            check_options(self.name, changes, _ADDED)
            streams = RowStreams.derive([sample.id for sample in chosen], self.name, "noise")
            size = (self.sensor, self.sensor)
            noise = Sensor(**changes)
            return with_noise(recordings, noise, size=size, duration=self.duration, streams=streams)

        return replace(lists, again=again)

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None, root=root)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        return len(self._chosen(split, root))

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        chosen = self._chosen(split, root)[:n]
        x = np.zeros((len(chosen), *self.shape), dtype=np.float32)
        for row, events in self._read_all(chosen):
            x[row] = self.frames(events)
            if not x[row].any():
                raise ArtefactError(self._blank(chosen[row].path, events))
        y = torch.tensor([sample.label for sample in chosen], dtype=torch.int64)
        return Split(torch.from_numpy(x), y, torch.tensor([sample.id for sample in chosen]))

    def _blank(self, path: Path, events: Recording) -> str:
        """Say what is wrong with a recording whose frames are all blank."""
        times = (
            f", its times run from {events['t'][0]} to {events['t'][-1]} microseconds" if len(events) else ""
        )
        return (
            f"{path}: no event in the first {self.duration / 1e6:g} s of the recording ({len(events)} events "
            f"in all{times}). Are its times in another unit, or is the file damaged? Fetch it again."
        )

    def _chosen(self, split: SplitName, root: Path | None) -> list[Sample]:
        """List a split's samples in its order."""
        if root is None:
            raise ArtefactError(f"data set '{self.name}' is read from its published files: pass --data DIR.")
        inner = root / self.folder
        listing = self.samples(inner if inner.is_dir() else root, test=split == "test")
        if not listing:
            raise ArtefactError(
                f"data set '{self.name}': no recordings under {root}. Point --data at its folder."
            )
        labels = np.array([sample.label for sample in listing])
        held_out = 0 if split == "test" else max(len(set(labels)), len(listing) // _VALIDATION)
        sizes = {"validation": held_out, "train": -1}
        part = "train" if split == "test" else split
        return [listing[i] for i in stratified(labels, sizes, salt=f"{self.name}/1")[part]]

    def _read_all(self, chosen: list[Sample]) -> Iterable[tuple[int, Recording]]:
        """Read the chosen samples, each file once."""
        kept: tuple[Path, Recording] | None = None
        for row in sorted(range(len(chosen)), key=lambda i: str(chosen[i].path)):
            sample = chosen[row]
            if sample.part is None:
                yield row, self.read(sample)
                continue
            if kept is None or kept[0] != sample.path:
                kept = (sample.path, self.read(sample))
            start, end = sample.part
            times = kept[1]["t"]
            inside = kept[1][(times >= start) & (times < end)].copy()
            inside["t"] -= start
            yield row, inside


@dataclass(frozen=True, kw_only=True)
class NMnist(EventSet):
    """N-MNIST: `Train/<digit>/<number>.bin` and `Test/...`, any subset of them; 315 ms, three saccades."""

    steps: int = 8
    side: int = 34
    counts: int = 0

    name: ClassVar[str] = "nmnist"
    shape: ClassVar[tuple[int, ...]] = (8, 2, 34, 34)
    classes: ClassVar[int] = 10
    sensor: ClassVar[int] = 34
    duration: ClassVar[int] = 315_000
    folder: ClassVar[str] = "NMNIST"
    downloads: ClassVar[tuple[Published, ...]] = (
        Published(
            "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"
            "39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
            "md5:20959b8e626244a1b502305a9e6e2031",
            "Train.zip",
            folder="NMNIST",
            unpacks=("Train/*/*.bin",),
        ),
        Published(
            "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/"
            "05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
            "md5:69ca8762b2fe404d9b9bad1103e97832",
            "Test.zip",
            folder="NMNIST",
            unpacks=("Test/*/*.bin",),
        ),
    )
    source: ClassVar[str] = "Orchard et al. 2015, Frontiers in Neuroscience 9:437. Licence: CC BY-SA 4.0."

    def samples(self, root: Path, *, test: bool) -> list[Sample]:
        found = []
        for digit in range(10):
            for path in sorted((root / ("Test" if test else "Train") / str(digit)).glob("*.bin")):
                number = _number(path, path.stem)
                found.append(Sample(path, digit, number - 1 + (60_000 if test else 0)))
        return sorted(found, key=lambda sample: sample.id)

    def read(self, sample: Sample) -> Recording:
        return read_aer_bin(sample.path, size=(34, 34))


@dataclass(frozen=True, kw_only=True)
class DvsGesture(EventSet):
    """DVS128 Gesture, first 1.5 s of each gesture, its own split by user.

    Read from the published `*.aedat` with `*_labels.csv`, `trials_to_train.txt` and `trials_to_test.txt`,
    or from tonic's cut, `ibmGestureTrain/<user>_<light>/<class>.npy` and `ibmGestureTest/...`.
    """

    steps: int = 8
    side: int = 32
    counts: int = 0

    name: ClassVar[str] = "dvs_gesture"
    shape: ClassVar[tuple[int, ...]] = (8, 2, 32, 32)
    classes: ClassVar[int] = 11
    duration: ClassVar[int] = 1_500_000
    folder: ClassVar[str] = "DvsGesture"
    source: ClassVar[str] = (
        "Amir et al. 2017, CVPR, A low power, fully event-based gesture recognition system."
    )

    def samples(self, root: Path, *, test: bool) -> list[Sample]:
        cut = root / ("ibmGestureTest" if test else "ibmGestureTrain")
        if cut.is_dir():
            paths = sorted(cut.glob("*/*.npy"))
            return [
                Sample(path, _number(path, path.stem, limit=11), place + (100_000 if test else 0))
                for place, path in enumerate(paths)
            ]
        trials = root / ("trials_to_test.txt" if test else "trials_to_train.txt")
        found: list[Sample] = []
        for line in read_bytes(trials).decode("utf-8-sig", errors="replace").split():
            if Path(line).name != line or not line.endswith(".aedat"):
                raise ArtefactError(f"{trials}: expected names of .aedat files, got '{line[:60]}'.")
            labels = read_gesture_labels(root / f"{line.removesuffix('.aedat')}_labels.csv")
            for label, start, end in labels:
                place = len(found) + (100_000 if test else 0)
                found.append(Sample(root / line, label, place, (start, end)))
        return found

    def read(self, sample: Sample) -> Recording:
        if sample.part is None:
            events = read_npy_events(sample.path, size=(128, 128))
            if events["t"][-1] - events["t"][0] > _LONGEST_GESTURE:
                raise ArtefactError(
                    f"{sample.path}: lasts {(events['t'][-1] - events['t'][0]) / 1e6:g} s, expected times in "
                    "milliseconds and a gesture of seconds. Are they microseconds? Divide them by 1000."
                )
            return events
        return read_aedat31(sample.path)


@dataclass(frozen=True, kw_only=True)
class Cifar10Dvs(EventSet):
    """CIFAR10-DVS, first 1.2 s: `<class>/cifar10_<class>_<number>.aedat` (or .aedat4, through tonic).

    It has no published split. Here the last tenth of each class by number is the test part.
    """

    steps: int = 8
    side: int = 32
    counts: int = 0

    name: ClassVar[str] = "cifar10_dvs"
    shape: ClassVar[tuple[int, ...]] = (8, 2, 32, 32)
    classes: ClassVar[int] = 10
    duration: ClassVar[int] = 1_200_000
    folder: ClassVar[str] = "CIFAR10DVS"
    source: ClassVar[str] = "Li et al. 2017, Frontiers in Neuroscience 11:309. Licence: CC BY 4.0."
    names: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )

    def samples(self, root: Path, *, test: bool) -> list[Sample]:
        found = []
        for label, name in enumerate(self.names):
            paths = [p for p in (root / name).glob("*") if p.suffix in (".aedat", ".aedat4")]
            numbered = sorted((_number(path, path.stem.rsplit("_", 1)[-1]), path) for path in paths)
            first_test = len(numbered) - max(1, len(numbered) // 10)
            part = numbered[first_test:] if test else numbered[:first_test]
            found += [Sample(path, label, label * 1000 + number) for number, path in part]
        return found

    def read(self, sample: Sample) -> Recording:
        return read_events(sample.path, size=(128, 128))[0]


def _number(path: Path, text: str, *, limit: int = 1_000_000) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < limit):
        raise ArtefactError(
            f"{path}: expected a number below {limit} in the name, got '{text[:40]}'. Remove it."
        )
    return int(text)
