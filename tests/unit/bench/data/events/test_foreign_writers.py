"""Files that SpikingJelly's and tonic's own functions write are read as they read them."""

from __future__ import annotations

import importlib
import importlib.util
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest

from robustspike.bench.api import Domain
from robustspike.bench.data.events.formats import read_events
from robustspike.bench.data.events.recordings import Recordings

NOT_NEEDED = (
    *(f"torchvision{part}" for part in ("", ".datasets", ".datasets.utils", ".transforms")),
    *(f"torchaudio{part}" for part in ("", ".transforms", ".datasets")),
)
"""SpikingJelly imports these beside its event functions, which use none of them."""


@pytest.fixture
def jelly() -> Iterator[ModuleType]:
    """SpikingJelly's data sets, imported without torchvision and torchaudio, and forgotten afterwards."""
    before = dict(sys.modules)
    for name in NOT_NEEDED:
        sys.modules[name] = MagicMock()
    try:
        yield importlib.import_module("spikingjelly.datasets")
    finally:
        for name in [*sys.modules]:
            if name.startswith(("spikingjelly.datasets", "torchvision", "torchaudio")):
                del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def drawn(n: int, side: int, *, seed: int = 0, until: int = 800_000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, until, n))
    return {"x": rng.integers(0, side, n), "y": rng.integers(0, side, n), "t": t, "p": rng.integers(0, 2, n)}


def same(path: Path, events: dict[str, np.ndarray], side: int) -> bool:
    found, _ = read_events(path, size=(side, side))
    start = int(events["t"].min())
    return all(np.array_equal(found[name], events[name] - start * (name == "t")) for name in "xytp")


def test_events_np_of_n_mnist(jelly: ModuleType, tmp_path: Path) -> None:
    e = drawn(300, 34, until=300_000)
    rows = np.stack([e["x"], e["y"], e["p"] << 7 | e["t"] >> 16, e["t"] >> 8 & 255, e["t"] & 255], axis=1)
    (tmp_path / "1.bin").write_bytes(rows.astype(np.uint8).tobytes())
    jelly.utils._save_atis_bin_as_npz(tmp_path / "1.bin", tmp_path / "1.npz")
    assert same(tmp_path / "1.npz", e, 34) and same(tmp_path / "1.bin", e, 34)


def test_events_np_of_cifar10_dvs(jelly: ModuleType, tmp_path: Path) -> None:
    e = drawn(300, 128)
    address = 127 - e["x"] << 8 | 127 - e["y"] << 1 | 1 - e["p"]
    words = np.stack([address, e["t"] + 5_000_000], axis=1).astype(">u4")
    (tmp_path / "1.aedat").write_bytes(b"#!AER-DAT2.0\r\n# a comment\r\n" + words.tobytes())
    jelly.cifar10_dvs._read_aedat_save_to_np(tmp_path / "1.aedat", tmp_path / "1.npz")
    theirs, _ = read_events(tmp_path / "1.npz", size=(128, 128))
    ours, _ = read_events(tmp_path / "1.aedat", size=(128, 128))
    np.testing.assert_array_equal(theirs["t"], ours["t"])
    np.testing.assert_array_equal(theirs["p"], ours["p"])
    # SpikingJelly turns the picture: its x runs where jAER's y does. Both are read as they are written.
    np.testing.assert_array_equal(theirs["x"], e["x"])
    np.testing.assert_array_equal(theirs["y"], e["y"])


def test_events_np_of_dvs_gesture_and_integrated_frames_are_a_folder_of_recordings(
    jelly: ModuleType, tmp_path: Path
) -> None:
    for part, seed in (("train", 0), ("test", 1)):
        e = drawn(2_000, 128, seed=seed)
        words = np.stack([e["x"] << 17 | e["y"] << 2 | e["p"] << 1 | 1, e["t"]], axis=1).astype("<u4")
        head = struct.pack("<hhiiiiii", 1, 0, 8, 4, 0, len(words), len(words), len(words))
        content = b"#!AER-DAT3.1\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n" + head + words.tobytes()
        (tmp_path / f"{part}.aedat").write_bytes(content)
        csv = ["class,startTime_usec,endTime_usec"]
        csv += [f"{1 + i % 2},{200_000 * i},{200_000 * (i + 1)}" for i in range(4)]
        (tmp_path / f"{part}.csv").write_text("\n".join(csv) + "\n")
        for kind in ("events", "number", "time"):
            for label in "01":
                (tmp_path / kind / part / label).mkdir(parents=True)
        split = jelly.dvs128_gesture._split_aedat_files_to_np
        split("user", tmp_path / f"{part}.aedat", tmp_path / f"{part}.csv", tmp_path / "events" / part)
        for path in sorted((tmp_path / "events" / part).glob("*/*.npz")):
            for kind in ("number", "time"):
                jelly.utils.integrate_events_file_to_frames_file_by_fixed_frames_number(
                    np.load, str(path), str(tmp_path / kind / part / path.parent.name), kind, 5, 128, 128
                )
    for kind in ("number", "time"):
        frames = Recordings(folder=str(tmp_path / kind), steps=5, counts=255)
        events = Recordings(
            folder=str(tmp_path / "events"), steps=5, counts=255, split_by=kind, sensor=(128, 128)
        )
        assert frames.domain is events.domain is Domain.EVENTS
        for split_name in ("train", "validation", "test"):
            theirs, ours = frames.load(split_name), events.load(split_name)
            assert theirs.ids.tolist() == ours.ids.tolist() and len(ours) >= 2
            assert float(ours.x.max()) > 0 and bool((theirs.x == ours.x).all())


def test_the_disk_cache_of_tonic_is_read_as_recordings_and_as_frames(tmp_path: Path) -> None:
    cache = pytest.importorskip("tonic.cached_dataset")
    transforms = pytest.importorskip("tonic.transforms")
    kind = np.dtype([("x", "i2"), ("y", "i2"), ("t", "i8"), ("p", "?")])
    to_frame = transforms.ToFrame((20, 20, 2), n_event_bins=4)
    for part in ("train", "test"):
        for label in range(2):
            for what in ("events", "frames"):
                (tmp_path / what / part / str(label)).mkdir(parents=True)
            for number in range(3):
                e = drawn(400, 20, seed=10 * label + number + 100 * (part == "test"))
                table = np.zeros(400, dtype=kind)
                for name, column in e.items():
                    table[name] = column
                place = f"{part}/{label}/{number}_0.hdf5"
                cache.save_to_disk_cache(table, label, tmp_path / "events" / place)
                cache.save_to_disk_cache(to_frame(table), label, tmp_path / "frames" / place)
    events = Recordings(folder=str(tmp_path / "events"), steps=4, counts=50, sensor=(20, 20))
    frames = Recordings(folder=str(tmp_path / "frames"), steps=4, counts=50)
    assert frames.shape == events.shape == (4, 2, 20, 20)
    for split in ("train", "test"):
        ours, theirs = events.load(split), frames.load(split)
        assert len(ours) >= 4 and bool((ours.x == theirs.x).all()) and bool((ours.y == theirs.y).all())
