"""Every command and code block of the README, as printed.

Blocks run in a folder of their own, with `robustspike` installed, in the order of the page where they say so.
`pip install` installs without the network: what is asked for beside the package itself is there already.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from robustspike.bench.cli import robustspike as group
from tests.support.readme import Block
from tests.support.readme import blocks
from tests.support.readme import inline_commands

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BLOCKS = blocks(README)

NOT_RUN = {"robustspike download": "fetches files"}
"""Commands that no test runs, and why; they are only parsed."""


def is_front(block: Block) -> bool:
    """The two commands that .ci/run runs in a fresh environment, the second one being this test suite."""
    return block.kind == "shell" and block.section == "Two commands"


def typed(words: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind == "shell" and words in block.text]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a reader: robustspike, pip and pytest of a virtual environment on the path."""
    venv = tmp_path_factory.mktemp("readme") / "venv"
    make = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", venv]
    subprocess.run(make, check=True)
    here = next(venv.glob("lib/python*/site-packages"))
    lines = [f"import site; site.addsitedir({p!r})" for p in sys.path if "site-packages" in p]
    (here / "parent.pth").write_text("\n".join(lines))
    python = venv / "bin" / "python"
    offline = f'"{sys.executable}" -m pip --python "{python}" "$@" --quiet --no-deps --no-build-isolation'
    tools = {
        "robustspike": f'"{python}" -m robustspike.bench.cli "$@"',
        "pytest": f'"{python}" -m pytest "$@"',
        "pip": offline,
    }
    for name, call in tools.items():
        tool = venv / "bin" / name
        tool.write_text(f"#!/bin/sh\nexec {call}\n")
        tool.chmod(0o755)
    return {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def typed_in(block: Block, folder: Path, shell: dict[str, str], *, fine: tuple[int, ...] = (0,)) -> str:
    """Type a block into a shell and return what it printed; every line must end with a fine exit code."""
    script = ["set -u"]
    for line in block.text.splitlines():
        allowed = " && ".join(f'[ "$code" != {code} ]' for code in fine)
        script += [line, "code=$?", f'if {allowed}; then echo "exit code $code" >&2; exit 1; fi']
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env=shell, capture_output=True, text=True
    )
    assert done.returncode == 0, f"README.md:{block.line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_block_is_of_a_kind_that_a_test_here_runs() -> None:
    known = {"shell", "python", "toml"}
    assert {block.kind for block in BLOCKS} <= known
    run = [
        *typed("robustspike list"),
        *typed("leaderboard/results "),
        *typed("cd my_attack"),
        *typed("--plugin"),
    ]
    run += typed("net.py:make")
    rest = [b for b in BLOCKS if b.kind == "shell" and b not in run]
    rest = [block for block in rest if not is_front(block)]
    assert all(line.startswith(tuple(NOT_RUN)) for block in rest for line in block.text.splitlines()), rest
    python = [block for block in BLOCKS if block.kind == "python"]
    assert len(python) == 2 and python[1].text.startswith("# my_attack.py\n")


def test_the_two_commands_are_those_that_ci_runs() -> None:
    (front,) = filter(is_front, BLOCKS)
    steps = [step.strip() for line in front.text.splitlines() for step in line.split("#")[0].split("&&")]
    script = (ROOT / ".ci" / "run").read_text()
    assert steps == ["pip install .", "robustspike run", "pip install '.[test]'", "pytest"]
    for step in steps:
        assert step.replace("pip install", "pip install --quiet") in script or f"\n{step}" in script, step


def commands_of(block: Block) -> list[list[str]]:
    """Return the words of every command of ours in a shell block."""
    found = []
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            found.append(words[:end])
            words = words[end + 1 :]
    return [words for words in found if words[:1] == ["robustspike"]]


@pytest.mark.parametrize(
    "words",
    [words for b in BLOCKS if b.kind == "shell" for words in commands_of(b)],
    ids=" ".join,
)
def test_every_printed_command_parses(words: list[str]) -> None:
    parse(words[1], words[2:])


def parse(verb: str, words: list[str]) -> None:
    with click.Context(group) as context:
        found = group.get_command(context, verb)
        assert found is not None, verb
        found.make_context(verb, list(words), parent=context)


def test_commands_in_the_text_exist() -> None:
    found = inline_commands(README)
    assert len(found) > 5
    for _, verb, *words in found:
        if not words or any(word.isupper() for word in words):  # a placeholder: NAME, DIR
            with click.Context(group) as context:
                command = group.get_command(context, verb)
            assert command is not None, verb
            options = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options, (verb, words)
        else:
            parse(verb, words)


def test_the_python_of_the_page_runs(tmp_path: Path, shell: dict[str, str]) -> None:
    block = next(block for block in BLOCKS if block.kind == "python")
    (tmp_path / "page.py").write_text(block.text)
    done = subprocess.run(
        ["python", "page.py"], cwd=tmp_path, env=shell, check=True, capture_output=True, text=True
    )
    assert " of 500 (" in done.stdout


def test_the_attack_of_the_page_is_validated_run_and_packed(tmp_path: Path, shell: dict[str, str]) -> None:
    for block in BLOCKS:
        if block.kind in ("python", "toml") and block.text.startswith("# "):
            name = block.text.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(block.text)
    (commands,) = typed("--plugin my_attack.py")
    out = typed_in(commands, tmp_path, shell)
    assert " 0 failed" in out and "my_attack" in out
    assert (tmp_path / "robustspike-results.zip").is_file()


@pytest.mark.slow
def test_your_attack_on_the_board_in_ten_minutes(tmp_path: Path, shell: dict[str, str]) -> None:
    (commands,) = typed("cd my_attack")
    out = typed_in(commands, tmp_path, shell)
    assert "passed" in out and " confirmed (" in out and "my_attack" in out


@pytest.mark.slow
def test_use_and_the_leaderboard(tmp_path: Path, shell: dict[str, str]) -> None:
    """The page's tour of all verbs, then its commands on the committed board, in one folder."""
    (tmp_path / "leaderboard").mkdir()
    shutil.copytree(ROOT / "leaderboard" / "results", tmp_path / "leaderboard" / "results")
    (tour,) = typed("robustspike list")
    assert "0 failed" in typed_in(tour, tmp_path, shell)
    assert list((tmp_path / "sheets").glob("*.png")) and (tmp_path / "board" / "rows.csv").is_file()
    (board,) = typed("leaderboard/results ")
    out = typed_in(board, tmp_path, shell, fine=(0, 3))  # 3: measured elsewhere, and rounding shows
    assert "refuted" not in out


def test_a_network_of_ones_own_becomes_a_row(tmp_path: Path, shell: dict[str, str]) -> None:
    make = (
        "import foreign_nets, numpy, torch\n"
        "net = foreign_nets.WrittenOut()\n"
        "torch.save({'state_dict': net.state_dict()}, 'best.pth')\n"
        "x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))\n"
        "numpy.savez('test.npz', x=x.numpy(), y=net(x).argmax(1).numpy())\n"
    )
    support = ROOT / "tests" / "support" / "foreign_nets.py"
    (tmp_path / "net.py").write_text(support.read_text() + "\n\ndef make():\n    return WrittenOut()\n")
    paths = {**os.environ, "PYTHONPATH": str(support.parent)}
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, env=paths, check=True)
    (block,) = typed("net.py:make")
    told = typed_in(block, tmp_path, shell)
    assert "linf 2/255" in told and "linf 4/255" in told
    assert "2 found by their spike function" in told
