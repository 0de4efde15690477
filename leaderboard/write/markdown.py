"""The leaderboard as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

from tabulate import tabulate

from robustspike.bench.record.flags import FLAGS
from robustspike.bench.record.flags import marked
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.text import Table

LEFT_OUT = "Defenses that are not implemented, and why"

NOTHING: Mapping[str, str] = {}

RANKS = (
    "*Ranks* are intervals: every pair of rows of a table is compared on its shared samples by the exact "
    "sign test, Holm-corrected over all pairs of the table (5 % that any pair is told apart wrongly). A "
    "row's rank runs from one more than the rows that are significantly better to the number of rows less "
    "those significantly worse, widened until rows of equal figure share it and no two rows that the test "
    "does not separate exclude each other. A flag marked ! costs its row the rank. Brackets are 95 % "
    "intervals. Rows stand for a victim, a defense and one set of weights: two nets of one name carry the "
    "first digits of their weights' sha256."
)


def introductions(sections: Sequence[Section]) -> list[str]:
    """Return what a reader must know about the tables, a paragraph each."""
    found = [text for section in sections for text in section.kind.introductions(section)]
    return [*dict.fromkeys(found), RANKS]


def has_defenses(sections: Sequence[Section]) -> bool:
    """Say whether a section has a defended victim."""
    return any((s.frame["defense"] != "none").any() for s in sections)


def to_markdown(
    sections: Sequence[Section], about: Sequence[str] = (), left_out: Mapping[str, str] = NOTHING
) -> str:
    """Return the leaderboard as Markdown: how it was made, tables a section, the meaning of flags.

    Args:
        sections: the tables.
        about: the lines that say how the records were made.
        left_out: defenses that are not implemented, and why; shown where defenses are compared.
    """
    made = [f"- Measured by `{line.replace('`', '')}`" for line in about]
    parts = ["# Leaderboard", "", *made, *([""] if made else [])]
    for text in introductions(sections):
        parts += [text, ""]
    for section in sections:
        parts += [f"## {section.title}", "", section.protocol, ""]
        for table in section.tables():
            parts += [table_text(table), ""]
    parts += ["## Flags in these tables", "", *(f"- {line}" for line in legend(sections)), ""]
    if left_out and has_defenses(sections):
        parts += [f"## {LEFT_OUT}", "", *(f"- {name}: {why}." for name, why in left_out.items()), ""]
    return "\n".join(parts)


def table_text(table: Table) -> str:
    """Return one table as Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    if table.best is not None:
        best = table.best
        rows = [[*row[:best], f"**{row[best]}**", *row[best + 1 :]] for row in rows]
    text: str = tabulate(rows, headers=table.headers, tablefmt="github", disable_numparse=True)
    return text


def legend(sections: Sequence[Section]) -> list[str]:
    """Explain every flag that the sections raise, a line each."""
    seen = sorted({flag for s in sections for flags in s.frame["flags"] for flag in flags.split()})
    if not seen:
        return ["None was raised."]
    advice = {name: FLAGS[name].advice[0].upper() + FLAGS[name].advice[1:] for name in seen}
    return [f"`{marked(name)}`: {FLAGS[name].meaning}. {advice[name]}." for name in seen]
