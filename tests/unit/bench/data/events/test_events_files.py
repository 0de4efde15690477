"""Readers of published event files: right on good files, one clear error on hostile ones."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import ConfigError
from robustspike.bench.api import check_victim
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.data.events import event_files
from robustspike.bench.data.events import formats
from robustspike.bench.data.events.event_sets import Cifar10Dvs
from robustspike.bench.data.events.event_sets import DvsGesture
from robustspike.bench.data.events.event_sets import NMnist
from robustspike.bench.data.events.events import bin_events
from robustspike.bench.data.events.spike_camera import read_spike_dat
from robustspike.bench.data.events.spike_camera import read_spike_npz
from robustspike.bench.data.events.spike_camera import spike_frames


def shared(name: str) -> Path:
    """Return a folder of the data beside the checkout, or skip."""
    places = [os.environ.get("ROBUSTSPIKE_DATA"), *(p / "shared/data" for p in Path(__file__).parents)]
    for place in places:
        if place and (Path(place) / name).exists():
            return Path(place) / name
    pytest.skip(f"the data set {name} is not here; set ROBUSTSPIKE_DATA to the folder that has it")


def events(n: int, side: int, *, until: int) -> dict[str, np.ndarray]:
    index = np.arange(n)
    return {
        "x": index * 7 % side,
        "y": index * 11 % side,
        "t": np.sort(index * 7919 % until),
        "p": index // 3 % 2,
    }


def write_bin(path: Path, e: dict[str, np.ndarray]) -> None:
    rows = np.stack([e["x"], e["y"], e["p"] << 7 | e["t"] >> 16, e["t"] >> 8 & 255, e["t"] & 255], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rows.astype(np.uint8).tobytes())


def write_aedat2(path: Path, e: dict[str, np.ndarray], *, first: int = 5_000_000) -> None:
    address = 127 - e["x"] << 8 | 127 - e["y"] << 1 | 1 - e["p"]
    words = np.stack([address, e["t"] + first], axis=1).astype(">u4")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"#!AER-DAT2.0\r\n# a comment\r\n" + words.tobytes())


def packet(e: dict[str, np.ndarray], *, kind: int = 1, overflows: int = 0, spare: int = 0) -> bytes:
    address = e["x"] << 17 | e["y"] << 2 | e["p"] << 1 | 1
    words = np.stack([address, e["t"]], axis=1).astype("<u4")
    n = len(words)
    head = struct.pack("<hhiiiiii", kind, 0, 8, 4, overflows, n + spare, n, n)
    return head + words.tobytes() + bytes(8 * spare)


AEDAT31 = b"#!AER-DAT3.1\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def same(found: np.ndarray, expected: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(found[name], expected[name]) for name in "xytp")


def test_aer_bin_files_are_read_and_overflow_rows_move_time(tmp_path: Path) -> None:
    e = events(200, 34, until=300_000)
    write_bin(tmp_path / "a.bin", e)
    assert same(event_files.read_aer_bin(tmp_path / "a.bin", size=(34, 34)), e)
    overflow = bytes([0, 240, 0, 0, 0])
    content = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "b.bin").write_bytes(content[:500] + overflow + content[500:])
    moved = event_files.read_aer_bin(tmp_path / "b.bin", size=(34, 34))
    assert np.array_equal(moved["t"], e["t"] + 8192 * (np.arange(200) >= 100))


def test_real_n_mnist_files_read_as_tonic_reads_them() -> None:
    tonic = pytest.importorskip("tonic.io")
    paths = sorted(shared("NMNIST").glob("Test/*/*.bin"))
    assert len(paths) == 50
    dtype = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
    for path in paths[::5]:
        theirs = tonic.read_mnist_file(str(path), dtype=dtype)
        assert same(event_files.read_aer_bin(path, size=(34, 34)), {name: theirs[name] for name in "xytp"})


def test_fixed_bins_equal_tonics_fixed_windows() -> None:
    transforms = pytest.importorskip("tonic.transforms")
    path = min(shared("NMNIST").glob("Test/*/*.bin"))
    found = event_files.read_aer_bin(path, size=(34, 34))
    frame = transforms.ToFrame((34, 34, 2), time_window=39_375, start_time=0, end_time=8 * 39_375)
    theirs = frame(found.astype([("x", "i8"), ("y", "i8"), ("t", "i8"), ("p", "i8")]))
    assert np.array_equal(bin_events(found, steps=8, window=39_375, size=(34, 34)), theirs)


def test_aedat2_files_are_read_turned_and_from_their_first_event(tmp_path: Path) -> None:
    e = events(300, 128, until=1_000_000)
    write_aedat2(tmp_path / "a.aedat", e)
    assert same(formats.read_events(tmp_path / "a.aedat")[0], e)
    tonic = pytest.importorskip("tonic.io")
    version, start, _ = tonic.read_aedat_header_from_file(str(tmp_path / "a.aedat"))
    raw = tonic.get_aer_events_from_file(str(tmp_path / "a.aedat"), version, start)
    assert np.array_equal(127 - (raw["address"] >> 8 & 127), e["x"])
    assert np.array_equal(raw["timeStamp"] - 5_000_000, e["t"])


def test_aedat31_packets_are_read_and_others_skipped(tmp_path: Path) -> None:
    e, late = events(300, 128, until=1_000_000), events(5, 128, until=1000)
    content = AEDAT31 + packet(e, spare=3) + packet(late, kind=0) + packet(late, overflows=1)
    (tmp_path / "a.aedat").write_bytes(content)
    found = event_files.read_aedat31(tmp_path / "a.aedat")
    assert same(found[:300], e)
    assert np.array_equal(found[300:]["t"], late["t"] + (1 << 31))
    invalid = bytearray(content)
    at = len(AEDAT31) + 28
    invalid[at] &= 0xFE
    (tmp_path / "a.aedat").write_bytes(bytes(invalid))
    assert len(event_files.read_aedat31(tmp_path / "a.aedat")) == 304


def good_files(folder: Path) -> dict[str, tuple[Callable[..., object], Path]]:
    """Write one good file of every format: name -> (reader, path)."""
    e = events(60, 30, until=100_000)
    write_bin(folder / "a.bin", e)
    write_aedat2(folder / "a2.aedat", e)
    (folder / "a3.aedat").write_bytes(AEDAT31 + packet(e))
    np.save(folder / "a.npy", np.stack([e["x"], e["y"], e["p"], e["t"] // 1000], axis=1).astype(float))
    (folder / "labels.csv").write_text("class,startTime_usec,endTime_usec\n1,5,900\n11,900,2000\n")
    (folder / "a.dat").write_bytes(bytes(range(8)) * 4)
    np.savez(folder / "a.npz", spk=np.ones((2, 4, 4), dtype=np.uint8), label=3)
    return {
        "bin": (lambda path: event_files.read_aer_bin(path, size=(34, 34)), folder / "a.bin"),
        "aedat2": (formats.read_events, folder / "a2.aedat"),
        "aedat31": (event_files.read_aedat31, folder / "a3.aedat"),
        "npy": (lambda path: event_files.read_npy_events(path, size=(128, 128)), folder / "a.npy"),
        "csv": (event_files.read_gesture_labels, folder / "labels.csv"),
        "dat": (lambda path: read_spike_dat(path, height=8, width=8), folder / "a.dat"),
        "npz": (read_spike_npz, folder / "a.npz"),
        "aedat4": (event_files.read_aedat4, folder / "a4.aedat4"),
    }


FORMATS = ("bin", "aedat2", "aedat31", "npy", "csv", "dat", "npz", "aedat4")


@pytest.mark.parametrize("name", FORMATS)
def test_missing_empty_and_foreign_files_are_one_clear_error(name: str, tmp_path: Path) -> None:
    read, path = good_files(tmp_path)[name]
    if name != "aedat4":
        read(path)
    path.unlink(missing_ok=True)
    with pytest.raises(ArtefactError, match=path.name):
        read(path)
    for content in (
        b"",
        b"<!DOCTYPE html><html>404</html>",
        b"\x00",
        b"\xff" * 63,
        b"#" * 64,
        b"PK\x03\x04" + bytes(8),
    ):
        path.write_bytes(content)
        if name == "dat" and content and len(content) % 8 == 0:
            continue  # any bytes are spikes
        with pytest.raises(ArtefactError, match=path.name):
            read(path)


@pytest.mark.parametrize("name", ("bin", "aedat2", "aedat31", "npy", "npz"))
def test_a_file_cut_short_is_an_error_or_a_shorter_recording(name: str, tmp_path: Path) -> None:
    read, path = good_files(tmp_path)[name]
    whole = path.read_bytes()
    refused = 0
    for length in range(0, len(whole), 17):
        path.write_bytes(whole[:length])
        try:
            read(path)
        except ArtefactError:
            refused += 1
    assert refused >= len(whole) / 17 * 0.7


@pytest.mark.parametrize("name", ("bin", "aedat2", "aedat31", "npy", "csv", "npz"))
def test_flipped_bytes_never_give_another_error(name: str, tmp_path: Path) -> None:
    read, path = good_files(tmp_path)[name]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            read(path)
        except ArtefactError as error:
            assert path.name in str(error)


@pytest.mark.parametrize(
    ("number", "capacity", "width"),
    [(-1, 5, 8), (9, 5, 8), (5, 2**31 - 1, 8), (5, 5, 0), (5, 5, -8), (5, 5, 12)],
)
def test_packets_that_lie_are_refused(number: int, capacity: int, width: int, tmp_path: Path) -> None:
    head = struct.pack("<hhiiiiii", 1, 0, width, 4, 0, capacity, number, number)
    (tmp_path / "a.aedat").write_bytes(AEDAT31 + head + bytes(60))
    with pytest.raises(ArtefactError, match=r"a\.aedat"):
        event_files.read_aedat31(tmp_path / "a.aedat")


def test_dvs_gesture_is_cut_by_its_labels_and_split_by_its_lists(tmp_path: Path) -> None:
    root = tmp_path / "DvsGesture"
    root.mkdir()
    for user in ("user01_led", "user02_led", "user24_led"):
        e = events(400, 128, until=4_000_000)
        (root / f"{user}.aedat").write_bytes(AEDAT31 + packet(e))
        (root / f"{user}_labels.csv").write_text(
            "class,startTime_usec,endTime_usec\n1,0,2000000\n3,2000000,4000000\n"
        )
    (root / "trials_to_train.txt").write_text("user01_led.aedat\nuser02_led.aedat\n")
    (root / "trials_to_test.txt").write_text("user24_led.aedat\n")
    data = DvsGesture(steps=4)
    test = data.load("test", root=tmp_path)
    assert test.y.tolist().count(0) == test.y.tolist().count(2) == 1
    assert test.x.shape == (2, 4, 2, 32, 32)
    inside = (e["t"] >= 2_000_000) & (e["t"] < 3_500_000)
    cells = {
        ((t - 2_000_000) // 375_000, p, y // 4, x // 4)
        for x, y, t, p in zip(*(e[name][inside].tolist() for name in "xytp"), strict=True)
    }
    assert int(test.x[test.y == 2].sum()) == len(cells)
    train, validation = data.load("train", root=root), data.load("validation", root=root)
    assert len(train) + len(validation) == 4
    assert not set(train.ids.tolist()) & set(validation.ids.tolist()) & set(test.ids.tolist())
    (root / "trials_to_test.txt").write_text("../../etc/passwd\n")
    with pytest.raises(ArtefactError, match="trials_to_test"):
        data.load("test", root=root)


def test_dvs_gesture_is_read_from_tonics_cut_too(tmp_path: Path) -> None:
    e = events(50, 128, until=1_500_000)
    table = np.stack([e["x"], e["y"], e["p"], e["t"] // 1000], axis=1).astype(float)
    folder = tmp_path / "ibmGestureTest" / "user24_led"
    folder.mkdir(parents=True)
    np.save(folder / "7.npy", table)
    test = DvsGesture().load("test", root=tmp_path)
    assert test.y.tolist() == [7] and test.x.sum() > 30
    np.save(folder / "11.npy", table)
    with pytest.raises(ArtefactError, match="below 11"):
        DvsGesture().load("test", root=tmp_path)


def test_cifar10_dvs_keeps_the_last_tenth_of_each_class_for_testing(tmp_path: Path) -> None:
    for name in Cifar10Dvs.names:
        for number in range(12):
            e = events(20 + number, 128, until=1_000_000)
            write_aedat2(tmp_path / name / f"cifar10_{name}_{number}.aedat", e)
    data = Cifar10Dvs()
    test = data.load("test", root=tmp_path)
    assert sorted(test.ids.tolist()) == [1000 * label + 11 for label in range(10)]
    assert torch.equal(test.ids // 1000, test.y)
    others = torch.cat([data.load("train", root=tmp_path).ids, data.load("validation", root=tmp_path).ids])
    assert len(others.unique()) == 110 and not set(others.tolist()) & set(test.ids.tolist())


@pytest.mark.parametrize("name", ("nmnist", "dvs_gesture", "cifar10_dvs"))
def test_event_sets_say_when_there_is_nothing_to_read(name: str, tmp_path: Path) -> None:
    data = registry("datasets").get(name)
    with pytest.raises(ArtefactError, match="--data"):
        data.load("test")
    with pytest.raises(ArtefactError):
        data.load("test", root=tmp_path)
    with pytest.raises(ConfigError, match="side"):
        registry("datasets").get(name, side=5)


def test_n_mnist_splits_keep_the_published_numbers() -> None:
    root = shared("NMNIST")
    data = NMnist()
    test = data.load("test", root=root)
    assert sorted(test.ids.tolist()) == list(range(60_000, 60_100, 2))
    assert test.y.bincount().tolist() == [2, 7, 3, 7, 6, 2, 6, 9, 1, 7]
    assert set(test.x.unique().tolist()) == {0.0, 1.0}
    train, validation = data.load("train", root=root.parent), data.load("validation", root=root.parent)
    assert sorted(train.ids.tolist() + validation.ids.tolist()) == list(range(600))


def test_spike_camera_streams_match_their_sharp_image() -> None:
    folder = shared("spike_camera") / "reds_base"
    io = pytest.importorskip("skimage.io")
    stream = read_spike_dat(next(folder.glob("spike/*.dat")))
    assert stream.shape == (101, 250, 400) and set(np.unique(stream)) == {0, 1}
    image = io.imread(next(folder.glob("gt/*.png")))
    grey = image.mean(axis=2) if image.ndim == 3 else image
    rate = stream[30:71].mean(axis=0)
    assert np.corrcoef(rate.ravel(), grey.ravel())[0, 1] > 0.95


def test_labelled_spike_captures_become_frames() -> None:
    stream, label = read_spike_npz(shared("spike_camera") / "uhsr.npz")
    assert stream.shape == (200, 250, 250) and label == 47
    assert abs(stream.mean() - 0.0314) < 5e-5
    frames = spike_frames(stream, steps=4, size=(50, 50))
    assert frames.shape == (4, 1, 50, 50)
    assert frames[1, 0, 2, 3] == stream[50:100, 10:15, 15:20].any()
    with pytest.raises(ConfigError, match="cannot make"):
        spike_frames(stream, steps=201, size=(50, 50))


def test_the_n_mnist_victim_reads_more_than_nine_of_ten_test_samples() -> None:
    test = NMnist().load("test", root=shared("NMNIST"))
    victim = load_victim("lif_cnn.nmnist")
    check_victim(victim, test.x)
    with torch.no_grad():
        assert int((victim.logits(test.x).argmax(dim=1) == test.y).sum()) > 45


def test_blank_lines_a_byte_order_mark_and_no_heading_are_no_fault_of_a_label_file(tmp_path: Path) -> None:
    path = tmp_path / "u_labels.csv"
    for text in (
        "class,startTime_usec,endTime_usec\r\n1,1,100\r\n\r\n3,200,300\r\n  \r\n",
        "\ufeffclass,startTime_usec,endTime_usec\n1,1,100\n3,200,300",
        "1,1,100\n3,200,300\n",
    ):
        path.write_bytes(text.encode())
        assert event_files.read_gesture_labels(path) == [(0, 1, 100), (2, 200, 300)]
    path.write_text("class,start,end\n1,1,100\n\nx,200,300\n")
    with pytest.raises(ArtefactError, match="line 4"):
        event_files.read_gesture_labels(path)


def gestures(root: Path, scale: float, first: float) -> Path:
    home = root / "ibmGestureTest/user24_led"
    home.mkdir(parents=True)
    for k in range(11):
        np.save(home / f"{k}.npy", np.array([[1, 2, 1, first * scale], [3, 4, 1, (first + 900) * scale]]))
    return root


def test_a_recording_without_an_event_in_its_window_is_refused(tmp_path: Path) -> None:
    data = registry("datasets").get("dvs_gesture")
    assert (data.load("test", root=gestures(tmp_path / "ms", 1, 20)).x.flatten(1).sum(dim=1) > 0).all()
    with pytest.raises(ArtefactError, match=r"no event in the first 1.5 s .*unit"):
        data.load("test", root=gestures(tmp_path / "late", 1, 2000))
    with pytest.raises(ArtefactError, match="Are they microseconds"):
        data.load("test", root=gestures(tmp_path / "us", 1000, 0))
    path = tmp_path / "Test/3/00001.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes([0, 240, 0, 0, 0]) * 3)
    with pytest.raises(ArtefactError, match="0 events in all"):
        registry("datasets").get("nmnist").load("test", root=tmp_path)
