"""A network on event counts, from outside: recordings and files of frames, the verdict, budgets, refusals."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.store import Store
from robustspike.bench.record.store import record_folders
from tests.support.commands import Done
from tests.support.commands import robustspike

SOURCE = """
import torch
from torch import nn
from spikingjelly.activation_based import layer, neuron


def make():
    T = {"step_mode": "m"}
    net = nn.Sequential(layer.Flatten(**T), layer.Linear(32, 2, bias=False, **T), neuron.LIFNode(**T))
    with torch.no_grad():  # class 0 fires when the upper half has more events, class 1 when the lower has
        half = torch.tensor([0.3] * 8 + [-0.3] * 8)
        net[1].weight.copy_(torch.stack([half, -half]).repeat(1, 2))
    return net
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: net.py, recordings of SpikingJelly's layout, and the same frames as one file."""
    home = tmp_path_factory.mktemp("counts")
    (home / "net.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    frames, labels = [], []
    for part in ("train", "test"):
        for label in range(2):
            folder = home / "recordings" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(4):
                n = 60
                t = np.sort(rng.integers(0, 90_000, n))
                x, p = rng.integers(0, 4, n), rng.integers(0, 2, n)
                own = rng.permutation(np.arange(n) % 20 < 14)  # of 20 events 14 are in the half of the class
                y = rng.integers(0, 2, n) + 2 * np.where(own, label, 1 - label)
                np.savez(folder / f"{number}.npz", t=t, x=x, y=y, p=p)
                counts = np.zeros((3, 2, 4, 4), dtype=np.int32)
                np.add.at(counts, (np.arange(n) // 20, p, y, x), 1)
                frames.append(counts)
                labels.append(label)
    np.savez(home / "frames.npz", frames=np.stack(frames), labels=np.array(labels))
    np.savez(home / "scaled.npz", frames=np.stack(frames) / 3, labels=np.array(labels))
    return home


def evaluated(home: Path, data: str, *more: str) -> Done:
    name = "frames" if data.endswith("frames.npz") else "other"
    return robustspike(
        "evaluate", f"{home}/net.py:make", "--data", data, "--name", name, "--out", str(home / name),
        "--jobs", "1", "--samples", "4", *more, cwd=home,
    )  # fmt: skip


def records(folder: Path) -> list[CellRecord]:
    return [Store(folder).read(found.name) for found in record_folders(folder)]


def test_the_verdict_on_recordings_counts_the_events_of_the_nearest_example(home: Path) -> None:
    data = f"recordings(folder='{home}/recordings', steps=3, sensor=(4, 4), counts=16)"
    done = evaluated(home, data)
    assert done.returncode == 0, done.stderr
    found = {record.attack: record for record in records(home / "other")}
    assert set(found) == {"autoattack.spikes", "count.random"}
    assert {record.threat.label for record in found.values()} == {"count_l1 min"}
    assert found["autoattack.spikes"].counts["broken"] == 4
    plugins = [part for path in (home / "other").glob("*.py") for part in ("--plugin", str(path))]
    done = robustspike("verify", "other", *plugins, "--weights", "other/weights", cwd=home)
    assert done.returncode == 0 and "2 confirmed" in done.stdout, done


def test_flips_ternary_gradients_and_retiming_run_on_a_file_of_frames(home: Path) -> None:
    attacks = {
        "sda.l0": "count_l0",
        "scg.l0": "count_l0",
        "retime.pgd": "retime_l0",
        "retime.pil": "retime_l0",
    }
    given = [part for name in attacks for part in ("--attack", name)]
    done = evaluated(home, f"{home}/frames.npz", *given, "--eps", "90")
    assert done.returncode == 0, done.stderr
    found = {record.attack: record for record in records(home / "frames")}
    assert {name: record.threat.geometry for name, record in found.items()} == attacks
    assert not any(record.errors for record in found.values())
    assert found["sda.l0"].counts["robust"] == 0 < found["sda.l0"].counts["clean"]


def test_a_geometry_is_chosen_by_name(home: Path) -> None:
    before = {record.key for record in records(home / "frames")}
    more = ("--attack", "retime.pil", "--attack", "retime.pgd", "--geometry", "retime_linf", "--eps", "1,2")
    done = evaluated(home, f"{home}/frames.npz", *more)
    assert done.returncode == 0, done.stderr
    labels = [record.threat.label for record in records(home / "frames") if record.key not in before]
    assert sorted(labels) == ["retime_linf 1", "retime_linf 1", "retime_linf 2", "retime_linf 2"]


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ("frames", ("--attack", "retime.pil"), "retime.pil: needs a budget.*'retime_l0'.*Give --eps"),
        ("frames", ("--attack", "sparse_rs"), "sparse_rs: is for the geometry l0 .*'events'.*sda.l0"),
        ("frames", ("--attack", "sda.l0", "--geometry", "retime_l1"), "geometry is retime_l1.*retime.greedy"),
        ("scaled", (), "no whole counts; expected 0, 1, 2"),
        ("folder", (), "holds train/ and test/.*recordings\\(folder="),
        ("unquoted", (), "Put a path in quotes"),
    ],
)
def test_what_does_not_fit_counts_is_one_line_that_says_what_to_use(
    home: Path, data: str, more: tuple[str, ...], message: str
) -> None:
    given = {
        "frames": f"{home}/frames.npz",
        "scaled": f"{home}/scaled.npz",
        "folder": f"{home}/recordings",
        "unquoted": f"recordings(folder={home}/recordings)",
    }[data]
    done = evaluated(home, given, *more)
    assert done.returncode == 2 and re.search(message, done.stderr.strip().splitlines()[-1]), done.stderr
