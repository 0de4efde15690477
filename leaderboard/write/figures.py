"""Figures for papers: one SVG file each, with its legend, fonts left to the reader. No script.

Robust accuracy over eps where a row was measured at several, and success over the budget of an attack where
tables have such curves. Only what was measured is a point; the lines between points are to guide the eye.
"""

from __future__ import annotations

import html
import textwrap
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pandas as pd

from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.text import with_defense
from robustspike.leaderboard.write.curves import BOTTOM
from robustspike.leaderboard.write.curves import COLOURS
from robustspike.leaderboard.write.curves import DASHES
from robustspike.leaderboard.write.curves import HEIGHT
from robustspike.leaderboard.write.curves import LEFT
from robustspike.leaderboard.write.curves import RIGHT
from robustspike.leaderboard.write.curves import TOP
from robustspike.leaderboard.write.curves import WIDTH
from robustspike.leaderboard.write.curves import charts

LINE = 16
SIGN = 6.2
"""Pixels of a line of text, and about those of a character."""

WORST = "worst_case"
"""Column of the share that survives every attack of a table, with _low and _high beside it."""


@dataclass(frozen=True)
class Point:
    """What is known of one row at one eps.

    Args:
        eps: the bound; 0 without attack.
        share: robust accuracy; low, high: its 95 % interval. All in [0, 1].
    """

    eps: Fraction
    share: float
    low: float
    high: float


def figures(sections: Sequence[Section]) -> dict[str, str]:
    """Return every figure that the tables allow, by title."""
    found = {}
    for title, lines in over_eps(sections).items():
        found[title] = _framed(title, _eps_chart(lines), _legend({n: _style(i) for i, n in enumerate(lines)}))
    for section in sections:
        if len(section.curves):
            drawn = charts(section)
            for name, chart in drawn.figures:
                title = f"Success over budget: {name}, {section.title}"
                known = {label: str(style) for label, style in drawn.key if f"<title>{label}<" in chart}
                found[title] = _framed(title, str(chart), _legend(known))
    return found


def over_eps(sections: Sequence[Section]) -> dict[str, dict[str, list[Point]]]:
    """Return the curves of rows that were measured under one threat model at several eps.

    Returns: title -> row -> its points from eps 0 (no attack) on.
    """
    boards: dict[str, dict[str, dict[Fraction, Point]]] = defaultdict(lambda: defaultdict(dict))
    for section in sections:
        threat = section.first.threat
        if threat.eps is None or WORST not in section.frame.columns:
            continue
        title = f"Robust accuracy over eps: {section.title.replace(f' {threat.eps}', '', 1)}"
        for _, row in section.frame.iterrows():
            points = boards[title][with_defense(row)]
            points[Fraction(0)] = _point(Fraction(0), row, "clean")
            points[threat.eps] = _point(threat.eps, row, WORST)
    found = {}
    for title, rows in boards.items():
        lines = {name: [own[eps] for eps in sorted(own)] for name, own in rows.items() if len(own) > 2}
        if lines:
            found[title] = lines
    return found


def _point(eps: Fraction, row: pd.Series[Any], name: str) -> Point:
    return Point(eps, *(float(row[column]) for column in (name, f"{name}_low", f"{name}_high")))


def _style(number: int) -> str:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    style = f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="1.6"'
    return style + (f' stroke-dasharray="{dash}"' if dash else "")


def _eps_chart(lines: Mapping[str, Sequence[Point]]) -> str:
    measured = sorted({point.eps for points in lines.values() for point in points})
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent / 100)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e3e7ee"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>')
    for eps in measured:
        x, floor = _x(eps, measured[-1]), HEIGHT - BOTTOM
        parts.append(f'<path d="M{x:.1f} {TOP}V{floor + 4}" stroke="#e3e7ee"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{eps}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">eps (0: no attack)</text>')
    parts.append(
        f'<text transform="translate(11 {_y(0.5):.0f}) rotate(-90)" text-anchor="middle">'
        "robust accuracy (%), 95 % intervals</text>"
    )
    for number, (name, points) in enumerate(lines.items()):
        style, solid = _style(number), _style(number % len(COLOURS))
        places = [(_x(point.eps, measured[-1]), point) for point in points]
        path = "L".join(f"{x:.1f} {_y(point.share):.1f}" for x, point in places)
        bars = "".join(f"M{x:.1f} {_y(point.low):.1f}V{_y(point.high):.1f}" for x, point in places)
        parts.append(f'<path d="M{path}" {style}><title>{html.escape(name)}</title></path>')
        parts.append(f'<path d="{bars}" {solid} opacity="0.55"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{_y(p.share):.1f}" r="2.4" {solid}/>' for x, p in places]
    return f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'


def _x(eps: Fraction, largest: Fraction) -> float:
    return LEFT + float(eps / largest) * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _legend(styles: Mapping[str, str]) -> list[str]:
    return [
        f'<path d="M0 {LINE * number + 9}h26" {style}/>'
        f'<text x="32" y="{LINE * number + 13}">{html.escape(name)}</text>'
        for number, (name, style) in enumerate(styles.items())
    ]


def _framed(title: str, chart: str, legend: Sequence[str]) -> str:
    """Put a chart between its title and its legend: a whole SVG file on white."""
    lines = _wrapped(title, round((WIDTH - LEFT) / SIGN))
    top = LINE * len(lines) + 8
    height = top + HEIGHT + LINE * len(legend) + 12
    head = "".join(
        f'<text x="{LEFT}" y="{LINE * (n + 1)}" font-weight="bold">{html.escape(line)}</text>'
        for n, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11" fill="#1b2433">'
        f'<title>{html.escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>{head}'
        f'<g transform="translate(0 {top})">{chart}</g>'
        f'<g transform="translate({LEFT} {top + HEIGHT + 4})">{"".join(legend)}</g></svg>\n'
    )


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]
