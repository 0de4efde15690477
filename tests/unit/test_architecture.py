"""The arrows of the architecture: who may import whom, and that every folder is packaged."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("attacks", "bench", "defenses", "leaderboard", "victims")

ALLOWED = {
    "attacks": ("robustspike.bench.api", "robustspike.attacks"),
    "defenses": ("robustspike.bench.api", "robustspike.defenses"),
    "victims": ("robustspike.bench.api", "robustspike.victims"),
    "bench": ("robustspike.bench", "robustspike.leaderboard"),
    "leaderboard": (
        "robustspike.leaderboard",
        "robustspike.bench.records",
        "robustspike.bench.flags",
        "robustspike.bench.stats",
        "robustspike.bench.errors",
        "robustspike.bench.contracts",
    ),
}


def imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith("robustspike")]


@pytest.mark.parametrize("part", PARTS)
def test_imports_follow_the_arrows(part: str) -> None:
    for path in (ROOT / part).rglob("*.py"):
        for name in imports(path):
            allowed = any(name == a or name.startswith(a + ".") for a in ALLOWED[part])
            assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_only_the_command_line_imports_the_leaderboard() -> None:
    for path in (ROOT / "bench").rglob("*.py"):
        if "cli" not in path.parts:
            assert not any(n.startswith("robustspike.leaderboard") for n in imports(path)), path


def test_every_package_folder_is_listed_for_installation() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(config["tool"]["setuptools"]["packages"])
    folders = {
        "robustspike." + ".".join(p.parent.relative_to(ROOT).parts)
        for part in PARTS
        for p in (ROOT / part).rglob("*.py")
    }
    assert folders == listed
