"""The tutorial as it is printed: its Python runs block after block, its commands parse."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from robustspike.bench.cli import robustspike as group
from tests.support.readme import blocks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"


def test_the_blocks_of_the_tutorial_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("tutorial")
    monkeypatch.setitem(sys.modules, "tutorial", notebook)  # where its dataclass is looked for
    cells = [block for block in blocks(PAGE) if block.kind == "python"]
    assert len(cells) > 5
    for cell in cells:
        code = compile("\n" * cell.line + cell.text, str(PAGE), "exec", dont_inherit=True)
        exec(code, vars(notebook))


def test_the_commands_of_the_tutorial_parse() -> None:
    (shell,) = (block for block in blocks(PAGE) if block.kind == "shell")
    for line in shell.text.splitlines():
        _, verb, *words = shlex.split(line)
        with click.Context(group) as context:
            command = group.get_command(context, verb)
            assert command is not None
            command.make_context(verb, list(words), parent=context)
