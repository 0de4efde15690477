"""The blocks of a Markdown page that a reader would type: indented commands and fenced code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """One block.

    Args:
        kind: "shell" for indented commands, else the language of the fence.
        section: the heading that it stands under.
        text: its lines, as printed.
        line: the line of the page that it begins on.
    """

    kind: str
    section: str
    text: str
    line: int

    @property
    def name(self) -> str:
        """How a test is named."""
        return f"{self.line}-{self.kind}-{re.sub('[^a-z]+', '-', self.section.lower())}"


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order; every fenced or indented line is in one."""
    found: list[Block] = []
    section, kind, lines, start = "", "", list[str](), 0
    for number, line in enumerate([*page.read_text("utf-8").splitlines(), ""], start=1):
        if kind and kind != "shell":  # inside a fence
            if line.strip() == "```":
                found.append(Block(kind, section, "\n".join(lines) + "\n", start))
                kind, lines = "", []
            else:
                lines.append(line)
        elif line.startswith("```"):
            kind, start = line.removeprefix("```").strip() or "text", number
        elif line.startswith("    "):
            kind, start = "shell", start if kind else number
            lines.append(line.removeprefix("    "))
        else:
            if kind == "shell":
                found.append(Block(kind, section, "\n".join(lines) + "\n", start))
                kind, lines = "", []
            if line.startswith("#"):
                section = line.lstrip("# ")
    return found


def inline_commands(page: Path) -> list[list[str]]:
    """Return the words of every command of ours between backquotes in the running text."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(found) for found in re.findall(r"`(robustspike [a-z][^`\n]*)`", text)]
