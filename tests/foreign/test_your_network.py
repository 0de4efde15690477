"""Every block of docs/your-network.md runs as it stands, where the library that it needs is installed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch

PAGE = Path(__file__).parents[2] / "docs" / "your-network.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "page"}
    victims = set()
    for number, block in enumerate(BLOCKS):
        needed = re.match(r"# requires: (\w+)", block)
        if needed and importlib.util.find_spec(needed[1]) is None:
            continue
        path = tmp_path / f"block{number}.py"
        path.write_text(block)
        exec(compile(block, str(path), "exec"), names)  # noqa: S102  (a page of ours)
        if "victim" in names:
            victims.add(names["victim"].spec.name)
    assert {"inside", "sj", "stepwise", "per_step", "events", "poisson", "cut", "old"} <= victims
    assert names["result"].errors == 0


def test_the_page_shows_ten_shapes() -> None:
    assert len(re.findall(r"^\*\*\d+\. ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == 10
