"""tonic's data sets as ours: its own samples, its own frames, its own folders, and no download."""

from __future__ import annotations

import builtins
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Split
from robustspike.bench.api import registry
from robustspike.bench.data.events import event_files
from robustspike.bench.data.events.event_sets import Cifar10Dvs
from robustspike.bench.data.events.tonic_sets import Tonic
from robustspike.bench.testing.check import run_checks
from robustspike.bench.testing.dataset_checks import DATASET_CHECKS
from robustspike.bench.testing.dataset_checks import DatasetAt
from tests.support.aedat4 import aedat4

tonic = pytest.importorskip("tonic")
h5py = pytest.importorskip("h5py")
pytest.importorskip("aedat")


def columns(n: int, side: int, *, seed: int = 0, until: int = 900_000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.integers(0, side, n),
        "y": rng.integers(0, side, n),
        "t": np.sort(rng.integers(0, until, n)),
        "p": rng.integers(0, 2, n),
    }


def nmnist(root: Path) -> None:
    for part in ("Train", "Test"):
        for label in range(10):
            place = root / "NMNIST" / part / str(label)
            place.mkdir(parents=True)
            for number in range(3):
                c = columns(150, 34, seed=10 * label + number + 100 * (part == "Test"), until=300_000)
                rows = np.stack(
                    [c["x"], c["y"], c["p"] << 7 | c["t"] >> 16, c["t"] >> 8 & 255, c["t"] & 255], axis=1
                )
                (place / f"{number + 1:05}.bin").write_bytes(rows.astype(np.uint8).tobytes())


def gestures(root: Path) -> None:
    for part, users in (("Train", (1, 2, 10)), ("Test", (24,))):
        for user in users:
            place = root / "DVSGesture" / f"ibmGesture{part}" / f"user{user:02}_led"
            place.mkdir(parents=True)
            for label in range(11):
                c = columns(200, 128, seed=20 * user + label)
                np.save(
                    place / f"{label}.npy",
                    np.stack([c["x"], c["y"], c["p"], c["t"] // 1000], axis=1).astype(float),
                )


def cifar10dvs(root: Path) -> None:
    for label, name in enumerate(Cifar10Dvs.names):
        place = root / "CIFAR10DVS" / name
        place.mkdir(parents=True)
        for number in (0, 1, 2, 3, 10):
            c = columns(150, 128, seed=20 * label + number)
            content = aedat4(c["t"] + 1_500_000_000_000_000, c["x"], c["y"], c["p"])
            (place / f"cifar10_{name}_{number}.aedat4").write_bytes(content)


def ncaltech(root: Path) -> None:
    for name in ("airplanes", "ant", "yin_yang"):
        place = root / "NCALTECH101" / "Caltech101" / name
        place.mkdir(parents=True)
        for number in range(3):
            c = columns(150, 100, seed=number, until=300_000)
            rows = np.stack(
                [c["x"] + 3, c["y"], c["p"] << 7 | c["t"] >> 16, c["t"] >> 8 & 255, c["t"] & 255], axis=1
            )
            (place / f"image_{number:04}.bin").write_bytes(rows.astype(np.uint8).tobytes())


def asl(root: Path) -> None:
    io = pytest.importorskip("scipy.io")
    for letter in "ab":
        place = root / "ASLDVS" / letter
        place.mkdir(parents=True)
        for number in range(3):
            c = columns(150, 180, seed=number)
            table = {"ts": c["t"], "x": c["x"], "y": c["y"], "pol": c["p"]}
            io.savemat(place / f"{letter}_{number}.mat", {k: v[:, None] for k, v in table.items()})


def poker(root: Path) -> None:
    for part in ("train", "test"):
        for number, suit in enumerate(("cl", "he", "di", "sp")):
            place = root / "POKERDVS" / f"pips_{part}" / suit
            place.mkdir(parents=True)
            for index in range(2):
                c = columns(100, 35, seed=10 * number + index, until=20_000)
                np.save(place / f"{index}.npy", np.stack([c["t"], c["x"], c["y"], c["p"]], axis=1))


def smnist(root: Path) -> None:
    place = root / "smnist"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        images = rng.integers(0, 256, (20, 784), dtype=np.uint8)
        (place / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, 20, 28, 28) + images.tobytes()
        )
        labels = (np.arange(20) % 10).astype(np.uint8)
        (place / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 20) + labels.tobytes())


def heidelberg(name: str, parts: tuple[str, ...], classes: int) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / name).mkdir(parents=True)
        for number, part in enumerate(parts):
            rng = np.random.default_rng(number)
            with h5py.File(root / name / f"{name.lower()}_{part}.h5", "w") as file:
                for key, kind, most in (("times", "f4", 1.3), ("units", "u2", 699)):
                    rows = file.create_dataset(f"spikes/{key}", (12,), dtype=h5py.vlen_dtype(np.dtype(kind)))
                    for index in range(12):
                        drawn = (
                            np.sort(rng.uniform(0, most, 80)) if key == "times" else rng.integers(0, 700, 80)
                        )
                        rows[index] = drawn.astype(kind)
                file["labels"] = np.arange(12) % 3
                file["extra/keys"] = np.array([b"k"] * classes)
                file["extra/speaker"] = np.zeros(12)

    return write


SETS: dict[str, tuple[Callable[[Path], None], tuple[int, ...], int]] = {
    "NMNIST": (nmnist, (4, 2, 34, 34), 10),
    "DVSGesture": (gestures, (4, 2, 128, 128), 11),
    "CIFAR10DVS": (cifar10dvs, (4, 2, 128, 128), 10),
    "NCALTECH101": (ncaltech, (4, 2, 180, 240), 101),
    "ASLDVS": (asl, (4, 2, 180, 240), 26),
    "POKERDVS": (poker, (4, 2, 35, 35), 4),
    "SMNIST": (smnist, (4, 1, 1, 100), 10),
    "SHD": (heidelberg("SHD", ("train", "test"), 20), (4, 1, 1, 700), 20),
    "SSC": (heidelberg("SSC", ("train", "valid", "test"), 35), (4, 1, 1, 700), 35),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a data set went to the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize("kind", SETS)
def test_every_set_of_tonics_passes_the_checks_of_data_sets(kind: str, tmp_path: Path) -> None:
    write, shape, classes = SETS[kind]
    write(tmp_path)
    data = registry("datasets").get(f"tonic({kind}, steps=4)")
    assert (data.shape, data.classes) == (shape, classes)
    wrong = [o for o in run_checks(DatasetAt(data, tmp_path), DATASET_CHECKS) if o.result != "passed"]
    assert not wrong, wrong


def test_frames_of_fixed_windows_are_those_of_tonics_transform(tmp_path: Path) -> None:
    nmnist(tmp_path)
    frame = tonic.transforms.ToFrame((34, 34, 2), time_window=75_000, start_time=0, end_time=300_000)
    theirs = tonic_samples(tmp_path, "NMNIST", frame)
    ours = Tonic(kind="NMNIST", steps=4, split_by="window", window=75_000).load("test", root=tmp_path)
    assert len(ours) == 30
    for x, y in zip(ours.x.numpy(), ours.y.tolist(), strict=True):
        assert any(label == y and np.array_equal(x, frames > 0) for frames, label in theirs)


def test_counts_are_those_of_tonics_transform_and_no_cell_holds_more_than_is_said(tmp_path: Path) -> None:
    nmnist(tmp_path)
    frame = tonic.transforms.ToFrame((34, 34, 2), n_event_bins=2)
    theirs = tonic_samples(tmp_path, "NMNIST", frame)
    most = max(int(frames.max()) for frames, _ in theirs)
    assert most > 1
    data = Tonic(kind="NMNIST", steps=2, split_by="n_event_bins", counts=most)
    assert (data.domain, data.bounds) == (Domain.EVENTS, (0.0, float(most)))
    ours = data.load("test", root=tmp_path)
    for x, y in zip(ours.x.numpy(), ours.y.tolist(), strict=True):
        assert any(label == y and np.array_equal(x, frames) for frames, label in theirs)
    with pytest.raises(ArtefactError, match=rf"a cell holds {most} events"):
        Tonic(kind="NMNIST", steps=2, split_by="n_event_bins", counts=most - 1).load("test", root=tmp_path)
    with pytest.raises(ConfigError, match="counts"):
        Tonic(kind="NMNIST", counts=-1)


@pytest.mark.parametrize(
    ("split_by", "option"), [("n_event_bins", "n_event_bins"), ("n_time_bins", "n_time_bins")]
)
def test_frames_of_tonics_own_bins_are_those_of_its_transform(
    tmp_path: Path, split_by: Any, option: str
) -> None:
    gestures(tmp_path)
    theirs = tonic_samples(tmp_path, "DVSGesture", tonic.transforms.ToFrame((128, 128, 2), **{option: 7}))
    ours = Tonic(kind="DVSGesture", steps=7, split_by=split_by).load("test", root=tmp_path)
    assert sorted(ours.y.tolist()) == list(range(11))
    for x, y in zip(ours.x.numpy(), ours.y.tolist(), strict=True):
        assert any(label == y and np.array_equal(x, frames > 0) for frames, label in theirs)


def tonic_samples(root: Path, kind: str, frame: Any) -> list[tuple[np.ndarray, int]]:
    """Every test sample as tonic's own class gives it, told that its files are whole."""
    made = type(kind, (getattr(tonic.datasets, kind),), {"_check_exists": lambda self: True})
    data = made(str(root), train=False, transform=frame)
    return [data[index] for index in range(len(data))]


def test_tonics_samples_are_those_of_our_own_readers(tmp_path: Path) -> None:
    nmnist(tmp_path)
    gestures(tmp_path)
    for name, call in (
        ("nmnist", "tonic(NMNIST, steps=8, split_by=window, window=39375)"),
        ("dvs_gesture", "tonic(DVSGesture, steps=8, side=32, split_by=window, window=187500)"),
    ):
        own = (
            registry("datasets")
            .get(name)
            .load("test", root=tmp_path / "DVSGesture" if "dvs" in name else tmp_path)
        )
        theirs = registry("datasets").get(call).load("test", root=tmp_path)
        assert content(own) == content(theirs)


def test_cifar10_dvs_of_tonic_is_split_and_read_as_ours(tmp_path: Path) -> None:
    cifar10dvs(tmp_path)
    own = Cifar10Dvs(steps=4).load("test", root=tmp_path)
    theirs = Tonic(kind="CIFAR10DVS", steps=4, side=32, split_by="window", window=300_000).load(
        "test", root=tmp_path
    )
    assert content(own) == content(theirs) and len(own) == 10
    assert set((own.ids % 1000).tolist()) == {10}  # the last by its number, not by the alphabet


def content(split: Split) -> list[tuple[int, bytes]]:
    return sorted((int(y), x.numpy().tobytes()) for x, y in zip(split.x, split.y, strict=True))


def test_the_first_samples_are_those_of_all_and_no_other_file_is_read(tmp_path: Path) -> None:
    gestures(tmp_path)
    data = Tonic(kind="DVSGesture", steps=4, side=32)
    everything = data.load("test", root=tmp_path)
    read: list[str] = []
    load = np.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "load", lambda path, *a, **k: (read.append(str(path)), load(path, *a, **k))[1])
        first = data.first("test", 3, root=tmp_path)
    assert len(read) == 3 and data.size("test", root=tmp_path) == 11
    assert first.ids.tolist() == everything.ids.tolist()[:3] and bool((first.x == everything.x[:3]).all())


@pytest.mark.parametrize("kind", SETS)
def test_what_is_absent_is_refused_with_the_line_that_downloads(kind: str, tmp_path: Path) -> None:
    data = registry("datasets").get(f"tonic({kind})")
    with pytest.raises(ArtefactError, match="pass --data DIR"):
        data.load("test")
    with pytest.raises(
        ArtefactError, match=rf'python -c "from tonic.datasets import {kind} as D; D\('
    ) as found:
        data.load("test", root=tmp_path)
    assert str(tmp_path) in str(found.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        ("tonic(DvsGesture)", "Did you mean 'DVSGesture'"),
        ("tonic(NCARS)", "has no data set 'NCARS'"),
        ("tonic(MVSEC)", "has no classes"),
        ("tonic(NMNIST, steps=0)", "steps must be at least 1"),
        ("tonic(NMNIST, window=5)", "exactly with split_by=window"),
        ("tonic(NMNIST, NMNIST)", "one bare word"),
        ("tonic(NMNIST, kind=SHD)", "given twice"),
        ("tonic()", "needs a class of tonic's"),
    ],
)
def test_calls_that_name_no_data_set_are_refused(call: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=hint):
        data = registry("datasets").get(call)
        data.load("test", root=tmp_path)
        assert data.classes


@pytest.mark.parametrize(
    "kind", ["NMNIST", "DVSGesture", "CIFAR10DVS", "ASLDVS", "POKERDVS", "SMNIST", "SHD"]
)
def test_damaged_files_are_one_error_or_other_events(kind: str, tmp_path: Path) -> None:
    """Cut short, or with bytes changed: numpy, scipy and h5py raise their own, AEDAT 4's decoder panics."""
    SETS[kind][0](tmp_path)
    data = registry("datasets").get(f"tonic({kind}, steps=4)")
    rng = np.random.default_rng(3)
    suffixes = (".bin", ".npy", ".aedat4", ".mat", ".h5", "-ubyte")
    path = max(
        p for p in tmp_path.rglob("*") if p.is_file() and p.name.endswith(suffixes) and "rain" not in str(p)
    )
    whole = path.read_bytes()
    cuts = [whole[: int(n)] for n in rng.integers(0, len(whole), 6)]
    for _ in range(10):
        changed = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 600), 4):
            changed[at] = rng.integers(0, 256)
        cuts.append(bytes(changed))
    for content in cuts:
        path.write_bytes(content)
        try:
            data.load("test", root=tmp_path)
        except ArtefactError as error:
            assert "\n" not in str(error)


def test_a_gesture_in_microseconds_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "DVSGesture" / "ibmGestureTest" / "user24_led"
    place.mkdir(parents=True)
    np.save(place / "3.npy", np.array([[1, 2, 1, 0], [3, 4, 1, 900_000.0]]))
    with pytest.raises(ArtefactError, match=r"3\.npy: lasts 900 s"):
        Tonic(kind="DVSGesture").load("test", root=tmp_path)


def test_a_broken_tonic_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tonic"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *rest, **more)

    monkeypatch.setattr("importlib.import_module", broken)
    data = registry("datasets").get("tonic(DVSGesture)")
    for read in (
        lambda: data.load("test", root=tmp_path),
        lambda: event_files.read_aedat4(written(tmp_path)),
        lambda: data.shape,
    ):
        with pytest.raises(ArtefactError, match=r"torchvision::nms.*pip install 'robustspike\[events\]'"):
            read()
    assert registry("datasets").get("tonic").shape == ()


def written(folder: Path) -> Path:
    c = columns(250, 128)
    (folder / "a.aedat4").write_bytes(aedat4(c["t"] + 7_000_000, c["x"], c["y"], c["p"]))
    return folder / "a.aedat4"


def test_aedat4_files_are_read_and_a_panic_of_the_decoder_is_an_error(tmp_path: Path) -> None:
    path, c = written(tmp_path), columns(250, 128)
    found = event_files.read_aedat4(path)
    for name in "xyp":
        np.testing.assert_array_equal(found[name], c[name])
    np.testing.assert_array_equal(found["t"], c["t"] - c["t"][0])
    rng = np.random.default_rng(0)
    for _ in range(5):
        path.write_bytes(b"#!AER-DAT4.0\r\n" + struct.pack("<I", 64) + rng.bytes(100))
        with pytest.raises(ArtefactError, match=r"a\.aedat4"):
            event_files.read_aedat4(path)
