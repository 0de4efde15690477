"""A dynamic vision sensor: light that moves over level-crossing pixels, and the events they emit.

Each pixel remembers a reference log-intensity and emits one event whenever the present one has moved by
its threshold, at the linearly interpolated time of the crossing; the reference moves along by exactly that
threshold, so that events reconstruct the log-intensity to within one threshold.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
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

_SHOT_AT_FULL_LIGHT = 0.25
"""Shot noise at full light, of that in the dark (SHOT_NOISE_INTEN_FACTOR in v2e)."""

_NOISE_STEP = 5_000
"""Microseconds of a sub-step where noise alone is simulated."""


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """Pixel parameters; the defaults are an ideal, noise-free sensor.

    What is random from pixel to pixel (thresholds, leak rates, hot pixels) is drawn anew for every
    recording: each was made by another sensor of the kind.

    Args:
        threshold: contrast threshold in log-intensity, for both polarities (pos_thres = neg_thres in v2e,
            contrast_threshold_pos and _neg in ESIM).
        mismatch: standard deviation of the thresholds from pixel to pixel, floor 0.01 (sigma_thres in v2e).
        refractory: microseconds after an event in which a pixel stays silent; its reference still moves
            (refractory_period_s in v2e, refractory_period_ns in ESIM).
        background: false events per second and pixel, half of each polarity.
        hot_pixels: share of pixels that send ON events all the time.
        hot_rate_hz: ON events per second of a hot pixel.
        lin_log: grey level, of 255, up to which a pixel answers in proportion to the light and above which to
            its logarithm (v2e: 20); 0 for the logarithm of the light over a dark current alone.
        cutoff_hz: corner frequency of a pixel's low-pass at full light; it falls with the light. 0 for none.
        leak_rate_hz: ON events per second and pixel from a reference that drifts.
        leak_jitter_fraction: random part of the drift, from sub-step to sub-step.
        noise_rate_cov_decades: spread of the drift from pixel to pixel, in decades.
        shot_noise_rate_hz: false events per second and dark pixel, half of each polarity; a quarter at full
            light, and more for a pixel of a lower threshold.

    Source: level-crossing pixel of Lichtsteiner et al. 2008; from `lin_log` on v2e's names and definitions
    (Hu et al. 2021, arXiv:2006.07722; `lin_log`, `low_pass_filter`, `subtract_leak_current` and
    `generate_shot_noise` of its emulator); ESIM: Rebecq et al., CoRL 2018. Differs: the low-pass takes
    exact steps and its output does not lag one frame; times are interpolated as ESIM does.
    """

    threshold: float = 0.8
    mismatch: float = 0.0
    refractory: int = 0
    background: float = 0.0
    hot_pixels: float = 0.0
    hot_rate_hz: float = 100.0
    lin_log: float = 0.0
    cutoff_hz: float = 0.0
    leak_rate_hz: float = 0.0
    leak_jitter_fraction: float = 0.0
    noise_rate_cov_decades: float = 0.0
    shot_noise_rate_hz: float = 0.0

    def __post_init__(self) -> None:
        if not self.threshold >= _MINIMUM_THRESHOLD:
            raise ConfigError(
                f"sensor: threshold must be at least {_MINIMUM_THRESHOLD}, got {self.threshold}."
            )
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ConfigError(f"sensor: {field.name} must be 0 or more, got {getattr(self, field.name)}.")
        if self.hot_pixels > 1 or 0 < self.lin_log < 1:
            raise ConfigError(
                "sensor: hot_pixels is a share of at most 1, and lin_log a grey level of 1 to 255 (0 for "
                f"none); got {self.hot_pixels} and {self.lin_log}."
            )

    def record(
        self,
        scene: Iterator[Array],
        *,
        steps: int,
        duration: int,
        streams: RowStreams,
        dark: float | None = None,
    ) -> list[Recording]:
        """Watch N scenes at once.

        Args:
            scene: what is seen [N, H, W] at times 0, dt, 2 dt, ..., duration: steps + 1 of them; brightness
                in [0, 1] where `dark` is given, else log-intensities.
            steps: number of sub-steps between them.
            duration: microseconds; every event time is in [0, duration - 1].
            streams: one random stream per scene (read only for noise).
            dark: brightness that is added before the logarithm is taken.

        Returns: one recording per scene, sorted by time, then row, column and polarity.
        Raises: ConfigError: options that need brightness, on log-intensities.
        """
        if dark is None and (self.lin_log or self.cutoff_hz or self.shot_noise_rate_hz):
            raise ConfigError("sensor: lin_log, cutoff_hz and shot_noise_rate_hz need brightness (dark=...).")
        seen = next(scene).astype(np.float64)
        now = self._response(seen, dark)
        reference, dt = now.copy(), duration / steps
        on, off = self._thresholds(now.shape, streams)
        drift = self._drift(now.shape, streams)
        hot = self._hot(now.shape, streams)
        silent_until = np.full(now.shape, -np.inf)
        found: list[tuple[npt.NDArray[np.int64], ...]] = []
        for step in range(steps):
            before, seen = now, next(scene).astype(np.float64)
            now = self._response(seen, dark)
            if self.cutoff_hz:
                share = -np.expm1(-_light(seen) * 2 * math.pi * self.cutoff_hz * dt * 1e-6)
                now = before + share * (now - before)
            reference -= self._leaked(drift, step, streams) * on * dt * 1e-6
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
            for name, rates in (
                ("background", np.full((2, *now.shape), 0.5 * self.background)),
                ("shot", self._shot_rates(seen, on, off)),
                ("hot", hot),
            ):
                if rates.any():
                    found += _false_events(rates, name, step, dt, duration, streams)
        return _by_scene(found, len(now))

    def _response(self, seen: Array, dark: float | None) -> Array:
        """Return what a pixel makes of light: [N, H, W]."""
        if dark is None:
            return seen
        if not self.lin_log:
            out: Array = np.log(seen + dark)
            return out
        grey = 255 * seen
        out = np.where(
            grey <= self.lin_log,
            grey * (math.log(self.lin_log) / self.lin_log),
            np.log(np.maximum(grey, self.lin_log)),
        )
        return out

    def _hot(self, shape: Sequence[int], streams: RowStreams) -> Array:
        """Return OFF and ON events per second that pixels send without a cause: [2, N, H, W]."""
        rates = np.zeros((2, *shape))
        if self.hot_pixels:
            drawn = streams.fork("hot_pixels").uniform(shape[1:], dtype=torch.float64).numpy()
            rates[1] = self.hot_rate_hz * (drawn < self.hot_pixels)
        return rates

    def _drift(self, shape: Sequence[int], streams: RowStreams) -> Array:
        """Return the leak rate of every pixel, in thresholds per second."""
        if not self.noise_rate_cov_decades:
            return np.full(shape, self.leak_rate_hz)
        drawn = streams.fork("leak").normal(shape[1:], dtype=torch.float64).numpy()
        out: Array = self.leak_rate_hz * 10 ** (self.noise_rate_cov_decades * drawn)
        return out

    def _leaked(self, drift: Array, step: int, streams: RowStreams) -> Array:
        if not self.leak_jitter_fraction:
            return drift
        drawn = streams.fork("leak_jitter", step).normal(drift.shape[1:], dtype=torch.float64).numpy()
        out: Array = drift * (1 - self.leak_jitter_fraction * drawn)
        return out

    def _shot_rates(self, seen: Array, on: Array, off: Array) -> Array:
        """Return false OFF and ON events per second of every pixel: [2, N, H, W]."""
        if not self.shot_noise_rate_hz:
            return np.zeros((2, *seen.shape))
        rate = self.shot_noise_rate_hz / 2 * ((_SHOT_AT_FULL_LIGHT - 1) * _light(seen) + 1)
        return np.stack([rate * self.threshold / off, rate * self.threshold / on])

    def _thresholds(self, shape: Sequence[int], streams: RowStreams) -> tuple[Array, Array]:
        if not self.mismatch:
            same = np.full(shape, self.threshold)
            return same, same
        noise = streams.fork("thresholds").normal((2, *shape[1:]), dtype=torch.float64).numpy()
        drawn = np.maximum(self.threshold + self.mismatch * noise, _MINIMUM_THRESHOLD)
        return drawn[:, 0], drawn[:, 1]


def _false_events(
    rates: Array, name: str, step: int, dt: float, duration: int, streams: RowStreams
) -> list[tuple[npt.NDArray[np.int64], ...]]:
    """Draw events that nothing caused, at most one a pixel, polarity and sub-step.

    Args:
        rates: OFF and ON events per second of every pixel: [2, N, H, W].
        name: what is drawn, so that each kind of noise has numbers of its own.
    """
    drawn = streams.fork(name, step).uniform((2, *rates.shape[2:]), dtype=torch.float64).numpy()
    out = []
    for polarity in (0, 1):
        chance = np.minimum(1.0, rates[polarity] * dt * 1e-6)
        at = np.nonzero(drawn[:, polarity] < chance)
        time = (step + drawn[:, polarity][at] / chance[at]) * dt
        yes = np.ones(len(time), dtype=bool)
        out.append(_columns(at, time, yes if polarity else ~yes, yes, duration))
    return out


def _light(seen: Array) -> Array:
    """Return brightness in [0, 1] as v2e scales rates by it: never quite dark."""
    out: Array = (255 * seen + 20) / 275
    return out


def with_noise(
    recordings: Sequence[Recording],
    sensor: Sensor,
    *,
    size: tuple[int, int],
    duration: int,
    streams: RowStreams,
) -> list[Recording]:
    """Add the false events of a sensor that looks at nothing to finished recordings.

    Args:
        sensor: of which background activity, hot pixels, shot noise and leak are added.
        size: (height, width).
        duration: microseconds in which they are added.
        streams: one random stream a recording.
    """
    steps = max(1, duration // _NOISE_STEP)
    nothing = itertools.repeat(np.zeros((len(recordings), *size)), steps + 1)
    noise = sensor.record(nothing, steps=steps, duration=duration, streams=streams, dark=1.0)
    out = []
    for events, false in zip(recordings, noise, strict=True):
        both = np.concatenate([events, false])
        out.append(both[np.argsort(both["t"], kind="stable")])
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
