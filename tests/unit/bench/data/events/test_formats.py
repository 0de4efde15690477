"""Event recordings of every format: equal events whoever wrote them, one line for what is no recording."""

from __future__ import annotations

import importlib.util
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal
from unittest.mock import MagicMock

import numpy as np
import pytest

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import ConfigError
from robustspike.bench.data.events.events import EVENT
from robustspike.bench.data.events.events import Recording
from robustspike.bench.data.events.formats import identify
from robustspike.bench.data.events.formats import read_events
from robustspike.bench.data.events.recordings import Recordings
from robustspike.bench.data.events.recordings import event_frames


def made(n: int = 500, *, span: int = 60_000, seed: int = 0) -> Recording:
    """Random events of a 30x40 sensor, from time 0."""
    rng = np.random.default_rng(seed)
    out = np.empty(n, dtype=EVENT)
    out["x"], out["y"], out["p"] = rng.integers(0, 40, n), rng.integers(0, 30, n), rng.integers(0, 2, n)
    out["t"] = np.sort(rng.integers(0, span, n))
    out["t"] -= out["t"][0]
    return out


def evt2(events: Recording) -> bytes:
    words = []
    high = -1
    for x, y, t, p in events.tolist():
        if t >> 6 != high:
            high = t >> 6
            words.append(8 << 28 | high)
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    words.insert(5, 0xA << 28)  # an external trigger
    return b"% evt 2.0\n% geometry 40x30\n% end\n" + struct.pack(f"<{len(words)}I", *words)


def evt3(events: Recording) -> bytes:
    words: list[int] = []
    for x, y, t, p in events.tolist():
        words += [8 << 12 | t >> 12, 6 << 12 | t & 4095, y]
        words.append(2 << 12 | p << 11 | x)
    return b"% format EVT3;height=30;width=40\n% end\n" + struct.pack(f"<{len(words)}H", *words)


def dat(events: Recording) -> bytes:
    body = b"".join(struct.pack("<II", t, p << 28 | y << 14 | x) for x, y, t, p in events.tolist())
    return b"% Data file containing CD events.\n% Height 30\n% Width 40\n" + b"\x0c\x08" + body


def davis(events: Recording) -> bytes:
    rows = [(1 << 31, 7), (1 << 10, 9)]  # a pixel value, an external event
    rows += [((259 - y) << 22 | (345 - x) << 12 | p << 11, t) for x, y, t, p in events.tolist()]
    body = b"".join(struct.pack(">II", address, (t - 20_000) % 2**32) for address, t in rows)
    return b"#!AER-DAT2.0\n# AEChip: eu.seebetter.ini.chips.davis.DAVIS346B\r\n" + body


def dvs128(events: Recording) -> bytes:
    rows = [(1 << 15, 3)]
    rows += [((127 - x) << 8 | (127 - y) << 1 | (1 - p), t) for x, y, t, p in events.tolist()]
    return b"#!AER-DAT2.0\n" + b"".join(struct.pack(">II", address, t) for address, t in rows)


@pytest.mark.parametrize(
    ("write", "kind", "size"),
    [
        (evt2, "evt2", (30, 40)),
        (evt3, "evt3", (30, 40)),
        (dat, "dat", (30, 40)),
        (davis, "aedat2", (260, 346)),
        (dvs128, "aedat2", (128, 128)),
    ],
)
def test_binary_formats_give_the_events_that_were_written(
    tmp_path: Path, write: Callable[[Recording], bytes], kind: str, size: tuple[int, int]
) -> None:
    path, events = tmp_path / "any.name", made()
    path.write_bytes(write(events))
    assert identify(path) == kind
    found, where = read_events(path)
    assert where == size
    np.testing.assert_array_equal(found, events)


def test_numpy_files_of_every_layout_give_the_same_events(tmp_path: Path) -> None:
    events = made()
    other = np.zeros(len(events), dtype=[("p", "?"), ("timestamp", "<i8"), ("y", "<u2"), ("x", "<u2")])
    for name, source in {"p": "p", "timestamp": "t", "y": "y", "x": "x"}.items():
        other[name] = events[source]
    np.save(tmp_path / "structured.npy", other)
    np.savez(tmp_path / "events_np.npz", t=events["t"], x=events["x"], y=events["y"], p=events["p"])
    np.savez(tmp_path / "one.npz", events=other)
    for path in tmp_path.iterdir():
        found, size = read_events(path)
        np.testing.assert_array_equal(found, events)
        assert size == (30, 40)


def test_hdf5_and_matlab_files_give_the_same_events(tmp_path: Path) -> None:
    h5py, io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    events = made()
    with h5py.File(tmp_path / "dsec.h5", "w") as file:
        for name in "xytp":
            file[f"events/{name}"] = events[name]
        file["t_offset"] = 49_000_000_000
    with h5py.File(tmp_path / "table.hdf5", "w") as file:
        file["CD/events"] = events
    io.savemat(
        tmp_path / "cars.mat",
        {"TD": {"x": events["x"], "y": events["y"], "ts": events["t"], "p": events["p"]}},
    )
    columns = {
        "x": events["x"],
        "y": events["y"],
        "ts": events["t"],
        "pol": events["p"].astype(np.int8) * 2 - 1,
    }
    io.savemat(tmp_path / "asl.mat", columns)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_events(path)[0], events)


@pytest.mark.parametrize("encoding", ["evt2", "evt3", "dat"])
def test_files_that_expelliarmus_writes_are_read_as_it_reads_them(tmp_path: Path, encoding: str) -> None:
    wizard = pytest.importorskip("expelliarmus").Wizard(encoding=encoding)
    events = made(5_000, span=3_000_000)
    path = tmp_path / f"a.{'dat' if encoding == 'dat' else 'raw'}"
    kinds = {"t": "i8", "x": "i2", "y": "i2", "p": "u1"}
    table = np.zeros(len(events), dtype=np.dtype(list(kinds.items()), align=True))
    for name in kinds:
        table[name] = events[name]
    wizard.save(path, table)
    found, theirs = read_events(path, size=(720, 1280))[0], wizard.read(path)
    for name in "xyp":
        np.testing.assert_array_equal(found[name], theirs[name])
    np.testing.assert_array_equal(found["t"], theirs["t"] - theirs["t"].min())


def test_a_published_evt2_recording_is_read(shared_data: Path) -> None:
    path = shared_data / "events" / "evt2.raw"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    events, size = read_events(path)
    assert size == (480, 640) and len(events) == 521_252
    assert round(float(events["p"].mean()), 3) == 0.357 and int(events["t"].max()) == 95_871


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html>", "HTML"),
        (b"#ROSBAG V2.0\n", "a ROS bag"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"% format EVT4\n% end\n", "EVT 4.0"),
        (b"\x80\x04\x95", "a pickle"),
        (b"hello", "no format of event recordings"),
    ],
)
def test_a_good_file_of_another_format_is_called_that(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.raw").write_bytes(content)
    with pytest.raises(ArtefactError, match=what) as found:
        read_events(tmp_path / "a.raw")
    assert "damaged" not in str(found.value) and "etch" not in str(found.value)


@pytest.mark.parametrize(
    ("t", "hint"),
    [
        (np.linspace(0, 2.5, 50), "fractions that span 2.5"),
        (np.arange(50) * 100, "whole numbers that span 4900"),
        (np.full(50, np.nan), "NaN"),
        (np.full(50, 1e30), "beyond any clock"),
    ],
)
def test_times_whose_unit_nothing_tells_are_refused(tmp_path: Path, t: np.ndarray, hint: str) -> None:
    zeros = np.zeros(50, dtype=np.int64)
    np.savez(tmp_path / "a.npz", t=t, x=zeros, y=zeros, p=zeros)
    with pytest.raises(ArtefactError, match=hint):
        read_events(tmp_path / "a.npz")


def test_the_unit_can_be_said(tmp_path: Path) -> None:
    zeros = np.zeros(3, dtype=np.int64)
    np.savez(tmp_path / "a.npz", t=np.array([0.0, 0.5, 1.25]), x=zeros, y=zeros, p=zeros)
    assert read_events(tmp_path / "a.npz", unit="s")[0]["t"].tolist() == [0, 500_000, 1_250_000]
    assert read_events(tmp_path / "a.npz", unit="ms")[0]["t"].tolist() == [0, 500, 1_250]


@pytest.mark.parametrize("write", [evt2, evt3, dat, davis, dvs128])
def test_files_cut_or_filled_with_noise_never_raise_anything_else(
    tmp_path: Path, write: Callable[[Recording], bytes]
) -> None:
    whole, rng = write(made(50)), np.random.default_rng(1)
    for length in range(1, len(whole), 7):
        noise = bytes(rng.integers(0, 256, 40, dtype=np.uint8))
        for content in (whole[:length], whole[:length] + noise):
            (tmp_path / "a").write_bytes(content)
            try:
                read_events(tmp_path / "a")
            except ArtefactError as error:
                assert str(tmp_path) in str(error)


@pytest.fixture
def their_functions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """SpikingJelly's event functions, from their file; torchvision, which they do not need, is left out."""
    package = importlib.util.find_spec("spikingjelly")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "datasets" / "utils.py"
    for name in ("torchvision", "torchvision.datasets", "torchvision.datasets.utils"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    spec = importlib.util.spec_from_file_location("spikingjelly.datasets.theirs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("split_by", ["number", "time"])
def test_frames_are_those_of_spikingjelly(
    their_functions: ModuleType, split_by: Literal["number", "time"]
) -> None:
    events = made(997)
    columns = {name: events[name].astype(np.int64) for name in "xytp"}
    theirs = their_functions.integrate_events_by_fixed_frames_number(columns, split_by, 7, 30, 40)
    np.testing.assert_array_equal(event_frames(events, steps=7, size=(30, 40), split_by=split_by), theirs)


def test_frames_by_number_are_those_of_tonic() -> None:
    to_frame = pytest.importorskip("tonic.transforms").ToFrame((40, 30, 2), n_event_bins=7)
    events = made(700)
    theirs = to_frame(events)
    np.testing.assert_array_equal(event_frames(events, steps=7, size=(30, 40), split_by="number"), theirs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writers = {"cat": (evt2, "raw"), "dog": (dat, "dat")}
    for part in ("train", "test"):
        for label, (name, (write, suffix)) in enumerate(writers.items()):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for number in range(6):
                seed = 100 * label + number + 10 * (part == "test")
                (place / f"{number}.{suffix}").write_bytes(write(made(seed=seed)))
    (tmp_path / "train" / "cat" / "._0.raw").write_bytes(b"junk of a file system")
    (tmp_path / "train" / ".DS_Store").mkdir()
    return tmp_path


def test_a_folder_of_recordings_is_a_data_set(folder: Path) -> None:
    data = Recordings(folder=str(folder), steps=5)
    assert (data.shape, data.classes, data.labels) == ((5, 2, 30, 40), 2, ("cat", "dog"))
    train, validation, test = (data.load(split) for split in ("train", "validation", "test"))  # type: ignore[arg-type]
    assert (len(train), len(validation), len(test)) == (10, 2, 12)
    assert not {*train.ids.tolist()} & {*validation.ids.tolist()}
    assert set(test.x.unique().tolist()) == {0.0, 1.0} and bool(test.x.flatten(1).any(dim=1).all())
    assert data.load("test").digest == test.digest
    small = Recordings(folder=str(folder), steps=5, side=10).load("test")
    assert small.x.shape == (12, 5, 2, 10, 10) and small.ids.tolist() == test.ids.tolist()


def test_integrated_frames_of_spikingjelly_are_read(tmp_path: Path) -> None:
    for part in ("train", "test"):
        place = tmp_path / part / "a"
        place.mkdir(parents=True)
        for number in range(2):
            np.savez(place / f"{number}.npz", frames=np.random.default_rng(number).poisson(0.2, (4, 2, 8, 8)))
    data = Recordings(folder=str(tmp_path), steps=4)
    assert data.shape == (4, 2, 8, 8) and data.load("test").x.shape == (2, 4, 2, 8, 8)
    with pytest.raises(ArtefactError, match=r"holds frames \[4, 2, 8, 8\], expected \[5, 2, 8, 8\]"):
        Recordings(folder=str(tmp_path), steps=5).load("test")


def test_a_recording_without_an_event_is_no_sample(folder: Path) -> None:
    (folder / "test" / "cat" / "none.raw").write_bytes(evt2(made()[:0]))
    with pytest.raises(ArtefactError, match=r"none.raw: holds no events"):
        Recordings(folder=str(folder), steps=5).load("test")


def test_what_a_folder_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs its folder"):
        Recordings().load("test")
    with pytest.raises(ArtefactError, match="holds no folder of a class"):
        Recordings(folder=str(tmp_path)).load("test")
    with pytest.raises(ConfigError, match="split_by=window"):
        Recordings(folder=str(tmp_path), split_by="window")
