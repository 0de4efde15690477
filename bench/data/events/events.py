"""Events: recordings as arrays of (x, y, t, p), and their frames with fixed time edges."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from robustspike.bench.contract.specs import Domain
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError

EVENT = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "i1")])
"""One event: column, row, time in microseconds, polarity (0 off, 1 on). tonic's field names."""

Recording = npt.NDArray[np.void]
"""Events of dtype `EVENT` in order of time: [n]."""

Frames = npt.NDArray[np.int32]
"""Event counts [T, 2, H, W]; channel 0 is OFF, channel 1 is ON."""


def recording(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    t: npt.ArrayLike,
    p: npt.ArrayLike,
    *,
    size: tuple[int, int],
    where: str,
) -> Recording:
    """Make a recording from its columns, sorted by time (events of equal time keep their order).

    Args:
        x, y, t, p: columns of equal length; p is 0 or 1.
        size: the sensor's (height, width).
        where: what is read, for messages.

    Raises: ArtefactError: an event outside the sensor, or a polarity that is not 0 or 1.
    """
    columns = [np.asarray(column).astype(np.int64).ravel() for column in (x, y, t, p)]
    for name, column, limit in zip(
        "xyp", (columns[0], columns[1], columns[3]), (size[1], size[0], 2), strict=True
    ):
        wrong = (column < 0) | (column >= limit)
        if wrong.any():
            at = int(wrong.argmax())
            raise ArtefactError(
                f"{where}: event {at} has {name} = {int(column[at])}, expected 0..{limit - 1}. The file is "
                "damaged, or from another sensor."
            )
    order = np.argsort(columns[2], kind="stable")
    out = np.empty(len(order), dtype=EVENT)
    for name, column in zip("xytp", columns, strict=True):
        out[name] = column[order]
    return out


def bin_events(
    events: Recording, *, steps: int, window: int, size: tuple[int, int], start: int = 0
) -> Frames:
    """Count events in fixed time windows.

    The edges are absolute: adding or removing an event never moves another one to a different bin
    (with edges at the first and last event, as in tonic's `n_time_bins`, it would).

    Args:
        events: a recording.
        steps: number of windows T; events outside all of them are dropped.
        window: length of a window in microseconds; an event on an edge belongs to the later window.
        size: the sensor's (height, width).
        start: time of the first edge in microseconds.

    Shape: returns [T, 2, H, W] int32.
    """
    if steps < 1 or window < 1:
        raise ConfigError(f"bin_events: steps and window must be at least 1, got {steps} and {window}.")
    height, width = size
    index = (events["t"].astype(np.int64) - start) // window
    inside = (index >= 0) & (index < steps)
    kept = events[inside]
    cell = (index[inside] * 2 + kept["p"]) * height + kept["y"]
    counts = np.bincount(cell * width + kept["x"], minlength=steps * 2 * height * width)
    return counts.astype(np.int32).reshape(steps, 2, height, width)


def as_input(frames: npt.NDArray[np.generic], most: int, *, where: object) -> npt.NDArray[np.float32]:
    """Turn event counts into what a network gets: binary frames, or the counts themselves.

    Args:
        frames: counts [T, 2, H, W].
        most: the most events that a cell may hold, the upper bound of the inputs; 0 for binary frames.
        where: what is read, for messages.

    Raises: ArtefactError: a cell holds more.
    """
    if not most:
        return (frames > 0).astype(np.float32)  # type: ignore[operator]
    held = int(frames.max())  # type: ignore[type-var]
    if held > most:
        raise ArtefactError(
            f"{where}: a cell holds {held} events, counts says {most} at most. Set counts={held} or more: "
            "it is the upper bound of the inputs, so of what an attack may add."
        )
    return frames.astype(np.float32)


def domain_of(most: int) -> tuple[Domain, tuple[float, float]]:
    """Return domain and bounds of frames that hold at most so many events a cell; 0 for binary frames."""
    return (Domain.EVENTS, (0.0, float(most))) if most else (Domain.SPIKES, (0.0, 1.0))


@dataclass(frozen=True)
class EventLists:
    """The raw events behind some samples, and the binning that makes the victim's frames of events.

    Args:
        recordings: the raw events of every sample, in the order of the samples.
        window: microseconds of a time bin.
        donors: class -> a training recording of it, for attacks that borrow events.
        block: side of the sensor's blocks that fall into one pixel of the frames.
        again: records the same samples with properties of the sensor changed; None where nothing can.
    """

    recordings: Sequence[Recording] = field(repr=False)
    window: int
    donors: Mapping[int, Recording] = field(default_factory=dict, repr=False)
    block: int = 1
    again: Callable[[Mapping[str, Any]], Sequence[Recording]] | None = field(default=None, repr=False)

    def of(self, rows: Iterable[int]) -> EventLists:
        """Return the lists of some samples."""
        chosen, again = list(rows), self.again
        some = None if again is None else lambda changes: [again(changes)[row] for row in chosen]
        return replace(self, recordings=[self.recordings[row] for row in chosen], again=some)

    def frames(self, events: Recording, *, steps: int, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Bin events as the data set does: [T, 2, H, W], whether a cell holds an event."""
        return self.counts(events, steps=steps, size=size) > 0

    def counts(self, events: Recording, *, steps: int, size: tuple[int, int]) -> Frames:
        """Bin events as the data set does: [T, 2, H, W], how many a cell holds."""
        if self.block > 1:
            events = events.copy()
            events["x"] //= self.block
            events["y"] //= self.block
        return bin_events(events, steps=steps, window=self.window, size=size)
