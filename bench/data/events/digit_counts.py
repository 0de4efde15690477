"""Digits seen by a simulated event camera: event counts in frames of equally many events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from robustspike.bench.contract.specs import Domain
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.events.digit_events import DigitEvents
from robustspike.bench.data.events.events import as_input
from robustspike.bench.data.events.recordings import event_frames
from robustspike.bench.data.images.digits import Digits


@dataclass(frozen=True, kw_only=True)
class DigitCounts(DigitEvents):
    """The recordings of `digits_events` from a more sensitive sensor, T frames of equally many events each.

    Args:
        counts: the most events of a cell, the upper bound of the inputs.

    Shape: x [N, T, 2, 16, 16] float32 of 0, 1, ... counts; channel 0 is OFF, channel 1 is ON.
    """

    threshold: float = 0.35
    counts: int = 8

    domain: ClassVar[Domain] = Domain.EVENTS
    bounds: ClassVar[tuple[float, float]] = (0.0, 8.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "name", self.name.replace("digits_events", "digits_counts"))
        object.__setattr__(self, "bounds", (0.0, float(self.counts)))

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        still = Digits().first(split, n)
        x = np.zeros((len(still), *self.shape), dtype=np.float32)
        for row, events in enumerate(self.recordings(split)[:n]):
            size = (self.shape[2], self.shape[3])
            frames = event_frames(events, steps=self.steps, size=size, split_by="number")
            x[row] = as_input(frames, self.counts, where=f"data set '{self.name}'")
        return Split(torch.from_numpy(x), still.y, still.ids)
