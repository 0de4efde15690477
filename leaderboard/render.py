"""Tables to CSV, Markdown and a page. Percent, rounding and bold happen here and nowhere else."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from tabulate import tabulate

from robustspike.bench.record.flags import FLAGS
from robustspike.bench.record.flags import marked
from robustspike.leaderboard import certificates
from robustspike.leaderboard import costs
from robustspike.leaderboard import curves
from robustspike.leaderboard import distances
from robustspike.leaderboard import quality_matched
from robustspike.leaderboard import quality_table
from robustspike.leaderboard import seeds
from robustspike.leaderboard.table import COLUMNS
from robustspike.leaderboard.table import Section

COLUMNS_THAT_FIT = 7
"""Victims up to which the table by attack has a column for each of them, and is printed in the terminal."""

INTRODUCTION = (
    "Accuracy in percent. *Worst case*: a sample counts only if it survives every attack of the table. "
    "*Median distance*: over all attacked samples, the smallest change with which any attack breaks a "
    "sample, failures counted as infinite. *nJ*: synaptic energy of a clean answer (45 nm: 4.6 pJ a MAC, "
    "0.9 pJ an AC, first layer at every step), and its ratio on the broken samples under attack. Brackets "
    "are 95 % intervals. Rows share a rank where a paired sign test cannot separate them (p < 0.05); "
    "a flag marked ! costs its row the rank."
)

QUALITY_INTRODUCTION = (
    "Quality models: SROCC is the rank correlation with (pseudo-)MOS, MAE the mean change of the score under "
    "each image's worst attack, hidden MAE that of attacks nobody sees (SSIM >= 0.99 and PSNR >= 40 dB), "
    "random MAE that of noise of the same size, R the mean log10 of the largest possible change over the "
    "change, on the score range in the title (larger is more robust). *slope*: the true mean change over h = "
    "1/255 along the gradient's sign; |grad|1 of a spiking model is a surrogate's and may fall alone. "
    "Pseudo-MOS is HaarPSI to the undegraded photograph: it says nothing about human opinion, and only ranks "
    "within its own set are comparable."
)

SPIKES_INTRODUCTION = (
    "Attacks alone: *median over all* counts failures as infinite, *median over successes* leaves them out; "
    "spikes added, removed or moved are means over the successes, *of* the spikes of their clean inputs; "
    "passes are per attacked sample. A gradient attack *loses to* a control without gradients that needs "
    "fewer changes, or breaks what it leaves, on significantly more samples than it wins on (p < 0.05)."
)

TARGETED_INTRODUCTION = (
    "*Targeted* sections: success is one given class, drawn for every sample by a hash of its id from all "
    "but its label, the same for all victims, attacks and seeds; any other wrong answer is none."
)

CURVES_NOTE = (
    "Success over budget, every step of every curve: in the `.curves.csv` beside the table's CSV, and drawn "
    "in the page."
)

LEFT_OUT = "Defenses that are not implemented, and why"

NOTHING: Mapping[str, str] = {}

Table = tuple[list[str], list[list[str]]]


def sort_sections(sections: Sequence[Section], key: str) -> list[Section]:
    """Return the sections with rows sorted by a column (best first; names A to Z)."""
    ascending = key in ("victim", "defense", "asr", "propagations")
    return [
        replace(
            s,
            frame=s.frame.sort_values(
                _column(s, key),
                ascending=ascending or (s.kind in ("quality", "visibility") and key == "worst_case"),
                kind="stable",
                ignore_index=True,
            ),
        )
        for s in sections
    ]


def _column(section: Section, key: str) -> str:
    """Return the column of a section that means the same as a column of accuracy tables."""
    if section.kind == "distance":
        return {"worst_case": "median_all", "asr": "success"}.get(key, key)
    if section.kind == "quality":
        return {"worst_case": "mae", "clean": "srocc_clean", "asr": "moved"}.get(key, key)
    if section.kind == "visibility":
        return key if key in ("victim", "defense") else "mae_ssim"
    return key


def to_csv(sections: Sequence[Section]) -> str:
    """Return one CSV of all sections: shares in [0, 1] with 6 digits, one column per attack."""
    frames = []
    for section in sections:
        frame = section.frame.copy()
        frame.insert(0, "section", section.title)
        frame.insert(1, "protocol", section.protocol)
        frames.append(frame)
    if not frames:
        return ""
    whole = pd.concat(frames, ignore_index=True)
    whole["rank"] = whole["rank"].astype("Int64")
    known_columns = (COLUMNS, distances.COLUMNS, quality_table.COLUMNS, quality_matched.COLUMNS)
    named = ["section", "protocol", *(name for columns in known_columns for name in columns)]
    known = [c for c in dict.fromkeys(named) if c in whole.columns]
    attacks = sorted(c for c in whole.columns if c not in known)
    ordered = [c for c in known if c != "flags"] + attacks + ["flags"]
    text: str = whole[ordered].to_csv(index=False, float_format="%.6f", lineterminator="\n")
    return text


def details_csv(sections: Sequence[Section]) -> dict[str, str]:
    """Return what goes into files beside the CSV, by the end of their names; empty where nothing does.

    "attacks": one line an attack (`spikes.COLUMNS`). "curves": one line a step of the curve of success
    over budget (`spikes.CURVE_COLUMNS`). "certificates": one line a certificate (`certificates.FRAME`).
    """
    found = {}
    for name in ("attacks", "curves", "certificates"):
        frames = [(s.title, getattr(s, name)) for s in sections if len(getattr(s, name))]
        if frames:
            whole = pd.concat([f.assign(section=title) for title, f in frames], ignore_index=True)
            ordered = whole[["section", *(c for c in whole.columns if c != "section")]]
            found[name] = str(ordered.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    return found


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


def display(section: Section) -> Table:
    """Return headers and cells of a section's main table for people."""
    far = section.kind == "distance"
    names = ["rank", "victim", "defense", "clean"]
    proven = len(section.certificates) > 0
    result = ["success", "median distance [95 %]"] if far else ["worst case [95 %]", "ASR"]
    result += ["certified [95 %]"] * proven
    headers = [*names, *result, "strongest attack", "nJ", "nJ attacked/clean", "passes", "flags"]
    rows = []
    for _, row in section.frame.iterrows():
        if far:
            span = f"[{number(row['median_low'])}, {number(row['median_high'])}]"
            result = [percent(row["success"]), f"{number(row['median_all'])} {span}"]
        else:
            result = [within(row, "worst_case", "low", "high"), percent(row["asr"])]
        if proven:
            proof = within(row, "certified", "certified_low", "certified_high")
            result.append("n/a" if proof == "-" else proof)
        rows.append(
            [
                "-" if pd.isna(row["rank"]) else str(int(row["rank"])),
                str(row["victim"]),
                str(row["defense"]),
                percent(row["clean"]),
                *result,
                _strongest(row, far=far),
                number(row["energy_nj"]),
                number(row["energy_ratio"]),
                f"{row['propagations']:.0f}",
                marked(str(row["flags"])),
            ]
        )
    return headers, rows


def within(row: pd.Series[Any], value: str, low: str, high: str) -> str:
    """Return a share of a row with its interval; a dash where it was not measured."""
    if math.isnan(row[value]):
        return "-"
    return f"{percent(row[value])} [{percent(row[low])}, {percent(row[high])}]"


def by_certificate(section: Section) -> Table | None:
    """Return every certificate with its n, radius and confidence; None without one."""
    if not len(section.certificates):
        return None
    headers = ["victim", "defense", "certified by", "certified of n", "largest radius", "confidence"]
    return headers, [
        [
            row["victim"],
            row["defense"],
            row["certified_by"],
            f"{row['certified']}/{row['n']}",
            f"{row['norm']} {number(row['radius'])}",
            f"{row['confidence']:.6g}",
        ]
        for _, row in section.certificates.iterrows()
    ]


def _strongest(row: pd.Series[Any], *, far: bool) -> str:
    values = {str(c).removeprefix("acc:"): row[c] for c in row.index if str(c).startswith("acc:")}
    measured = {label: value for label, value in values.items() if not math.isnan(value)}
    if not measured:
        return "-"
    label = min(sorted(measured), key=measured.__getitem__)
    return f"{label} ({number(measured[label]) if far else percent(measured[label])})"


def _owner(row: pd.Series[Any]) -> str:
    return str(row["victim"]) + ("" if row["defense"] == "none" else f" + {row['defense']}")


def by_attack(section: Section) -> Table:
    """Return the result under each attack alone.

    One line an attack and one column a victim with its defense; turned round where the columns would be
    too many to read.
    """
    frame, far = section.frame, section.kind == "distance"
    attacks = [c for c in frame.columns if c.startswith("acc:")]
    names = [_owner(row) for _, row in frame.iterrows()]
    corner = "median distance under" if far else "accuracy under"
    show = number if far else percent
    rows = [[c.removeprefix("acc:"), *(show(v) for v in frame[c])] for c in attacks]
    if len(names) <= COLUMNS_THAT_FIT:
        return [corner, *names], rows
    return [corner, *(row[0] for row in rows)], [
        [name, *(row[place] for row in rows)] for place, name in enumerate(names, start=1)
    ]


def by_budget(section: Section) -> Table | None:
    """Return the success rate at each budget, one line per victim and defense; None for accuracies."""
    if section.kind != "distance":
        return None
    budgets = [c for c in section.frame.columns if c.startswith("asr@")]
    headers = ["victim", "defense", *(f"ASR within {c.removeprefix('asr@')}" for c in budgets)]
    headers.append("median over successes")
    rows = [
        [row["victim"], row["defense"], *(percent(row[c]) for c in budgets), number(row["median_success"])]
        for _, row in section.frame.iterrows()
    ]
    return headers, rows


def by_change(section: Section, *, narrow: bool = False) -> Table | None:
    """Return what every attack had to change: one line an attack on every victim and defense; or None."""
    if not len(section.attacks):
        return None
    frame, far = section.attacks, section.kind == "distance" and not narrow
    budgets = [c for c in frame.columns if c.startswith("asr@")] if far else []
    changes = {"spikes moved": "removed"} if section.geometry.startswith("retime") else {}
    changes = changes or {"spikes added": "added", "removed": "removed"}
    changes = changes | {"of": "spikes"} if frame["spikes"].notna().any() else {}
    headers = ["victim", "attack alone", "success", "median over all", "median over successes"]
    headers += [*changes, "forwards", "backwards", "loses to"]
    rows = []
    for _, row in frame.iterrows():
        share = row["broken"] / row["attacked"] if row["attacked"] else math.nan
        shown = [_owner(row), str(row["attack"]), percent(share)]
        shown += [number(row["median_all"]), number(row["median_success"])]
        shown += [number(row[c]) for c in changes.values()]
        shown += [*(f"{row[c]:.0f}" for c in ("forwards", "backwards")), str(row["loses_to"]) or "-"]
        rows.append([*shown, *(percent(row[c]) for c in budgets)])
    return headers + [f"ASR within {c.removeprefix('asr@')}" for c in budgets], rows


def by_defense(section: Section) -> Table | None:
    """Return what each defense buys and costs; None where the section has no defended victim."""
    far = section.kind == "distance"
    if section.kind in ("quality", "visibility") or not has_defenses([section]):
        return None
    found = costs.gains(section.frame, "median_all" if far else "worst_case")
    headers = ["what a defense buys and costs", "defense", "median gained" if far else "worst case gained"]
    headers += ["clean gained", "nJ / undefended", "training passes / plain"]
    rows = []
    for row in found:
        gained = number(row["result"]) if far else points(row["result"])
        kept = [points(row["clean_delta"]), number(row["energy"]), number(row["training"])]
        rows.append([row["victim"], row["defense"], gained, *kept])
    return headers, rows


def by_training_seed(section: Section) -> Table | None:
    """Return means over training seeds, attack by attack where the attacks are few enough to read.

    None where every victim has one seed, and for other than accuracies.
    """
    found = seeds.mean_rows(section.frame) if section.kind == "accuracy" else []
    if not found:
        return None
    attacks = [c for c in section.frame.columns if c.startswith("acc:")]
    attacks = attacks if len(attacks) <= COLUMNS_THAT_FIT else []
    headers = ["mean of k training seeds", "defense", "k", "flagged", "clean [95 %]", "worst case [95 %]"]
    rows = []
    for row in found:
        shown = [
            "{} [{}, {}]".format(*map(percent, row[column])) if column in row else "-"
            for column in ("clean", "worst_case", *attacks)
        ]
        rows.append([row["victim"], row["defense"], str(row["seeds"]), str(row["flagged"]), *shown])
    return headers + [c.removeprefix("acc:") for c in attacks], rows


def tables(section: Section, *, narrow: bool = False) -> list[Table]:
    """Return all tables of a section, the main one first; the narrow ones fit a terminal."""
    if section.kind == "quality":
        return quality_table.tables(section)
    if section.kind == "visibility":
        return quality_matched.tables(section)
    found = [display(section), by_attack(section)]
    more = (
        by_certificate(section),
        by_budget(section),
        by_defense(section),
        by_change(section, narrow=narrow),
        by_training_seed(section),
    )
    return [*found, *(table for table in more if table)]


def has_defenses(sections: Sequence[Section]) -> bool:
    """Say whether a section has a defended victim."""
    return any((s.frame["defense"] != "none").any() for s in sections)


def introduction(sections: Sequence[Section]) -> str:
    """Return what a reader must know about the columns."""
    more = [QUALITY_INTRODUCTION] if any(s.kind == "quality" for s in sections) else []
    if any(len(s.attacks) for s in sections):
        more.append(SPIKES_INTRODUCTION)
    if any(s.targeted for s in sections):
        more.append(TARGETED_INTRODUCTION)
    if any(len(s.certificates) for s in sections):
        more.append(certificates.INTRODUCTION)
    if any(by_defense(s) for s in sections):
        more.append(costs.INTRODUCTION)
    if any(s.kind == "visibility" for s in sections):
        more.append(quality_matched.INTRODUCTION)
    if any(by_training_seed(s) or (s.kind == "quality" and seeds.trained_alike(s.frame)) for s in sections):
        more.append(seeds.INTRODUCTION)
    return " ".join([INTRODUCTION, *more])


def to_markdown(
    sections: Sequence[Section], about: Sequence[str] = (), left_out: Mapping[str, str] = NOTHING
) -> str:
    """Return the leaderboard as Markdown: how it was made, tables a section, the meaning of flags.

    Args:
        left_out: defenses that are not implemented, and why; shown where defenses are compared.
    """
    made = [f"- Measured by `{line.replace('`', '')}`" for line in about]
    parts = ["# Leaderboard", "", *made, *([""] if made else []), introduction(sections), ""]
    for section in sections:
        parts += [f"## {section.title}", "", section.protocol, ""]
        for position, (headers, rows) in enumerate(tables(section)):
            if not position and section.kind != "visibility":
                best = 4 if section.kind == "accuracy" else 5
                rows = [[*row[:best], f"**{row[best]}**", *row[best + 1 :]] for row in rows]
            parts += [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True), ""]
        parts += [CURVES_NOTE, ""] if len(section.curves) else []
    parts += ["## Flags in these tables", "", *(f"- {line}" for line in legend(sections)), ""]
    if left_out and has_defenses(sections):
        parts += [f"## {LEFT_OUT}", "", *(f"- {name}: {why}." for name, why in left_out.items()), ""]
    return "\n".join(parts)


def legend(sections: Sequence[Section]) -> list[str]:
    """Explain every flag that the sections raise, a line each."""
    seen = sorted({flag for s in sections for flags in s.frame["flags"] for flag in flags.split()})
    if not seen:
        return ["None was raised."]
    advice = {name: FLAGS[name].advice[0].upper() + FLAGS[name].advice[1:] for name in seen}
    return [f"`{marked(name)}`: {FLAGS[name].meaning}. {advice[name]}." for name in seen]


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 108rem; padding: 0 1rem;
  color: #1c2330; }
h1 { font-size: 1.7rem; }
p, li { max-width: 78rem; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.7rem 0; font-size: 0.9rem; }
td, th { padding: 0.25rem 0.7rem 0.25rem 0; white-space: nowrap; text-align: left; }
th { border-bottom: 2px solid #8791a5; }
td { border-bottom: 1px solid #e3e7ee; font-variant-numeric: tabular-nums; }
tr.flagged td { color: #8a5a00; background: #fff7e6; }
code { background: #eef1f6; padding: 0 0.25rem; }
.bar { position: relative; display: inline-block; width: 9rem; height: 0.7rem; background: #eef1f6;
  margin-right: 0.6rem; }
.bar i { position: absolute; top: 0; bottom: 0; background: #9db7e8; }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 2px; background: #1f4fa8; }
"""


def to_html(
    sections: Sequence[Section], about: Sequence[str] = (), left_out: Mapping[str, str] = NOTHING
) -> str:
    """Return the leaderboard as one self-contained page; intervals are drawn as bars (see `to_markdown`)."""
    intro = re.sub(r"\*([^*]+)\*", r"<em>\1</em>", html.escape(introduction(sections)))
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>RobustSpike leaderboard</title>',
        '<meta name="viewport" content="width=device-width">',
        f"<style>{_STYLE}{curves.STYLE}</style><h1>RobustSpike leaderboard</h1>",
        *(f"<p>Measured by <code>{html.escape(line)}</code></p>" for line in about),
        f"<p>{intro}</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.protocol)}</p>")
        for position, (headers, rows) in enumerate(tables(section)):
            bars = _bars(section) if not position and section.kind == "accuracy" else None
            parts.append(_html_table(headers, rows, bars))
        if len(section.curves):
            parts.append(curves.figure(section))
    parts.append("<h2>Flags in these tables</h2><ul>")
    parts += [f"<li>{_code(line)}</li>" for line in legend(sections)]
    if left_out and has_defenses(sections):
        parts.append(f"</ul><h2>{LEFT_OUT}</h2><ul>")
        parts += [f"<li>{_code(f'{name}: {why}.')}</li>" for name, why in left_out.items()]
    return "\n".join(parts) + "\n</ul></html>\n"


def _code(line: str) -> str:
    before, _, rest = html.escape(line).partition("`")
    inside, mark, after = rest.partition("`")
    return f"{before}<code>{inside}</code>{after}" if mark else before


def _bars(section: Section) -> list[str]:
    return [
        f'<span class="bar"><i style="left:{100 * row["low"]:.1f}%;right:{100 * (1 - row["high"]):.1f}%"></i>'
        f'<b style="left:{100 * row["worst_case"]:.1f}%"></b></span>'
        for _, row in section.frame.iterrows()
    ]


def _html_table(headers: list[str], rows: list[list[str]], bars: list[str] | None) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headers)
    lines = []
    for place, row in enumerate(rows):
        cells = [html.escape(cell) for cell in row]
        if bars:
            cells[4] = bars[place] + cells[4]
        unranked = ' class="flagged"' if headers[0] == "rank" and row[0] == "-" else ""
        lines.append(f"<tr{unranked}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>' + "".join(lines) + "</table></div>"
