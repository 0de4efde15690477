"""The command line, called in this process (importing torch anew for every call takes seconds)."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from robustspike.bench.cli import main


@dataclass
class Done:
    """What a call of the command line did."""

    returncode: int
    stdout: str
    stderr: str


def robustspike(*args: object, cwd: Path) -> Done:
    """Call the command line in this process, in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["robustspike", *map(str, args)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        main()
    assert isinstance(stopped.value.code, int)
    return Done(stopped.value.code, out.getvalue(), err.getvalue())
