"""CIFAR-10 seen by a simulated event camera: binary frames, made on this machine at first use."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from robustspike.bench.contract.specs import Domain
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.events.digit_events import pack
from robustspike.bench.data.events.digit_events import unpack
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.sensor import Sensor
from robustspike.bench.data.events.sensor import saccades
from robustspike.bench.data.events.sensor import shifted
from robustspike.bench.data.events.simulated import OPTIONS
from robustspike.bench.data.events.simulated import Simulated
from robustspike.bench.data.events.simulated import check_options
from robustspike.bench.data.images.image_sets import Cifar10
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import cached
from robustspike.bench.numbers.rng import RowStreams

_SIZE, _DURATION, _SUBSTEPS = 32, 240_000, 30
_AMPLITUDE, _DARK = 3.0, 0.2
_CHUNK = 500
_VERSION = "1"
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, kw_only=True)
class Cifar10Events(Simulated):
    """Simulated: the brightness of CIFAR-10's images before a 32x32 sensor that moves along three saccades.

    Not CIFAR10-DVS, which was recorded by a real sensor (`cifar10_dvs`). The splits hold the same images
    under the same ids as those of `cifar10`. A split's events are simulated once (about 30 s for the test
    split), kept in the user's cache folder, and cut into T equal windows of 240 ms in all at every load.

    Args:
        steps: windows T.
        threshold, mismatch, background, ...: see `Sensor`; the defaults are noise-free.

    Shape: x [N, T, 2, 32, 32] float32 of 0 and 1; channel 0 is OFF, channel 1 is ON.
    """

    steps: int = 8
    threshold: float = 0.3

    name: ClassVar[str] = "cifar10_events"
    shape: ClassVar[tuple[int, ...]] = (8, 2, _SIZE, _SIZE)
    classes: ClassVar[int] = 10
    domain: ClassVar[Domain] = Domain.SPIKES
    needs_root: ClassVar[bool] = True
    downloads = Cifar10.downloads
    source: ClassVar[str] = f"Simulated from: {Cifar10.source}"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _DURATION or _DURATION % self.steps:
            raise ConfigError(f"cifar10_events: steps must divide {_DURATION}, got {self.steps}.")
        self.sensor()
        object.__setattr__(self, "shape", (self.steps, 2, _SIZE, _SIZE))

    def recordings(self, split: SplitName, root: Path | None = None) -> list[Recording]:
        still = Cifar10().load(split, root=root)
        return _recordings(self.sensor(), split, root, still.digest)

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        still = Cifar10().load(split, root=root)
        lists = EventLists(self.recordings(split, root), _DURATION // self.steps)
        frames = np.zeros((len(still), *self.shape), dtype=np.float32)
        for row, events in enumerate(lists.recordings):
            frames[row] = lists.frames(events, steps=self.steps, size=(_SIZE, _SIZE))
        return Split(torch.from_numpy(frames), still.y, still.ids)

    def events(self, split: SplitName, rows: range, *, root: Path | None = None) -> EventLists:
        chosen = self.recordings(split, root)[rows.start : rows.stop]
        # From validation images: a tenth of the time that the training split takes.
        held = zip(
            Cifar10().load("validation", root=root).y.tolist(),
            self.recordings("validation", root),
            strict=True,
        )
        donors = dict(reversed(list(held)))  # the first of each class
        again = self.seen_again(split, rows, root)
        return EventLists(chosen, _DURATION // self.steps, donors, again=again)

    def seen_again(
        self, split: SplitName, rows: range, root: Path | None
    ) -> Callable[[Mapping[str, Any]], Sequence[Recording]]:
        """Return what records the scenes of these rows alone with some options of the sensor changed."""

        def record(changes: Mapping[str, Any]) -> Sequence[Recording]:
            check_options(self.name, changes, OPTIONS)
            still = Cifar10().load(split, root=root)[rows.start : rows.stop]
            return _simulate(dataclasses.replace(self, **changes).sensor(), still)

        return record


def scenes(images: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.float64]]:
    """Show brightness images [N, 32, 32] to the moving camera: brightness at each of 31 instants.

    The border repeats outwards, so that the edge of an image is no edge to the sensor.
    """
    margin = int(_AMPLITUDE) + 1
    wide = np.pad(images, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    for offset in saccades(_AMPLITUDE, _SUBSTEPS):
        yield shifted(wide, offset)[:, margin:-margin, margin:-margin]


@functools.lru_cache(maxsize=2)
def _recordings(sensor: Sensor, split: SplitName, root: Path | None, digest: str) -> list[Recording]:
    """Simulate the images of a split, or read the events from the cache."""
    settings = (_VERSION, _SIZE, _DURATION, _SUBSTEPS, _AMPLITUDE, _DARK, dataclasses.astuple(sensor))
    key = hashlib.sha256(repr((settings, digest)).encode()).hexdigest()[:16]
    still = Cifar10().load(split, root=root)
    content = cached(f"cifar10_events-{split}-{key}", lambda: pack(_simulate(sensor, still)))
    return unpack(content, len(still))


def _simulate(sensor: Sensor, still: Split) -> list[Recording]:
    found: list[Recording] = []
    for start in range(0, len(still), _CHUNK):
        part = still[start : start + _CHUNK]
        brightness = np.tensordot(part.x.double().numpy(), _LUMA, axes=(1, 0))
        streams = RowStreams.derive(part.ids.tolist(), "cifar10_events")
        seen = scenes(brightness)
        found += sensor.record(seen, steps=_SUBSTEPS, duration=_DURATION, streams=streams, dark=_DARK)
    return found
