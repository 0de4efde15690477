"""Every folder is packaged, imports are absolute, and the picture of the rooms is that of the contracts.

Who may import whom is in pyproject, for import-linter.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("attacks", "bench", "defenses", "leaderboard", "victims")


def config() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def layers() -> list[str]:
    """Return the floors of bench/, from the top down."""
    contracts = config()["importlinter"]["contracts"]
    (rooms,) = (c for c in contracts if c.get("containers") == ["robustspike.bench"])
    found: list[str] = rooms["layers"]
    return found


def picture() -> str:
    """Draw the rooms, floor by floor, from the contracts."""
    floors = [[room.strip() for room in floor.split("|")] for floor in layers()]
    width = 58
    parts = "attacks/    defenses/    victims/".center(width)
    lines = [
        f"{parts}    leaderboard/",
        f"{'|'.center(width)}         |",
        f"{'bench/api only'.center(width)}   record, numbers, ...",
    ]
    lines += ["", "+" + "-" * width + "+"]
    for floor in floors:
        lines += ["|" + "      ".join(floor).center(width) + "|", "+" + "-" * width + "+"]
    return "\n".join(line.rstrip() for line in lines)


def test_the_picture_shows_the_rooms_of_the_contracts() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"```text\n(.*?)\n```", text, re.DOTALL)
    assert drawn == picture()


def test_every_room_is_in_the_table_of_rooms() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in re.findall(r"\w+", " ".join(layers())):
        assert re.search(rf"`bench/{room}(/|\.py)?`", text), room


def test_files_that_the_page_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:bench|leaderboard|tests|docs)/[\w/.]+)`", text):
        assert (ROOT / name).exists() or (ROOT / f"{name}.py").exists(), name


@pytest.mark.parametrize("part", PARTS)
def test_imports_are_absolute(part: str) -> None:
    for path in (ROOT / part).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


@pytest.mark.parametrize("part", PARTS)
def test_editors_find_the_import_root(part: str) -> None:
    """src/robustspike holds a relative link to every part, for checkers and editors."""
    link = ROOT / "src" / "robustspike" / part
    assert link.resolve() == ROOT / part and not link.readlink().is_absolute()


@pytest.mark.slow
def test_pyright_resolves_every_import_of_ours_from_a_clone() -> None:
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed: pip install pyright")
    found = json.loads(
        subprocess.run([pyright, "--outputjson", *PARTS], cwd=ROOT, capture_output=True, text=True).stdout
    )
    assert found["summary"]["filesAnalyzed"] > 200
    assert not [d for d in found["generalDiagnostics"] if "robustspike" in d["message"]]


def test_every_package_folder_is_listed_for_installation() -> None:
    folders = {
        "robustspike." + ".".join(p.parent.relative_to(ROOT).parts)
        for part in PARTS
        for p in (ROOT / part).rglob("*.py")
    }
    assert folders == set(config()["setuptools"]["packages"])
