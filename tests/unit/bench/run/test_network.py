"""From a function and a checkpoint to a row: the verbs evaluate and inspect on a network from outside."""

from __future__ import annotations

from pathlib import Path

import click.testing
import numpy as np
import pytest
import torch

from robustspike.bench.api import ContractError
from robustspike.bench.api import registry
from robustspike.bench.cli import main
from robustspike.bench.record.store import Store
from robustspike.bench.record.store import record_folders
from robustspike.bench.run.network import Request
from robustspike.bench.run.network import build_network
from robustspike.bench.run.network import look

SOURCE = '''"""Mine."""
from __future__ import annotations
import torch
from torch import nn


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (1 - u.abs()).clamp(min=0)


class Net(nn.Module):
    def __init__(self, wide=32):
        super().__init__()
        self.a, self.b = nn.Linear(64, wide), nn.Linear(wide, 10)

    def forward(self, x):
        v, out = 0.0, 0.0
        for _ in range(4):
            v = 0.5 * v + self.a(x.flatten(1))
            s = Step.apply(v - 1.0)
            v = v * (1 - s)
            out = out + self.b(s)
        return out / 4


def make():
    return Net()
'''
DATA = registry("datasets").get("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: net.py, best.pth of a data-parallel training loop, data.npz."""
    home = tmp_path_factory.mktemp("user")
    (home / "net.py").write_text(SOURCE)
    network = build_network(f"{home / 'net.py'}:make")
    train, test = DATA.load("train"), DATA.load("test")
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(train.x), train.y).backward()
        optimiser.step()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"epoch": 80, "state_dict": state}, home / "best.pth")
    np.savez(home / "data.npz", x=test.x.numpy()[:60], y=test.y.numpy()[:60])
    np.savez(home / "shifted.npz", x=test.x.numpy()[:60], y=(test.y.numpy()[:60] + 1) % 10)
    np.savez(home / "from_one.npz", x=test.x.numpy()[:60], y=test.y.numpy()[:60] + 1)
    return home


def call(*arguments: str) -> tuple[int, str]:
    """Run the command line; return its exit code and everything that it printed."""
    import contextlib
    import io
    import sys

    told, before = io.StringIO(), sys.argv
    sys.argv = ["robustspike", *arguments]
    code: object = 0
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
        finally:
            sys.argv = before
    return int(code or 0), told.getvalue()  # type: ignore[call-overload]


def test_inspect_says_what_was_found_and_what_would_be_refused(folder: Path) -> None:
    code, told = call(
        "inspect", f"{folder}/net.py:make", "--checkpoint", f"{folder}/best.pth",
        "--data", f"{folder}/data.npz", "--steps", "4",
    )  # fmt: skip
    assert code == 0, told
    assert "the prefix 'module.' is taken off" in told
    assert "1 found by their spike function" in told
    assert "chance is 10.0 %" in told and "nJ a sample" in told
    assert "refused: bptr, cba, rga" in told


def test_evaluate_writes_a_row_that_verifies_and_is_measured_once(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (
        "evaluate", f"{folder}/net.py:make", "--checkpoint", f"{folder}/best.pth",
        "--data", f"{folder}/data.npz", "--steps", "4", "--eps", "1/20,1/10",
        "--attack", "pgd.linf", "--attack", "pgd.linf(estimator=pdsg)",
        "--name", "mine", "--defense-name", "careful", "--out", str(out), "--jobs", "1",
    )  # fmt: skip
    code, told = call(*arguments)
    assert code == 0, told
    records = [Store(out).read(folder.name) for folder in record_folders(out)]
    assert len(records) == 5
    assert {(r.victim, r.defense) for r in records} == {("mine", "careful")}
    assert {r.dataset.partition("-")[0] for r in records} == {"data"}
    assert {r.threat.label for r in records} == {"linf 1/20", "linf 1/10", "linf 1"}
    assert "careful" in (out / "leaderboard.md").read_text()
    plugins = [part for path in out.glob("*.py") for part in ("--plugin", str(path))]
    code, told = call("verify", str(out), *plugins, "--weights", str(out / "weights"))
    assert code == 0, told
    before = {path: path.stat().st_mtime_ns for path in out.glob("records/*/samples.csv")}
    assert call(*arguments)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("records/*/samples.csv")}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "net.py:mak"}, "no 'mak' there. It has: .*make"),
        ({"target": "none.py:make"}, "no such file"),
        ({"target": "net.py"}, "expected FILE.py:NAME"),
        ({"data": "from_one.npz"}, "likely they start at 1, off by one"),
        ({"data": "nothing.npz"}, "no such file or folder, and no data set of that name"),
        ({"checkpoint": "none.pth"}, "no such file"),
        ({"mean": "0.1,0.2", "std": "1,1"}, "2 values, but inputs .* have 1 channels"),
        ({"time": "repeat"}, "steps of 1 or more"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_likely_cause(
    folder: Path, changed: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    given = {"target": "net.py:make", "data": "data.npz", "checkpoint": "best.pth"} | changed
    options = [part for key, value in given.items() if key != "target" for part in (f"--{key}", value)]
    code, told = call("inspect", given["target"], *options)
    assert code == 2
    import re

    assert re.search(message, told), told
    assert len(told.strip().splitlines()) == 1


def test_accuracy_at_chance_is_told_with_its_cause(folder: Path) -> None:
    target = f"{folder}/net.py:make"
    shifted = look(Request(target, f"{folder}/shifted.npz", folder / "best.pth"))
    assert any("off by one" in line for line in shifted.told)
    untrained = look(Request(target, f"{folder}/data.npz"))
    assert any("no better than chance" in line and "--checkpoint" in line for line in untrained.told)


def test_a_network_of_another_shape_says_so(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", x=np.zeros((4, 1, 9, 9), np.float32), y=np.arange(4))
    with pytest.raises(ContractError, match="cannot answer inputs \\[1, 9, 9\\]"):
        look(Request(f"{folder}/net.py:make", str(tmp_path / "large.npz")))


def test_the_verbs_are_listed() -> None:
    from robustspike.bench.cli import robustspike

    told = click.testing.CliRunner().invoke(robustspike, ["--help"]).output
    assert "evaluate" in told and "inspect" in told
