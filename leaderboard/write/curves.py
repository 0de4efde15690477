"""Success over budget, drawn: one chart a row, one line an attack. Inline SVG, no script."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from robustspike.bench.contract.specs import Access
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.spikes import TOGETHER

COLOURS = ("#1f4fa8", "#c2410c", "#15803d", "#9333ea", "#0e7490", "#be123c", "#a16207", "#475569")
DASHES = ("", "7 3", "2 2", "9 3 2 3")
"""Solid for the attacks that use gradients; the controls without are dashed."""

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 42, 18, 8, 40


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis of budgets, from a power of ten to the first 1, 2 or 5 above the largest."""

    low: float
    high: float

    def place(self, budget: float) -> float:
        share = math.log(max(budget, self.low) / self.low) / math.log(self.high / self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    @property
    def ticks(self) -> list[float]:
        decades = range(round(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        marks = [m * 10.0**d for d in decades for m in (1, 2, 5)]
        marks = [m for m in marks if self.low <= m <= self.high * (1 + 1e-9)]
        return marks if len(marks) <= 10 else [m for m in marks if math.log10(m) % 1 in (0.0, 1.0)]


def _axis(curves: pd.DataFrame) -> _Axis:
    sizes = curves.loc[curves["budget"] > 0, "budget"]
    low, high = (float(sizes.min()), float(sizes.max())) if len(sizes) else (1.0, 10.0)
    start = 10.0 ** math.floor(math.log10(low))
    decade = 10.0 ** math.floor(math.log10(high))
    end = next(m * decade for m in (1, 2, 5, 10) if m * decade >= high)
    return _Axis(start, max(end, 10 * start))


@dataclass(frozen=True)
class Charts:
    """The drawings of a section.

    Args:
        key: (attack, attributes of its line) for the legend.
        figures: (name of the row, chart) in the order of the table.
    """

    key: tuple[tuple[str, Markup], ...]
    figures: tuple[tuple[str, Markup], ...]


def charts(section: Section) -> Charts:
    """Return the legend and the charts of a section. The axes of all charts are the same."""
    curves = section.curves
    axis = _axis(curves)
    styles = _styles(curves)
    unit = section.reach.unit
    figures = []
    for (name, defense), own in curves.groupby(["name", "defense"], sort=False):
        title = str(name) if defense == "none" else f"{name} + {defense}"
        figures.append((title, Markup(_chart(own, axis, styles, unit))))
    return Charts(
        tuple((label, Markup(style)) for label, style in styles.items()),
        tuple(figures),
    )


def _styles(curves: pd.DataFrame) -> dict[str, str]:
    """Give every attack of a section a colour and a dash of its own, gradient attacks before controls."""
    found = {}
    pairs = curves[["attack", "access"]].drop_duplicates("attack").itertuples(index=False)
    white: list[str] = []
    other: list[str] = []
    for attack, access in sorted(pairs):
        if attack == TOGETHER:
            found[attack] = 'fill="none" stroke="#c5ccd8" stroke-width="7"'
        else:
            (white if access == Access.WHITE else other).append(attack)
    for attacks, dashes in ((white, DASHES[:1] + DASHES[3:]), (other, DASHES[1:3])):
        for place, attack in enumerate(attacks):
            colour = COLOURS[place % len(COLOURS)]
            dash = dashes[place // len(COLOURS) % len(dashes)]
            found[attack] = f'fill="none" stroke="{colour}" stroke-width="1.6"'
            found[attack] += f' stroke-dasharray="{dash}"' if dash else ""
    return found


def _height(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _chart(curves: pd.DataFrame, axis: _Axis, styles: dict[str, str], unit: str) -> str:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = _height(percent / 100)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e3e7ee"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{percent}</text>')
    for tick in axis.ticks:
        x, floor = axis.place(tick), HEIGHT - BOTTOM
        parts.append(f'<path d="M{x:.1f} {TOP}V{floor + 4}" stroke="#e3e7ee"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">budget: {html.escape(unit)}</text>'
    )
    parts.append(
        f'<text transform="translate(11 {_height(0.5):.0f}) rotate(-90)" text-anchor="middle">'
        "success (% of attacked)</text>"
    )
    for attack, style in styles.items():
        own = curves[curves["attack"] == attack]
        if len(own):
            steps = list(zip(own["budget"], own["broken"] / own["attacked"].clip(lower=1), strict=True))
            name = html.escape(str(attack))
            parts.append(f'<path d="{_steps(steps, axis)}" {style}><title>{name}</title></path>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="success over budget">{"".join(parts)}</svg>'
    )


def _steps(steps: Sequence[tuple[float, float]], axis: _Axis) -> str:
    """Return the path of a step curve: flat between budgets, on to the right edge."""
    path = f"M{LEFT} {_height(steps[0][1]):.1f}"
    for budget, share in steps[1:]:
        path += f"H{axis.place(budget):.1f}V{_height(share):.1f}"
    return path + f"H{WIDTH - RIGHT}"
