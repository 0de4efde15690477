"""Completion in a real shell: verbs and names of components, without importing any of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def completed(tmp_path: Path, *words: str) -> list[str]:
    """Press the tab key in bash after `robustspike WORDS...`, the last one being begun."""
    tool = tmp_path / "robustspike"
    tool.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "from robustspike.bench.cli import main; main()" "$@"\n'
    )
    tool.chmod(0o755)
    line = " ".join(f"'{word}'" for word in ("robustspike", *words))
    script = (
        'eval "$(robustspike completion bash)"\n'
        f"COMP_WORDS=({line}); COMP_CWORD={len(words)}\n"
        '_robustspike_completion robustspike\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    paths = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=paths, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pict"], ["pictures"]),
        (["show", "sapgd"], ["sapgd.linf"]),
        (["train", "lif_cnn.digits", "--defense", "mppd"], ["mppd", "mppd_gaussian"]),
        (["run", "qui"], ["quick"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_verbs_and_names_are_completed(tmp_path: Path, words: list[str], expected: list[str]) -> None:
    assert completed(tmp_path, *words) == expected


def test_completing_a_name_imports_no_torch() -> None:
    code = (
        "import sys; from robustspike.bench.cli import robustspike; import robustspike.bench.cli.show as s\n"
        "found = s.command.params[0].shell_complete(None, 'lif_cnn.d')\n"
        "assert any(one.value == 'lif_cnn.digits' for one in found), found\n"
        "assert 'torch' not in sys.modules and 'robustspike.victims.direct.lif_cnn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
