"""The leaderboard as a page, and a second one that says how to read it. Nothing is fetched by either."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from functools import cache
from functools import cached_property
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment
from jinja2 import PackageLoader
from jinja2 import StrictUndefined
from markupsafe import Markup
from markupsafe import escape

from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections.base import IDENTITY
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.write import cards
from robustspike.leaderboard.write.markdown import LEFT_OUT
from robustspike.leaderboard.write.markdown import NOTHING
from robustspike.leaderboard.write.markdown import has_defenses
from robustspike.leaderboard.write.markdown import introductions
from robustspike.leaderboard.write.markdown import legend

READING = "how-to-read.html"
"""Name of the second page, which the first one links to."""

_AS_NUMBER = re.compile(r"(>?[-+]?[\d.]+|-?inf|-|n/a)([ %(\[].*)?|\d+-\d+")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("robustspike.leaderboard.write", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marks"] = _marks
    environment.globals["style"] = Markup(_shipped("page.css"))
    return environment


def _shipped(name: str) -> str:
    return files("robustspike.leaderboard.write").joinpath(name).read_text("utf-8")


def _marks(text: str) -> Markup:
    """Turn *emphasis* and `code` of a line into elements; everything else is escaped."""
    safe = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", safe))


def to_html(
    sections: Sequence[Section],
    about: Sequence[str] = (),
    components: cards.Components = cards.UNKNOWN,
    pictures: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the leaderboard as one page, however large; see `to_pages`."""
    return _page("", {"": _drawn(sections, pictures or {})}, about, components)


def to_pages(
    name: str,
    sections: Sequence[Section],
    about: Sequence[str] = (),
    components: cards.Components = cards.UNKNOWN,
    pictures: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, str]:
    """Return the leaderboard as pages by file name: a board for each threat model, a card for each row.

    Without a script all boards of a page stand one under the other. With it one is shown; it is sorted and
    filtered, and what is shown is kept in the address. Where one page would be larger than `LIMIT`, every
    data set has its own, and where that is larger, every board; a board that is larger alone shows its first
    rows and says so. All pages link to all boards.

    Args:
        name: file name of the first page; the others are called like it, and what they show.
        sections: the tables.
        about: the lines that say how the records were made.
        components: what the registry says of attacks, defenses and victims, for their cards.
        pictures: by key of a record, attacked inputs as addresses ("data:image/png;base64,..."); the limit
            does not count them.
    """
    drawn = _drawn(sections, pictures or {})
    page = _page(name, {name: drawn}, about, components)
    if _size(page, drawn) <= LIMIT or not drawn:
        return {name: page}
    stem, _, suffix = name.rpartition(".")
    found: dict[str, list[_Drawn]] = {}
    of_data: dict[str, list[_Drawn]] = defaultdict(list)
    for board in drawn:
        of_data[board.section.first.dataset].append(board)
    for dataset, own in of_data.items():
        fits = sum(board.size for board in own) <= LIMIT - _SHELL
        for group in [own] if fits else [[board] for board in own]:
            words = _slug(dataset if fits else group[0].anchor)
            title = f"{stem}-{words}.{suffix}" if found else name
            for number in itertools.count(2):
                if title not in found:
                    break
                title = f"{stem}-{words}-{number}.{suffix}"
            found[title] = group
    for group in found.values():
        if len(group) == 1 and group[0].size > LIMIT - _SHELL:
            group[0] = _cut(group[0], pictures or {})
    return {title: _page(title, found, about, components) for title in found}


LIMIT = 300_000
"""Bytes of a page, before its pictures, that are read over a slow line in a few seconds."""

_SHELL = 65_000
"""Of them what is not kept for boards: script, style, words on attacks and victims."""


@dataclass(frozen=True)
class _Drawn:
    """A board, drawn: its part of the page, and what the script knows of it."""

    section: Section
    anchor: str
    html: str
    data: dict[str, Any] | None
    digits: int

    @cached_property
    def size(self) -> int:
        """Bytes on the page, without pictures."""
        script = "" if self.data is None else cards.to_script(self.data)
        return len(self.html.encode()) + len(script.encode()) - self.pictures

    @cached_property
    def pictures(self) -> int:
        """Bytes of its pictures."""
        rows = [] if self.data is None else self.data["rows"]
        return sum(len(picture) for row in rows for picture in row.get("pictures", ()))


def _drawn(sections: Sequence[Section], pictures: Mapping[str, Sequence[str]]) -> list[_Drawn]:
    digits = cards.digits_of(r.key for s in sections for members in s.members.values() for r in members)
    return [
        _draw(section, anchor, pictures, digits)
        for section, anchor in zip(sections, anchors(sections), strict=True)
    ]


def _draw(
    section: Section, anchor: str, pictures: Mapping[str, Sequence[str]], digits: int, left_out: int = 0
) -> _Drawn:
    html = _environment().get_template("board.html.j2").render(board=_board(section, anchor, left_out))
    data = cards.board(section, anchor, pictures, digits) if section.kind.by else None
    return _Drawn(section, anchor, html, data, digits)


def _cut(board: _Drawn, pictures: Mapping[str, Sequence[str]]) -> _Drawn:
    """Return a board with as many of its first rows as fit on a page."""
    rows = len(board.section.frame)
    kept = max(1, int(rows * 0.95 * (LIMIT - _SHELL) / board.size))
    section = replace(board.section, frame=board.section.frame.head(kept))
    return _draw(section, board.anchor, pictures, board.digits, rows - kept)


def _size(page: str, drawn: Sequence[_Drawn]) -> int:
    return len(page.encode()) - sum(board.pictures for board in drawn)


def _page(
    title: str, pages: Mapping[str, Sequence[_Drawn]], about: Sequence[str], components: cards.Components
) -> str:
    """Return one of several pages."""
    front, own = next(iter(pages)), pages[title]
    known = cards.payload([board.section for board in own], components)
    known["boards"] = [board.data for board in own if board.data is not None]
    drawn = [board for boards in pages.values() for board in boards]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            about=about,
            reading=READING,
            front="" if title == front else front,
            pages={b.anchor: "" if p == title else p for p, boards in pages.items() for b in boards},
            groups=_groups([b.section for b in drawn], [b.anchor for b in drawn]),
            boards=[Markup(board.html) for board in own],
            published=published() if title == front else [],
            data=Markup(cards.to_script(known)),
            script=Markup(_shipped("page.js")),
        )
    )


def to_reading(
    sections: Sequence[Section], about: Sequence[str] = (), left_out: Mapping[str, str] = NOTHING
) -> str:
    """Return the page that says how to read the tables (see `to_markdown` for arguments)."""
    columns = {
        name: text
        for section in sections
        for name, text in {**IDENTITY, **section.kind.columns}.items()
        if name != "flags"
    }
    return (
        _environment()
        .get_template("reading.html.j2")
        .render(
            about=about,
            introductions=introductions(sections),
            columns=columns,
            legend=legend(sections),
            left_out_title=LEFT_OUT,
            left_out=left_out if has_defenses(sections) else NOTHING,
        )
    )


def anchors(sections: Sequence[Section]) -> list[str]:
    """Return the anchor of every board, e.g. "digits-linf-1-10"; one that comes again carries a number."""
    found: list[str] = []
    for section in sections:
        words = [section.first.dataset, section.first.threat.label]
        words += [] if section.kind.by else [section.kind.name]
        name = _slug(" ".join(words)) or "board"
        again = sum(other == name or other.rpartition("--")[0] == name for other in found)
        found.append(f"{name}--{again + 1}" if again else name)
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _groups(sections: Sequence[Section], ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return (anchor, name) of the boards of every data set."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section, anchor in zip(sections, ids, strict=True):
        name = section.first.threat.label if section.kind.by else section.kind.name
        again = "--" in anchor
        name += f" ({anchor.rpartition('--')[2]})" if again else ""
        found.setdefault(section.first.dataset, []).append((anchor, name))
    return found


def _board(section: Section, anchor: str, left_out: int) -> dict[str, Any]:
    tables = section.tables()
    ranked = bool(section.kind.by)
    return {
        "id": anchor,
        "title": section.title,
        "protocol": section.protocol,
        "rows_left_out": left_out,
        "main": _main(section, tables[0]) if ranked else None,
        "more": [_plain(t) for t in tables[1 if ranked else 0 :] if not t.by_attack],
    }


def _main(section: Section, table: Table) -> dict[str, Any]:
    """Return the main table: the headline first, each row with its bar and whether a flag costs its rank."""
    named = [table.headers.index(name) for name in table.first if name not in ("rank", "victim", "defense")]
    taken = {*named, *(table.headers.index(name) for name in ("rank", "victim", "defense"))}
    order = [*named, *(place for place in range(len(table.headers)) if place not in taken)]
    bars = _bars(section)
    place = {name: table.headers.index(name) for name in ("rank", "victim", "defense")}
    return {
        "headers": [table.headers[p] for p in order],
        "numeric": _numeric(table, order),
        "rows": [
            {
                "rank": row[place["rank"]],
                "name": row[place["victim"]],
                "defense": row[place["defense"]],
                "cells": [row[p] for p in order],
                "bar": bar,
                "flagged": row[place["rank"]] == "-",
            }
            for row, bar in zip(table.rows, bars, strict=True)
        ],
    }


def _numeric(table: Table, order: Sequence[int]) -> list[bool]:
    return [all(_AS_NUMBER.fullmatch(row[p]) for row in table.rows) for p in order]


def _plain(table: Table) -> dict[str, Any]:
    order = list(range(len(table.headers)))
    return {
        "title": table.headers[0],
        "headers": table.headers,
        "rows": table.rows,
        "numeric": _numeric(table, order),
    }


def _bars(section: Section) -> list[str]:
    """Return the interval of each row's figure as places on a scale from 0 to 100; "" for none."""
    column = section.kind.by[0][0]
    frame = section.frame
    ends = frame[[f"{column}_low", column, f"{column}_high"]].astype(float)
    top = 1.0 if cards.is_share(column) else _largest(ends)
    found = []
    for low, value, high in ends.itertuples(index=False):
        if math.isnan(value):
            found.append("")
            continue
        low, high = (value if math.isnan(end) else end for end in (low, high))
        found.append(" ".join(f"{100 * min(max(v / top, 0.0), 1.0):.0f}" for v in (low, value, high)))
    return found


def _largest(ends: pd.DataFrame) -> float:
    finite = [v for v in ends.to_numpy().ravel() if math.isfinite(v)]
    return max([v for v in finite if v > 0], default=1.0)


def published() -> list[dict[str, str]]:
    """Return the figures that others published, as they stand in published.csv."""
    text = files("robustspike.leaderboard").joinpath("published.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))
