"""The same scenes seen by another sensor: background activity, hot pixels, mismatch, another threshold."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True, kw_only=True)
class SensorNoise:
    """Show what another sensor records of the same scenes; a control, chosen by nobody.

    Every parameter is an option of the simulated sensor (units as there); None leaves the data set's own.
    To what a real sensor recorded, events can be added (background, hot_pixels, leak_rate_hz), but its
    thresholds cannot be changed: such cells are errors, which say so.

    Args:
        background: false events per second and pixel.
        hot_pixels: share of pixels that send ON events all the time, hot_rate_hz of them per second.
        mismatch: standard deviation of the thresholds from pixel to pixel, in log-intensity.
        threshold: contrast threshold in log-intensity.
        leak_rate_hz, shot_noise_rate_hz, cutoff_hz, lin_log: as in v2e.

    Cost: 1 forward.
    """

    background: float | None = None
    hot_pixels: float | None = None
    hot_rate_hz: float | None = None
    mismatch: float | None = None
    threshold: float | None = None
    leak_rate_hz: float | None = None
    shot_noise_rate_hz: float | None = None
    cutoff_hz: float | None = None
    lin_log: float | None = None
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="sensor.noise",
        geometries=("sensor",),
        domains=(Domain.SPIKES,),
        access=Access.LABEL,
        source=(
            "Control: noise terms of v2e, Hu et al. 2021, arXiv:2006.07722. Differs: the scenes of the data "
            "set, recorded again; every recording by another sensor of the kind."
        ),
        cost="1 forward",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        rows = oracle.active(forwards=1)
        changes = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        }
        x = x0.clone()
        if changes and len(rows):
            x[rows] = oracle.project(self._seen(oracle, changes, x0[rows], rows), rows)
        if len(rows):
            oracle.labels(x[rows], rows)
        return x

    def _seen(self, oracle: Oracle, changes: dict[str, float], x0: Tensor, rows: Tensor) -> Tensor:
        """Return what the other sensor sees, in the windows of the data set. Raises: ConfigError."""
        lists = oracle.events
        if lists is None or lists.again is None:
            raise ConfigError(
                "sensor.noise: the scenes behind these samples cannot be recorded again. It is for simulated "
                "data (digits_events, cifar10_events), and for nmnist, dvs_gesture and cifar10_dvs as far as "
                "events are added."
            )
        steps, _, height, width = x0.shape[1:]
        again = lists.again(changes)
        seen = [lists.frames(again[row], steps=steps, size=(height, width)) for row in rows.tolist()]
        return torch.stack([torch.from_numpy(frames) for frames in seen]).to(x0)
