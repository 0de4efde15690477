"""A run says how far it is: on a terminal by a bar, elsewhere by a plain line now and then."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustspike.bench.cli.progress import Plain
from robustspike.bench.cli.progress import clock
from robustspike.bench.cli.progress import progress
from robustspike.bench.cli.run import command
from robustspike.bench.run.run import Tick
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan

SMALL = """
samples = 6
shard = 3
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "noise"
"""


def test_a_line_says_elapsed_remaining_and_the_cell_that_runs(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SMALL)
    (cell,) = make_plan(read_suite(str(tmp_path / "suite.toml"))).cells
    seconds, said = [0.0], list[str]()
    plain = Plain(7, verbose=True, say=said.append, now=lambda: seconds[0])
    assert plain.line() == "0:00 elapsed, 7 cells: looking up what is measured, checking victims"
    seconds[0] = 4
    plain.on_start(cell)
    assert plain.line() == "0:04 elapsed; running lif_cnn.digits + none: noise, linf 1/10"
    seconds[0] = 14
    plain.on_tick(Tick(91, 100, cell))  # 90 were there: one in ten seconds
    assert plain.line().startswith("0:14 elapsed, 91/100 shards, about 1:30 left; running lif_cnn")
    assert said == ["done 91/100: lif_cnn.digits + none: noise, linf 1/10"]


def test_lines_come_in_the_first_second_and_again_while_nothing_is_done() -> None:
    said, enough = list[str](), threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            enough.set()

    with Plain(1, every=0.01, say=say).told():
        assert enough.wait(30)
    assert said[0].startswith("0:00 elapsed, 1 cells")
    count = len(said)
    assert not threading.Event().wait(0.05) and len(said) == count


def test_lengths_of_time() -> None:
    assert [clock(s) for s in (0, 59.9, 61, 3599, 3600, 36061)] == [
        "0:00", "0:59", "1:01", "59:59", "1:00:00", "10:01:01",
    ]  # fmt: skip


@pytest.mark.parametrize(("terminal", "expected"), [(False, Plain), (True, None)])
def test_a_bar_is_for_terminals_alone(
    terminal: bool, expected: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with progress(3) as watcher:
        assert isinstance(watcher, Plain) is (expected is Plain)
    with progress(3, verbose=True) as watcher:
        assert isinstance(watcher, Plain)
    with progress(3, quiet=True) as watcher:
        assert not isinstance(watcher, Plain)


@pytest.mark.parametrize(("option", "lines"), [(("-v",), 2), (("-q",), 0)])
def test_a_run_says_more_or_nothing_as_asked(tmp_path: Path, option: tuple[str, ...], lines: int) -> None:
    (tmp_path / "suite.toml").write_text(SMALL)
    arguments = [str(tmp_path / "suite.toml"), "--out", str(tmp_path / "out"), "--jobs", "1", *option]
    done = CliRunner().invoke(command, [*arguments, "--device", "cpu"], catch_exceptions=False)
    told = [line for line in done.stderr.splitlines() if "elapsed" in line or line.startswith("done ")]
    assert len(told) >= lines if lines else not told
    assert "lif_cnn.digits" in done.stdout
