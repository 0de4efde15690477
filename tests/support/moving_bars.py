"""Recordings of a bar that moves across the sensor in the direction of its class, as published sets lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robustspike.bench.data.events.event_sets import Cifar10Dvs
from tests.support.aedat4 import aedat4

Events = dict[str, np.ndarray]


def moving_bar(label: int, classes: int, *, seed: int, side: int = 128, n: int = 3000) -> Events:
    """Return x, y, t (microseconds, one second in all) and p: ON ahead of the bar and OFF behind it.

    No direction is the mirror image of another, since recipes mirror what they train on.
    """
    rng = np.random.default_rng(seed)
    angle = np.pi * (label / classes - 0.5)
    t = np.sort(rng.integers(0, 1_000_000, n))
    p = rng.integers(0, 2, n)
    along = (t / 1e6 - 0.5) * 0.8 * side + np.where(p == 1, 2, -2) + rng.normal(0, 1.5, n)
    across = rng.uniform(-0.3, 0.3, n) * side
    x = side / 2 + along * np.cos(angle) - across * np.sin(angle)
    y = side / 2 + along * np.sin(angle) + across * np.cos(angle)
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    return {"x": x[inside].astype(int), "y": y[inside].astype(int), "t": t[inside], "p": p[inside]}


def write_gestures(root: Path, users: int = 2) -> None:
    """Write DVS128 Gesture as tonic cuts it: DvsGesture/ibmGesture{Train,Test}/USER_LIGHT/CLASS.npy."""
    for part, first, many in (("Train", 1, users), ("Test", 24, 1)):
        for user in range(first, first + many):
            place = root / "DvsGesture" / f"ibmGesture{part}" / f"user{user:02}_led"
            place.mkdir(parents=True)
            for label in range(11):
                c = moving_bar(label, 11, seed=100 * user + label)
                table = np.stack([c["x"], c["y"], c["p"], c["t"] // 1000], axis=1)
                np.save(place / f"{label}.npy", table.astype(float))


def write_cifar10_dvs(root: Path, recordings: int = 4) -> None:
    """Write CIFAR10-DVS as tonic has it: CIFAR10DVS/CLASS/cifar10_CLASS_NUMBER.aedat4."""
    for label, name in enumerate(Cifar10Dvs.names):
        place = root / "CIFAR10DVS" / name
        place.mkdir(parents=True)
        for number in range(recordings):
            c = moving_bar(label, 10, seed=1000 * label + number)
            content = aedat4(c["t"] + 1_500_000_000_000_000, c["x"], c["y"], c["p"])
            (place / f"cifar10_{name}_{number}.aedat4").write_bytes(content)
