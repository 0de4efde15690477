"""Every folder is packaged, and imports are absolute; who may import whom is in pyproject (import-linter)."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("attacks", "bench", "defenses", "leaderboard", "victims")


def test_imports_are_absolute() -> None:
    for path in (file for part in PARTS for file in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"


def test_every_package_folder_is_listed_for_installation() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(config["tool"]["setuptools"]["packages"])
    folders = {
        "robustspike." + ".".join(p.parent.relative_to(ROOT).parts)
        for part in PARTS
        for p in (ROOT / part).rglob("*.py")
    }
    assert folders == listed
