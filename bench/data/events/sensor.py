"""A dynamic vision sensor: light that moves over level-crossing pixels, and the events they emit.

Each pixel remembers a reference log-intensity and emits one event whenever the present one has moved by
its threshold, at the linearly interpolated time of the crossing; the reference moves along by exactly that
threshold, so that events reconstruct the log-intensity to within one threshold.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from robustspike.bench.data.events.events import EVENT
from robustspike.bench.data.events.events import Recording
from robustspike.bench.errors import ConfigError
from robustspike.bench.numbers.rng import RowStreams

Array = npt.NDArray[np.float64]

_MINIMUM_THRESHOLD = 0.01


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """Pixel parameters; the defaults are an ideal, noise-free sensor.

    Args:
        threshold: contrast threshold in log-intensity, for both polarities.
        mismatch: standard deviation of the thresholds from pixel to pixel (floor 0.01).
        refractory: microseconds after an event in which a pixel stays silent (its reference still moves).
        leak: ON events per second and pixel from a reference that drifts.
        background: false events per second and pixel, half of each polarity.

    Source: level-crossing pixel of Lichtsteiner et al. 2008; noise terms as in v2e (Hu et al. 2021,
    arXiv:2006.07722). Differs: no low-pass filter, no lin-log response.
    """

    threshold: float = 0.8
    mismatch: float = 0.0
    refractory: int = 0
    leak: float = 0.0
    background: float = 0.0

    def __post_init__(self) -> None:
        if not self.threshold >= _MINIMUM_THRESHOLD:
            raise ConfigError(
                f"sensor: threshold must be at least {_MINIMUM_THRESHOLD}, got {self.threshold}."
            )
        if min(self.mismatch, self.refractory, self.leak, self.background) < 0:
            raise ConfigError("sensor: mismatch, refractory, leak and background must be 0 or more.")

    def record(
        self, scene: Iterator[Array], *, steps: int, duration: int, streams: RowStreams
    ) -> list[Recording]:
        """Watch N scenes at once.

        Args:
            scene: log-intensities [N, H, W] at times 0, dt, 2 dt, ..., duration: steps + 1 of them.
            steps: number of sub-steps between them.
            duration: microseconds; every event time is in [0, duration - 1].
            streams: one random stream per scene (read only for noise).

        Returns: one recording per scene, sorted by time, then row, column and polarity.
        """
        now = next(scene).astype(np.float64)
        reference, dt = now.copy(), duration / steps
        on, off = self._thresholds(now.shape, streams)
        silent_until = np.full(now.shape, -np.inf)
        found: list[tuple[npt.NDArray[np.int64], ...]] = []
        for step in range(steps):
            before, now = now, next(scene).astype(np.float64)
            reference -= self.leak * on * dt * 1e-6
            change = now - reference
            rising = change > 0
            level = np.where(rising, on, off)
            crossings = np.floor(np.abs(change) / level).astype(np.int64)
            slope = now - before
            for nth in range(1, int(crossings.max(initial=0)) + 1):
                at = np.nonzero(crossings >= nth)
                target = reference[at] + np.where(rising[at], 1.0, -1.0) * nth * level[at]
                moved = slope[at]
                share = (target - before[at]) / np.where(moved == 0, np.inf, moved)
                time = (step + np.clip(share, 0.0, 1.0)) * dt
                fires = time >= silent_until[at]
                silent_until[at] = np.where(fires, time + self.refractory, silent_until[at])
                found.append(_columns(at, time, rising[at], fires, duration))
            reference += np.where(rising, 1.0, -1.0) * crossings * level
            if self.background:
                found += self._false_events(now.shape, step, dt, duration, streams)
        return _by_scene(found, len(now))

    def _thresholds(self, shape: Sequence[int], streams: RowStreams) -> tuple[Array, Array]:
        if not self.mismatch:
            same = np.full(shape, self.threshold)
            return same, same
        noise = streams.fork("thresholds").normal((2, *shape[1:]), dtype=torch.float64).numpy()
        drawn = np.maximum(self.threshold + self.mismatch * noise, _MINIMUM_THRESHOLD)
        return drawn[:, 0], drawn[:, 1]

    def _false_events(
        self, shape: Sequence[int], step: int, dt: float, duration: int, streams: RowStreams
    ) -> list[tuple[npt.NDArray[np.int64], ...]]:
        chance = min(1.0, 0.5 * self.background * dt * 1e-6)
        drawn = streams.fork("background", step).uniform((2, *shape[1:]), dtype=torch.float64).numpy()
        out = []
        for polarity in (0, 1):
            at = np.nonzero(drawn[:, polarity] < chance)
            time = (step + drawn[:, polarity][at] / chance) * dt
            yes = np.ones(len(time), dtype=bool)
            out.append(_columns(at, time, yes if polarity else ~yes, yes, duration))
        return out


def _columns(
    at: tuple[npt.NDArray[np.int64], ...],
    time: Array,
    rising: npt.NDArray[np.bool_],
    keep: npt.NDArray[np.bool_],
    duration: int,
) -> tuple[npt.NDArray[np.int64], ...]:
    microseconds = np.minimum(np.floor(time), duration - 1).astype(np.int64)
    columns = (at[0], microseconds, at[1], at[2], rising.astype(np.int64))
    return tuple(column[keep] for column in columns)


def _by_scene(found: list[tuple[npt.NDArray[np.int64], ...]], scenes: int) -> list[Recording]:
    if not found:
        return [np.empty(0, dtype=EVENT) for _ in range(scenes)]
    scene, t, y, x, p = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((p, x, y, t, scene))
    events = np.empty(len(order), dtype=EVENT)
    for name, column in (("x", x), ("y", y), ("t", t), ("p", p)):
        events[name] = column[order]
    cuts = np.searchsorted(scene[order], np.arange(1, scenes))
    return np.split(events, cuts)


def saccades(amplitude: float, steps: int) -> Array:
    """Return the camera's path of three straight saccades, a closed triangle: [steps + 1, 2] (y, x) pixels.

    Source: the three saccades of N-MNIST, Orchard et al. 2015. Differs: the triangle is half as high, and
    centred on the middle of its box.
    """
    if steps % 3:
        raise ConfigError(f"saccades: steps must be a multiple of 3, got {steps}.")
    corners = np.array([[0, 0], [1, 1], [0, 2], [0, 0]], dtype=np.float64) * amplitude
    share = np.arange(steps + 1) / (steps // 3)
    leg = np.minimum(share.astype(np.int64), 2)
    part = (share - leg)[:, None]
    path: Array = corners[leg] + (corners[leg + 1] - corners[leg]) * part
    path -= np.array([amplitude / 2, amplitude])
    return path


def shifted(images: Array, offset: Array) -> Array:
    """Look at images [N, H, W] from an offset (y, x) in pixels: bilinear, dark outside."""
    base = np.floor(offset).astype(np.int64)
    part = offset - base
    out = np.zeros_like(images)
    for dy, wy in ((0, 1 - part[0]), (1, part[0])):
        for dx, wx in ((0, 1 - part[1]), (1, part[1])):
            if wy * wx:
                out += wy * wx * _moved(images, int(base[0]) + dy, int(base[1]) + dx)
    return out


def _moved(images: Array, dy: int, dx: int) -> Array:
    """Return out[y, x] = images[y + dy, x + dx], 0 outside."""
    height, width = images.shape[1:]
    out = np.zeros_like(images)
    ys, xs = slice(max(0, -dy), min(height, height - dy)), slice(max(0, -dx), min(width, width - dx))
    if ys.start < ys.stop and xs.start < xs.stop:
        source = images[:, ys.start + dy : ys.stop + dy, xs.start + dx : xs.stop + dx]
        out[:, ys, xs] = source
    return out


def resized(images: Array, size: int) -> Array:
    """Resize square images [N, S, S] to [N, size, size]: bilinear, outer borders aligned."""
    old = images.shape[1]
    centre = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.minimum(np.floor(centre).astype(np.int64), old - 2)
    part = centre - low
    rows = images[:, low] * (1 - part)[:, None] + images[:, low + 1] * part[:, None]
    out: Array = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
    return out
