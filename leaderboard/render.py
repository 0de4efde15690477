"""Tables to CSV and Markdown. Percent, rounding and bold happen here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from robustspike.bench.flags import FLAGS
from robustspike.leaderboard.table import COLUMNS
from robustspike.leaderboard.table import Section

SORT_KEYS = ("worst_case", "clean", "asr", "propagations", "victim", "defense")


def sort_sections(sections: Sequence[Section], key: str) -> list[Section]:
    """Return the sections with rows sorted by a column (best first; names A to Z)."""
    ascending = key in ("victim", "defense", "asr", "propagations")
    return [
        Section(
            s.title, s.task, s.frame.sort_values(key, ascending=ascending, kind="stable", ignore_index=True)
        )
        for s in sections
    ]


def to_csv(sections: Sequence[Section]) -> str:
    """Return one CSV of all sections: shares in [0, 1] with 6 digits, one column per attack."""
    frames = []
    for section in sections:
        frame = section.frame.copy()
        frame.insert(0, "section", section.title)
        frames.append(frame)
    if not frames:
        return ""
    whole = pd.concat(frames, ignore_index=True)
    whole["rank"] = whole["rank"].astype("Int64")
    fixed = ["section", *COLUMNS]
    attacks = sorted(c for c in whole.columns if c not in fixed)
    ordered = [c for c in fixed if c != "flags"] + attacks + ["flags"]
    text: str = whole[ordered].to_csv(index=False, float_format="%.6f", lineterminator="\n")
    return text


def percent(value: float) -> str:
    """Return a share as a percentage with one decimal; a dash where it was not measured."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def display(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells of a section's main table for people; shares in percent."""
    headers = ["rank", "victim", "defense", "clean", "worst case [95 %]", "ASR", "strongest attack"]
    headers += ["passes", "flags"]
    rows = []
    for _, row in frame.iterrows():
        worst = f"{percent(row['worst_case'])} [{percent(row['low'])}, {percent(row['high'])}]"
        rows.append(
            [
                "-" if pd.isna(row["rank"]) else str(int(row["rank"])),
                str(row["victim"]),
                str(row["defense"]),
                percent(row["clean"]),
                worst,
                percent(row["asr"]),
                _strongest(row),
                f"{row['propagations']:.0f}",
                str(row["flags"]).replace(" ", ", ") or "none",
            ]
        )
    return headers, rows


def _strongest(row: pd.Series[Any]) -> str:
    shares = {str(c).removeprefix("acc:"): row[c] for c in row.index if str(c).startswith("acc:")}
    measured = {label: share for label, share in shares.items() if not math.isnan(share)}
    if not measured:
        return "-"
    label = min(sorted(measured), key=measured.__getitem__)
    return f"{label} ({percent(measured[label])})"


def by_attack(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return the accuracy under each attack: one line per attack, one column per victim and defense."""
    attacks = [c for c in frame.columns if c.startswith("acc:")]
    names = [
        row["victim"] + ("" if row["defense"] == "none" else f" + {row['defense']}")
        for _, row in frame.iterrows()
    ]
    headers = ["accuracy under", *names]
    return headers, [[c.removeprefix("acc:"), *(percent(v) for v in frame[c])] for c in attacks]


def to_markdown(sections: Sequence[Section]) -> str:
    """Return the leaderboard as Markdown: one table a section, then the meaning of columns and flags."""
    parts = ["# Leaderboard", ""]
    parts += [
        "Accuracy in percent. *Worst case*: a sample counts only if it survives every attack of the table.",
        "Rows share a rank where a paired sign test cannot separate them (p < 0.05); flagged rows have none.",
        "",
    ]
    for section in sections:
        headers, rows = display(section.frame)
        rows = [[*row[:4], f"**{row[4]}**", *row[5:]] for row in rows]
        parts += [f"## {section.title}", ""]
        parts += [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
        headers, rows = by_attack(section.frame)
        parts += [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
    parts += ["## Flags in these tables", "", *_legend(sections), ""]
    return "\n".join(parts)


def _legend(sections: Sequence[Section]) -> list[str]:
    seen = sorted({flag for s in sections for flags in s.frame["flags"] for flag in flags.split()})
    if not seen:
        return ["None was raised."]
    return [f"- `{name}`: {FLAGS[name].meaning}. {FLAGS[name].advice.capitalize()}." for name in seen]
