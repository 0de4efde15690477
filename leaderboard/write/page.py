"""The leaderboard as a page, and a second one that says how to read it. Nothing is fetched by either."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from collections.abc import Sequence
from functools import cache
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
    """Return the leaderboard as a page: a board for each threat model, and a card for each row.

    Without a script all boards stand one under the other. With it one is shown; it is sorted and filtered,
    and what is shown is kept in the address.

    Args:
        sections: the tables.
        about: the lines that say how the records were made.
        components: what the registry says of attacks, defenses and victims, for their cards.
        pictures: by key of a record, attacked inputs as addresses ("data:image/png;base64,...").
    """
    ids = anchors(sections)
    known = cards.payload(sections, ids, components, pictures)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            about=about,
            reading=READING,
            groups=_groups(sections, ids),
            boards=[_board(section, anchor) for section, anchor in zip(sections, ids, strict=True)],
            published=published(),
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
        name = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-") or "board"
        again = sum(other == name or other.rpartition("--")[0] == name for other in found)
        found.append(f"{name}--{again + 1}" if again else name)
    return found


def _groups(sections: Sequence[Section], ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return (anchor, name) of the boards of every data set."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section, anchor in zip(sections, ids, strict=True):
        name = section.first.threat.label if section.kind.by else section.kind.name
        again = "--" in anchor
        name += f" ({anchor.rpartition('--')[2]})" if again else ""
        found.setdefault(section.first.dataset, []).append((anchor, name))
    return found


def _board(section: Section, anchor: str) -> dict[str, Any]:
    tables = section.tables()
    ranked = bool(section.kind.by)
    return {
        "id": anchor,
        "title": section.title,
        "protocol": section.protocol,
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
