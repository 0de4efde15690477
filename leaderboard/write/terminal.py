"""Tables for a terminal: a row is a line, and columns that do not fit are left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from robustspike.leaderboard.text import Table

GAP = "  "

_NUMBERS = re.compile(r"[-+\d.,:%/()\[\]> ]*(inf|nan|n/a)?[-+\d.,:%/()\[\]> ]*")


def fits(table: Table, width: int | None) -> bool:
    """Say whether a line of a table with all of its columns is at most so wide (None: any width)."""
    return width is None or _total(_widths(table), range(len(table.headers))) <= width


def lines(table: Table, width: int | None) -> tuple[list[str], list[str]]:
    """Return a table as lines, and the headings of the columns that were left out.

    The columns that the table names first are taken as long as they fit, then the others from the left; the
    ones before the second that it names (a rank and a victim, say) always stand. No cell is cut.

    Args:
        table: what to show.
        width: characters of a line; None for as many as it takes.
    """
    widths = _widths(table)
    named = [table.headers.index(name) for name in table.first]
    order = [*named, *(place for place in range(len(widths)) if place not in named)]
    kept = order[: max(1, min(3, len(named)))]
    for place in order[len(kept) :]:
        if width is None or _total(widths, [*kept, place]) <= width:
            kept.append(place)
    kept.sort()
    right = {place for place in kept if all(_NUMBERS.fullmatch(row[place]) for row in table.rows)}

    def line(cells: Sequence[str]) -> str:
        padded = (
            cells[place].rjust(widths[place]) if place in right else cells[place].ljust(widths[place])
            for place in kept
        )
        return GAP.join(padded).rstrip()

    dropped = [head for place, head in enumerate(table.headers) if place not in kept]
    return [line(table.headers), *map(line, table.rows)], dropped


def _widths(table: Table) -> list[int]:
    return [
        max(len(head), *(len(row[place]) for row in table.rows), 0)
        for place, head in enumerate(table.headers)
    ]


def _total(widths: Sequence[int], places: Sequence[int] | range) -> int:
    return sum(widths[place] for place in places) + len(GAP) * (len(places) - 1)
