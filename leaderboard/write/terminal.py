"""Tables for a terminal: a row is a line, and columns that do not fit are left out."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

from robustspike.leaderboard.text import Table

GAP = "  "

_NUMBERS = re.compile(r"[-+\d.,:%/()\[\]> ]*(inf|nan|n/a)?[-+\d.,:%/()\[\]> ]*")


@dataclass(frozen=True)
class Lines:
    """A table as text.

    Args:
        head: the headings, in as many lines as the longest takes.
        rows: a line a row.
        dropped: the headings of the columns that were left out.
    """

    head: list[str]
    rows: list[str]
    dropped: list[str]


def fits(table: Table, width: int | None) -> bool:
    """Say whether a line of a table with all of its columns is at most so wide (None: any width)."""
    return width is None or _total(_widths(table, wrapped=True)) <= width


def lines(table: Table, width: int | None) -> Lines:
    """Return a table as lines.

    Headings are broken into words where not all columns fit. The columns that the table names first are
    taken as long as they fit, then the others from the left; the first three that it names (rank, victim and
    defense, say) always stand. No cell is cut.

    Args:
        table: what to show.
        width: characters of a line; None for as many as it takes.
    """
    whole = _widths(table, wrapped=False)
    widths = whole if width is None or _total(whole) <= width else _widths(table, wrapped=True)
    named = [table.headers.index(name) for name in table.first]
    order = [*named, *(place for place in range(len(widths)) if place not in named)]
    kept = order[: max(1, min(3, len(named)))]
    for place in order[len(kept) :]:
        if width is None or _total(widths[p] for p in [*kept, place]) <= width:
            kept.append(place)
    kept.sort()
    right = {place for place in kept if all(_NUMBERS.fullmatch(row[place]) for row in table.rows)}

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(widths[place]) if place in right else cell.ljust(widths[place])
            for place, cell in zip(kept, cells, strict=True)
        )
        return GAP.join(padded).rstrip()

    heads = [textwrap.wrap(table.headers[place], widths[place]) for place in kept]
    return Lines(
        [line(cells) for cells in itertools.zip_longest(*heads, fillvalue="")],
        [line([row[place] for place in kept]) for row in table.rows],
        [head for place, head in enumerate(table.headers) if place not in kept],
    )


def _widths(table: Table, *, wrapped: bool) -> list[int]:
    """Return the widths of the columns: of the widest cell, or the heading, or its longest word."""
    return [
        max(*map(len, head.split() if wrapped else [head]), *(len(row[place]) for row in table.rows), 1)
        for place, head in enumerate(table.headers)
    ]


def _total(widths: Iterable[int]) -> int:
    known = list(widths)
    return sum(known) + len(GAP) * (len(known) - 1)
