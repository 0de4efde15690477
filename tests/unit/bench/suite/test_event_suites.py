"""The suites of published event data: planned on the files they name; what is missing is told."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robustspike.bench import suites
from robustspike.bench.api import ConfigError
from robustspike.bench.record.store import Store
from robustspike.bench.record.store import record_folders
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.training.weights import file_stem
from robustspike.bench.training.weights import variant
from tests.support.commands import Done
from tests.support.commands import robustspike
from tests.support.moving_bars import write_cifar10_dvs
from tests.support.moving_bars import write_gestures


def gestures(root: Path) -> None:
    for part in ("Train", "Test"):
        place = root / "DvsGesture" / f"ibmGesture{part}" / "user01_led"
        place.mkdir(parents=True)
        for label in range(11):
            np.save(place / f"{label}.npy", np.array([[1.0, 2, 1, 0], [100, 90, 0, 900]]))


def cifar10dvs(root: Path) -> None:
    from robustspike.bench.data.events.event_sets import Cifar10Dvs

    for name in Cifar10Dvs.names:
        (root / "CIFAR10DVS" / name).mkdir(parents=True)
        for number in range(20):
            (root / "CIFAR10DVS" / name / f"cifar10_{name}_{number}.aedat").write_bytes(b"#!AER-DAT2.0\r\n")


@pytest.mark.parametrize(
    ("name", "write", "samples"), [("dvs_gesture", gestures, 11), ("cifar10_dvs", cifar10dvs, 20)]
)
def test_a_suite_plans_with_its_files_and_weights(
    name: str, write: object, samples: int, tmp_path: Path
) -> None:
    assert callable(write)
    write(tmp_path)
    (tmp_path / f"{file_stem(variant(f'vggsnn.{name}', 'none', 0))}.safetensors").touch()
    plan = make_plan(read_suite(name), root=tmp_path, weights=tmp_path)
    assert not plan.not_applicable
    assert {cell.samples for cell in plan.cells} == {samples}
    assert {cell.threat.geometry for cell in plan.cells} == {"l0", "retime_l0", "sensor"}


@pytest.mark.parametrize("name", ["dvs_gesture", "cifar10_dvs"])
def test_without_weights_the_line_that_trains_them_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"robustspike train vggsnn\.{name} --data DIR --seed 0 --out WEIGHTS"
    ):
        make_plan(read_suite(name), root=tmp_path, weights=tmp_path)


def test_a_folder_of_recordings_is_checked_as_a_data_set(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in ("a", "b"):
            place = tmp_path / "own" / part / label
            place.mkdir(parents=True)
            for number in range(4):
                rng = np.random.default_rng(number + 10 * (part == "test") + 100 * (label == "b"))
                t = np.sort(rng.integers(0, 50_000, 100))
                x, y, p = (rng.integers(0, most, 100) for most in (12, 12, 2))
                np.savez(place / f"{number}.npz", x=x, y=y, t=t, p=p)
            (place / ".DS_Store").write_bytes(b"junk")
            (place / "._0.npz").write_bytes(b"junk")
    refused = robustspike("validate", "own", cwd=tmp_path)
    assert refused.returncode == 2 and "robustspike validate \"recordings(folder='own')\"" in refused.stderr
    checked = robustspike("validate", "recordings(folder='own', sensor=(12, 12))", cwd=tmp_path)
    assert checked.returncode == 0 and ", 0 failed" in checked.stdout, checked.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "classes"),
    [("dvs_gesture", write_gestures, 11), ("cifar10_dvs", write_cifar10_dvs, 10)],
)
def test_a_suite_runs_from_the_files_to_its_table_as_its_header_says(
    name: str, write: Callable[[Path, int], None], classes: int, tmp_path: Path
) -> None:
    """The shipped suite, every attack of it, on a narrow net: 32x32 frames keep it short."""
    write(tmp_path, 8)
    text = (Path(suites.__file__).parent / f"{name}.toml").read_text()
    params = f'params = {{ widths = [4, 8, 8], dataset = "{name}(steps=4, side=32)" }}'
    victim = f'[[victims]]\nname = "vggsnn.{name}"'
    assert text.count(victim) == 1
    (tmp_path / "narrow.toml").write_text(text.replace(victim, f"{victim}\n{params}"))

    def run(*more: str) -> Done:
        return robustspike("run", "narrow.toml", "--samples", "4", "--jobs", "1", *more, cwd=tmp_path)

    untrained = run("--data", str(tmp_path))
    assert untrained.returncode == 2 and "has no weights" in untrained.stderr
    told = untrained.stderr.partition("Train it first: robustspike ")[2].partition(", then pass")[0]
    train = [{"DIR": str(tmp_path), "WEIGHTS": "w"}.get(word, word) for word in shlex.split(told)]
    nowhere = robustspike(*(word for word in train if word not in ("--data", str(tmp_path))), cwd=tmp_path)
    assert nowhere.returncode == 2 and "--data" in nowhere.stderr
    trained = robustspike(*train, "--epochs", "40", "--lr", "0.2", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    without = run("--weights", "w")
    assert without.returncode == 2 and "--data DIR" in without.stderr
    done = run("--data", str(tmp_path), "--weights", "w", "--out", "out")
    assert done.returncode == 0, done.stderr
    found = [Store(tmp_path / "out").read(f.name) for f in record_folders(tmp_path / "out")]
    assert {record.threat.geometry for record in found} == {"l0", "retime_l0", "sensor"}
    assert {record.attack for record in found} >= {"sda.l0", "scg.l0", "rounded_pgd.l0", "retime.greedy"}
    assert not any(record.errors for record in found)
    sda = next(record for record in found if record.attack == "sda.l0")
    assert sda.counts["clean"] > 4 / classes and sda.counts["broken"] == sda.counts["clean"]
