"""Digits seen by a simulated event camera: binary frames, made on this machine at first use."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from robustspike.bench.contract.specs import Domain
from robustspike.bench.data.base import SPLITS
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.events.events import EVENT
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.sensor import Sensor
from robustspike.bench.data.events.sensor import resized
from robustspike.bench.data.events.sensor import saccades
from robustspike.bench.data.events.sensor import shifted
from robustspike.bench.data.events.simulated import Simulated
from robustspike.bench.data.images.digits import Digits
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import cached
from robustspike.bench.numbers.rng import RowStreams

_SIZE, _DIGIT, _DURATION, _SUBSTEPS = 16, 12, 300_000, 60
_AMPLITUDE, DARK = 2.5, 0.2
_CHUNK = 256
_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class DigitEvents(Simulated):
    """The digits of `digits`, enlarged to 12x12 on a 16x16 sensor that moves along three saccades in 300 ms.

    The splits hold the same digits under the same ids as those of `digits`. Events are simulated once
    (about a second), kept in the user's cache folder, and cut into T equal windows at every load.

    Args:
        steps: windows T.
        threshold, mismatch, background, ...: see `Sensor`; the defaults are noise-free.

    Shape: x [N, T, 2, 16, 16] float32 of 0 and 1; channel 0 is OFF, channel 1 is ON.
    """

    steps: int = 4

    name: ClassVar[str] = "digits_events"
    shape: ClassVar[tuple[int, ...]] = (4, 2, _SIZE, _SIZE)
    classes: ClassVar[int] = 10
    domain: ClassVar[Domain] = Domain.SPIKES
    source: ClassVar[str] = f"Simulated from: {Digits.source}"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= _DURATION or _DURATION % self.steps:
            raise ConfigError(f"digits_events: steps must divide {_DURATION}, got {self.steps}.")
        self.sensor()
        suffix = "" if self.steps == 4 else f"_t{self.steps}"
        object.__setattr__(self, "name", f"digits_events{suffix}")
        object.__setattr__(self, "shape", (self.steps, 2, _SIZE, _SIZE))

    def recordings(self, split: SplitName, root: Path | None = None) -> list[Recording]:
        ids = Digits().load(split).ids.tolist()
        everything = _recordings(self.sensor())
        return [everything[i] for i in ids]

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        return Digits().size(split)

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        still = Digits().first(split, n)
        lists = EventLists(self.recordings(split)[:n], _DURATION // self.steps)
        frames = np.zeros((len(still), *self.shape), dtype=np.float32)
        for row, events in enumerate(lists.recordings):
            frames[row] = lists.frames(events, steps=self.steps, size=(_SIZE, _SIZE))
        return Split(torch.from_numpy(frames), still.y, still.ids)

    def events(self, split: SplitName, rows: range, *, root: Path | None = None) -> EventLists:
        chosen = self.recordings(split)[rows.start : rows.stop]
        labels, held = Digits().load("train").y.tolist(), self.recordings("train")
        donors = dict(zip(reversed(labels), reversed(held), strict=True))  # the first one of each class
        again = self.seen_again(split, rows, root)
        return EventLists(chosen, _DURATION // self.steps, donors, again=again)


def scenes(images: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.float64]]:
    """Show digits [N, 8, 8] to the moving camera: brightness [N, 16, 16] at each of 61 instants."""
    margin = (_SIZE - _DIGIT) // 2
    canvas = np.pad(resized(images, _DIGIT), ((0, 0), (margin, margin), (margin, margin)))
    for offset in saccades(_AMPLITUDE, _SUBSTEPS):
        yield shifted(canvas, offset)


@functools.lru_cache(maxsize=8)
def _recordings(sensor: Sensor) -> list[Recording]:
    """Simulate every digit, or read the events from the cache; positions are the digits' global ids."""
    parts = [Digits().load(split) for split in SPLITS]
    ids = torch.cat([part.ids for part in parts])
    order = ids.argsort()
    images = torch.cat([part.x for part in parts])[order].squeeze(1).double().numpy()
    settings = (_VERSION, _SIZE, _DIGIT, _DURATION, _SUBSTEPS, _AMPLITUDE, DARK, dataclasses.astuple(sensor))
    key = hashlib.sha256(repr(settings).encode() + images.tobytes()).hexdigest()[:16]
    content = cached(f"digits_events-{key}", lambda: pack(_simulate(sensor, images)))
    return unpack(content, len(images))


def _simulate(sensor: Sensor, images: npt.NDArray[np.float64]) -> list[Recording]:
    found: list[Recording] = []
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        streams = RowStreams.derive(range(start, start + len(part)), "digits_events")
        seen = scenes(part)
        found += sensor.record(seen, steps=_SUBSTEPS, duration=_DURATION, streams=streams, dark=DARK)
    return found


def pack(recordings: list[Recording]) -> bytes:
    """Write the number of events of each sample, then one 32-bit word per event: t 19, y 6, x 6, p 1 bits."""
    counts = np.array([len(events) for events in recordings], dtype="<u4")
    events = np.concatenate(recordings)
    t, y, x, p = (events[name].astype(np.uint32) for name in "tyxp")
    return counts.tobytes() + (t << 13 | y << 7 | x << 1 | p).astype("<u4").tobytes()


def unpack(content: bytes, samples: int) -> list[Recording]:
    words = np.frombuffer(content, dtype="<u4")
    counts, words = words[:samples], words[samples:]
    events = np.empty(len(words), dtype=EVENT)
    events["t"], events["y"] = words >> 13, words >> 7 & 63
    events["x"], events["p"] = words >> 1 & 63, words & 1
    events.flags.writeable = False
    return np.split(events, np.cumsum(counts)[:-1])


DIGITS_EVENTS_T8 = DigitEvents(steps=8)
DIGITS_EVENTS_T10 = DigitEvents(steps=10)
