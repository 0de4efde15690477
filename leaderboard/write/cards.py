"""What the page's script knows: the facts of every row and attack, short enough for one file.

The script (`page.js`) sorts and filters the tables by them, adds columns, draws and opens cards. A number is
a number, "Infinity" an infinite distance, null was not measured; [value, low, high] has its 95 % interval.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robustspike.bench.contract.specs import Task
from robustspike.bench.record.flags import FLAGS
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections.base import owners
from robustspike.leaderboard.text import with_defense
from robustspike.leaderboard.write.tidy import plain

KEY_DIGITS = 12
"""Digits of a record's key on the page, or more where two keys begin alike."""

WEIGHTS_DIGITS = 16
"""Digits of the sha256 of a row's weights on the page; rows.csv has all of them."""

PICTURES = 8
"""Pictures of attacked inputs on a card, at most."""

SHARES = re.compile(r"(clean|worst_case|certified|asr|success|moved|short)(_.*|@.*)?")
"""Columns that people read in percent."""


@dataclass(frozen=True)
class Component:
    """What the registry says of an attack, a defense or a victim.

    Args:
        about: one sentence.
        source: paper, equation or algorithm, and deviations, which a card leaves to `robustspike show`.
        family: of a victim, e.g. "timing".
        steps: of a victim, its time steps; None where it has none or is not known.
    """

    about: str = ""
    source: str = ""
    family: str = ""
    steps: int | None = None


Components = Mapping[tuple[str, str], Component]
"""By (kind, registry name), e.g. ("attacks", "pgd.linf")."""

UNKNOWN: Components = {}


def base(name: str) -> str:
    """Return the registry name of a label: "net(tau=4.0)@2" and "pgd.linf[loss=dlr]" without the rest."""
    return re.split(r"[(\[@ ]", name, maxsplit=1)[0]


def payload(sections: Sequence[Section], components: Components = UNKNOWN) -> dict[str, Any]:
    """Return what the script knows of all boards of a page, as JSON values: words on flags and components.

    Args:
        sections: the tables of the page.
        components: what is known of attacks, defenses and victims; others have no words on their cards.
    """
    records = {r.key: r for s in sections for members in s.members.values() for r in members}
    flags = {flag for s in sections for text in s.frame["flags"] for flag in text.split()}
    flags |= {flag for record in records.values() for flag in cell_flags(record.measures, record.counts)}
    attacks = {facts.attack_name(r): r for _, r in sorted(records.items())}
    defenses = {r.defense for r in records.values() if r.defense != "none"}
    victims = {r.victim for r in records.values()}
    return {
        "flags": {
            name: {"meaning": FLAGS[name].meaning, "advice": FLAGS[name].advice, "blocks": FLAGS[name].blocks}
            for name in sorted(flags)
        },
        "attacks": {
            label: {
                **_said(components, "attacks" if r.task is not Task.CERTIFY else "certifiers", r.attack),
                "access": str(r.threat.access),
                "set": _parameters(r),
            }
            for label, r in sorted(attacks.items())
        },
        "defenses": {name: _said(components, "defenses", name) for name in sorted(defenses)},
        "victims": {name: _victim(components, name) for name in sorted(map(base, victims))},
    }


def to_script(found: Mapping[str, Any]) -> str:
    """Return JSON that may stand in a script element: no tag can begin or end in it."""
    text = json.dumps(found, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def is_share(column: str) -> bool:
    """Say whether people read a column in percent."""
    return SHARES.fullmatch(column) is not None


def digits_of(keys: Iterable[str]) -> int:
    """Return how many digits of records' keys tell them apart on the page."""
    known = set(keys)
    return next(n for n in range(KEY_DIGITS, 65) if len({key[:n] for key in known}) == len(known))


def _said(components: Components, kind: str, name: str) -> dict[str, str]:
    found = components.get((kind, base(name)), Component())
    source = found.source.partition(" Differs:")[0]
    return {key: value for key, value in (("about", found.about), ("source", source)) if value}


def _victim(components: Components, name: str) -> dict[str, Any]:
    known = components.get(("victims", name), Component())
    family = known.family or name.partition(".")[0]
    steps = {} if known.steps is None else {"T": known.steps}
    return {**_said(components, "victims", name), "family": family, **steps}


def _parameters(record: CellRecord) -> str:
    given = record.parameters.get("attack", {})
    return (
        ", ".join(f"{name} = {given[name]}" for name in sorted(given)) if isinstance(given, Mapping) else ""
    )


def board(
    section: Section,
    anchor: str,
    pictures: Mapping[str, Sequence[str]],
    digits: int,
) -> dict[str, Any]:
    """Return what the script knows of one board, as JSON values.

    Args:
        section: the table.
        anchor: its name on the page.
        pictures: by key of a record, attacked inputs as addresses.
        digits: of a key that are shown, from `digits_of`.
    """
    kind, first, frame = section.kind, section.first, section.frame
    figure = kind.by[0][0]
    columns = [
        column
        for column in kind.columns
        if column != "flags" and not re.fullmatch(r".+_(low|high)", column) and frame[column].notna().any()
    ]
    labels = [column.removeprefix(kind.parts) for column in section.part_columns]
    curves = _curves(section, labels)
    rows = []
    for (_, row), owner in zip(frame.iterrows(), owners(frame), strict=True):
        members = section.members[owner]
        steps = next((facts.steps(r) for r in members if facts.steps(r) is not None), None)
        seen = [picture for r in members for picture in pictures.get(r.key, ())][:PICTURES]
        rows.append(
            {
                "id": with_defense(row),
                "net": owner.victim,
                "defense": owner.defense,
                "weights": owner.weights[:WEIGHTS_DIGITS],
                **({} if steps is None else {"T": steps}),
                **{name: row[name] for name in ("notes", "flags") if row[name]},
                **({"status": row["status"]} if section.board.given else {}),
                "values": [_value(row, column) for column in columns],
                "attacks": _attacks(section, members, labels, digits),
                **({"curves": curves[owner]} if owner in curves else {}),
                **({"pictures": seen} if seen else {}),
            }
        )
    eps = first.threat.eps
    return {
        "id": anchor,
        "title": section.title,
        "dataset": first.dataset,
        "threat": first.threat.label,
        "like": f"{first.dataset} {first.threat.domain} {first.threat.geometry} {first.threat.goal} {figure}",
        "eps": None if eps is None else float(eps),
        "n": first.samples,
        "unit": section.reach.unit,
        "figure": figure,
        "more": not kind.by[0][1],
        "share": is_share(figure),
        "columns": [[column, kind.columns[column], int(is_share(column))] for column in columns],
        "labels": labels,
        "rows": rows,
    }


def _attacks(
    section: Section, members: Sequence[CellRecord], labels: Sequence[str], digits: int
) -> list[list[Any]]:
    """Return what each attack does to a row, and what it cost.

    Returns: for each its place among the labels, figure, ends of its interval, forward and backward passes
        per attacked sample, keys of its records, flags, attack seeds; the last are left out where they are
        empty, and seed 0 is.
    """
    by_label: dict[str, list[CellRecord]] = defaultdict(list)
    for record in members:
        if record.task is not Task.CERTIFY:
            by_label[facts.attack_name(record)].append(record)
    share = is_share(section.kind.by[0][0])
    found = []
    for place, label in enumerate(labels):
        own = sorted(by_label.get(label, ()), key=lambda r: r.seed)
        if not own:
            continue
        attacked = sum(r.cost["attacked"] for r in own)
        passes = [round(sum(r.cost[k] for r in own) / max(attacked, 1), 1) for k in ("forwards", "backwards")]
        flags = sorted({flag for r in own for flag in cell_flags(r.measures, r.counts)})
        span = [number(value, share=share) for value in section.kind.span(own)]
        keys = " ".join(r.key[:digits] for r in own)
        drawn = " ".join(str(r.seed) for r in own)
        entry = [place, *span, *map(number, passes), keys, " ".join(flags), "" if drawn == "0" else drawn]
        while entry[-1] == "":
            entry.pop()
        found.append(entry)
    return found


def _curves(section: Section, labels: Sequence[str]) -> dict[Any, list[list[Any]]]:
    """Return the curves of success over budget of every row, its attacks together first.

    Returns: for each its place among the labels (-1: all together), attacked samples, and budget, broken,
        budget, broken, ... from the first success on.
    """
    found: dict[Any, list[list[Any]]] = defaultdict(list)
    if not len(section.curves):
        return found
    for (victim, defense, weights, attack), own in section.curves.groupby(
        ["victim", "defense", "weights", "attack"], sort=False
    ):
        pairs = list(zip(own["budget"], own["broken"], strict=True))[1:]
        place = labels.index(attack) if attack in labels else -1
        steps = [number(value) for pair in pairs for value in pair]
        found[victim, defense, weights].append([place, int(own["attacked"].iloc[0]), steps])
    return found


def _value(row: pd.Series[Any], column: str) -> Any:
    share = is_share(column)
    value = number(row[column], share=share)
    if value is None or f"{column}_low" not in row.index:
        return value
    return [value, *(number(row[f"{column}_{end}"], share=share) for end in ("low", "high"))]


def number(value: Any, *, share: bool = False) -> Any:
    """Return a value for the script: an infinite one by name, None for NaN.

    Args:
        value: of a frame.
        share: shown in percent with one decimal; other numbers keep four significant digits.
    """
    value = plain(value)
    if isinstance(value, float):
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        value = round(value, 3) if share else float(f"{value:.4g}")
        return int(value) if value.is_integer() else value
    return value
