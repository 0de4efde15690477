"""Numbers for people. Percent and rounding happen here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table for people.

    Args:
        headers, rows: its cells as text.
        best: the column that the rows are about, shown in bold; None without one.
        first: the columns that a narrow terminal keeps, the most important first; by default those on
            the left.
        by_attack: whether it lists what every attack does to every row, which a page shows row by row.
    """

    headers: list[str]
    rows: list[list[str]]
    best: int | None = None
    first: tuple[str, ...] = ()
    by_attack: bool = False


def percent(value: float) -> str:
    """Return a share as a percentage with one decimal; a dash where it was not measured."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def points(value: float) -> str:
    """Return a difference of shares in percentage points with its sign; a dash where not measured."""
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"


def number(value: float) -> str:
    """Return a distance or ratio with three significant digits or more; a dash where it was not measured."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def figure(value: float, digits: int = 2) -> str:
    """Return a number with a fixed number of decimals; a dash where it was not measured."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def span(row: pd.Series[Any], name: str, digits: int = 1, *, scale: float = 1.0) -> str:
    """Return a figure of a row with its interval; a dash where it was not measured, or has none."""
    value, low, high = (scale * float(row[column]) for column in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(value):
        return "-"
    ends = "[-]" if math.isnan(low) else f"[{figure(low, digits)}, {figure(high, digits)}]"
    return f"{figure(value, digits)} {ends}"


def share(row: pd.Series[Any], name: str) -> str:
    """Return a share of a row in percent with its interval; a dash where it was not measured."""
    return span(row, name, scale=100.0)


def with_defense(row: pd.Series[Any]) -> str:
    """Return the name of a row's victim with its defense."""
    return str(row["name"]) + ("" if row["defense"] == "none" else f" + {row['defense']}")


def turned(corner: str, rows: Sequence[tuple[str, Sequence[str]]], names: Sequence[str]) -> Table:
    """Return a table by attack with a column for each name; turned where those are too many to read."""
    if len(names) <= COLUMNS_THAT_FIT:
        return Table([corner, *names], [[head, *cells] for head, cells in rows], by_attack=True)
    turned_rows = [[name, *(cells[place] for _, cells in rows)] for place, name in enumerate(names)]
    return Table([corner, *(head for head, _ in rows)], turned_rows, by_attack=True)


COLUMNS_THAT_FIT = 7
"""Columns up to which a table of one figure a victim has a column for each of them."""
