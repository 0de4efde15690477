"""robustspike list KIND."""

from __future__ import annotations

import fnmatch
import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

import click

from robustspike.bench.cli.options import parse_only

_KINDS = ("victims", "attacks", "defenses", "certifiers", "datasets", "estimators", "geometries", "suites")

LEAST_ABOUT = 24
"""Characters of a description below which it says nothing: the column is then left out."""

_GAP = 2
_GO_FIRST = (
    "from",
    "nJ",
    "domain",
    "access",
    "adaptive attack",
    "clean on test",
    "classes",
    "data",
    "about",
    "T",
)
"""Columns in the order in which they make room in a narrow terminal."""


@click.command("list")
@click.argument("kind", type=click.Choice(_KINDS))
@click.option("--family", help="Only victims of families that match, e.g. timing.")
@click.option("--data", help="Only victims on data sets that match, e.g. 'digits*'.")
@click.option("--only", multiple=True, metavar="COLUMN=GLOB", help="Only rows whose COLUMN matches.")
@click.option("--wide", is_flag=True, help="Every column in full, whatever the width of the terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    kind: str, family: str | None, data: str | None, only: tuple[str, ...], wide: bool, as_json: bool
) -> None:
    """List what is registered, with who brought it; for defenses also what is not implemented, and why.

    Patterns of one column mean either; a column of several values (geometry) matches by any of them.
    """
    rows = suites() if kind == "suites" else components(kind)
    asked = parse_only(only)
    asked += [(column, glob) for column, glob in (("family", family), ("data", data)) if glob is not None]
    rows = _matching(rows, asked)
    omitted = [] if asked else left_out(kind)
    if as_json:
        click.echo(json.dumps(rows + omitted, indent=1))
        return
    width = None if wide else shutil.get_terminal_size((120, 24)).columns
    _print(rows, width)
    if omitted:
        click.echo(f"\nNot implemented, and why ({len(omitted)}):\n")
        for one in omitted:
            text = f"{one['name']}: {one['left_out']}"
            click.echo(textwrap.fill(text, width or len(text), subsequent_indent="    "))


def _matching(rows: list[dict[str, Any]], asked: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the rows that match. Raises: ConfigError: there is no such column, or nothing matches."""
    from robustspike.bench.contract.suggest import did_you_mean
    from robustspike.bench.errors import ConfigError

    by_column: dict[str, list[str]] = {}
    for column, glob in asked:
        if column not in rows[0]:
            hint = did_you_mean(column, rows[0])
            raise ConfigError(f"list: no column '{column}' here.{hint} Columns: {', '.join(rows[0])}.")
        by_column.setdefault(column, []).append(glob)
    found = [row for row in rows if all(_matches(row[c], globs) for c, globs in by_column.items())]
    if not found:
        column, glob = asked[0]
        values = sorted({value for row in rows for value in str(row[column]).split(", ")})
        hint = did_you_mean(glob, values)
        raise ConfigError(f"list: nothing matches {' '.join(f'{c}={g}' for c, g in asked)}.{hint}")
    return found


def _matches(value: Any, globs: Sequence[str]) -> bool:
    values = [str(value), *str(value).split(", ")]
    return any(one == glob or fnmatch.fnmatchcase(one, glob) for one in values for glob in globs)


def left_out(kind: str) -> list[dict[str, Any]]:
    """Describe what the registered packages leave out: {"name", "left_out": the reason}."""
    from robustspike.bench.contract.registry import registry

    known = {} if kind == "suites" else registry(kind).left_out()
    return [{"name": name, "left_out": reason} for name, reason in known.items()]


def _print(rows: list[dict[str, Any]], width: int | None) -> None:
    """Print one line a row; columns that do not fit are left out, descriptions cut, names never."""
    texts = [{column: str(value) for column, value in row.items()} for row in rows]
    sizes = {column: max(len(column), *(len(row[column]) for row in texts)) for column in texts[0]}
    dropped = _shrink(sizes, width)
    for number, row in enumerate([{column: column for column in sizes}, *texts]):
        line = (" " * _GAP).join(_cut(row[c], size).ljust(size) for c, size in sizes.items()).rstrip()
        click.echo(line if number else click.style(line, bold=True))
    if dropped:
        click.echo(f"also {', '.join(dropped)}: robustspike list ... --wide", err=True)


def _shrink(sizes: dict[str, int], width: int | None) -> list[str]:
    """Make columns fit a width, in place; returns those that are left out."""
    dropped = []
    for column in (None, *_GO_FIRST):
        if column in sizes:
            dropped.append(column)
            del sizes[column]
        if width is None or sum(sizes.values()) + _GAP * (len(sizes) - 1) <= width:
            break
        room = width - sum(size for c, size in sizes.items() if c != "about") - _GAP * (len(sizes) - 1)
        if "about" in sizes and room >= LEAST_ABOUT:
            sizes["about"] = room
            break
    return dropped


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 3].rstrip()}..."


def suites() -> list[dict[str, Any]]:
    """Describe the shipped suites."""
    from robustspike.bench.suite.file import read_suite
    from robustspike.bench.suite.file import shipped_suites

    found = [read_suite(name) for name in shipped_suites()]
    return [
        {"name": s.name, "version": s.version, "samples": s.samples, "about": s.description} for s in found
    ]


def components(kind: str) -> list[dict[str, Any]]:
    """Describe every registered component of a kind in one line."""
    from robustspike.bench.cli.catalogue import row
    from robustspike.bench.contract.registry import registry

    return [row(kind, name) for name in registry(kind).names()]
