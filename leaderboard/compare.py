"""Two sets of records, row by row: is one better, and what differs between them. Pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

from robustspike.bench.numbers.stats import holm
from robustspike.bench.numbers.stats import sign_test
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard import protocol
from robustspike.leaderboard import ranks
from robustspike.leaderboard.owners import SHORT
from robustspike.leaderboard.sections import Kind
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.sections.base import owners
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import number

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Pair:
    """One row in both sets.

    Args:
        section: data and threat model.
        victim, defense: of the row.
        column: the figure that ranks its table.
        first, second: the figure in each set.
        wins, losses: shared samples on which the second set's row is more robust, and less.
        p: of the exact sign test, Holm-corrected over all pairs of the comparison.
        changed: what differs between the two, e.g. ("weights", "attacks: -fgsm.linf"); empty: nothing.
    """

    section: str
    victim: str
    defense: str
    column: str
    first: float
    second: float
    wins: int
    losses: int
    p: float
    changed: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """What the test says of the second row against the first."""
        if self.p >= ranks.SIGNIFICANCE:
            return "not separated"
        return "better" if self.wins > self.losses else "worse"


@dataclass(frozen=True)
class _Row:
    kind: Kind
    figure: float
    records: tuple[CellRecord, ...]


def compare(
    first: Iterable[CellRecord], second: Iterable[CellRecord]
) -> tuple[list[Pair], list[str], list[str]]:
    """Compare the rows that two sets of records have in common.

    Rows belong together by victim, defense, data set, split and threat model; weights, code, samples and
    attacks may differ, and where they do it is said. Of two nets of one name each is compared with the one of
    the same weights, and with none where there is none.

    Returns: the pairs, and a line for each row that only the first or only the second set has.
    """
    one, other = _rows(first), _rows(second)
    matched: list[tuple[Key, _Row, _Row]] = []
    lost: tuple[list[str], list[str]] = ([], [])
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key, {}), other.get(key, {})
        if len(a) == len(b) == 1:
            matched.append((key, next(iter(a.values())), next(iter(b.values()))))
            continue
        matched += [(key, a[weights], b[weights]) for weights in sorted(a.keys() & b.keys())]
        for place, alone in enumerate((a.keys() - b.keys(), b.keys() - a.keys())):
            lost[place].extend(
                f"{key[1]}: {key[2]} + {key[3]} #{weights[:SHORT]}" for weights in sorted(alone)
            )
    counts = [_wins(a, b) for _, a, b in matched]
    adjusted = holm([sign_test(*count) for count in counts])
    pairs = [
        Pair(*key[1:], a.kind.by[0][0], a.figure, b.figure, *count, p, changes(a.records, b.records))
        for (key, a, b), count, p in zip(matched, counts, adjusted, strict=True)
    ]
    return pairs, *lost


def _rows(records: Iterable[CellRecord]) -> dict[Key, dict[str, _Row]]:
    """Return the rows of a set that are ranked by a figure, (kind, where, victim, defense) -> weights -> row.

    Where editions of a suite made several tables of one threat model, the one with the most samples counts.
    """
    found: dict[Key, dict[str, _Row]] = defaultdict(dict)
    for section in sorted(build(records), key=lambda section: section.first.samples):
        if not section.kind.by:
            continue
        where = f"{section.first.dataset} ({section.first.split}), {section.first.threat.label}"
        for owner, figure in zip(owners(section.frame), section.frame[section.kind.by[0][0]], strict=True):
            row = _Row(section.kind, float(figure), tuple(section.members[owner]))
            if not math.isnan(row.figure):
                found[section.kind.name, where, owner.victim, owner.defense][owner.weights] = row
    return found


def _wins(first: _Row, second: _Row) -> tuple[int, int]:
    a, b = first.kind.outcome(first.records), second.kind.outcome(second.records)
    return ranks.wins(b, a) if a and b else (0, 0)


def changes(first: Sequence[CellRecord], second: Sequence[CellRecord]) -> tuple[str, ...]:
    """Return what differs between the records of two rows; nothing where both hold the same cells."""
    if {record.key for record in first} == {record.key for record in second}:
        return ()
    found = [
        name
        for name, of in (
            ("weights", lambda r: r.digests["weights"]),
            ("data", lambda r: r.digests["data"]),
            ("samples", lambda r: r.samples),
            ("shard size", lambda r: r.shard),
            ("budget", lambda r: r.threat.budget),
            ("attack seeds", lambda r: r.seed),
        )
        if {of(record) for record in first} != {of(record) for record in second}
    ]
    one, other = ({facts.attack_name(r): r for r in records} for records in (first, second))
    gone, new = sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())
    if gone or new:
        found.append("attacks: " + " ".join([*(f"-{name}" for name in gone), *(f"+{name}" for name in new)]))
    both = sorted(one.keys() & other.keys())
    code = [name for name in both if one[name].digests["code"] != other[name].digests["code"]]
    if code:
        found.append(f"code of {len(code)} attacks" if len(code) > 1 else f"code of {code[0]}")
    given = [
        name for name in both if one[name].parameters.get("attack") != other[name].parameters.get("attack")
    ]
    if given:
        found.append(f"parameters of {', '.join(given)}")
    editions = [{protocol.name(record) for record in records} for records in (first, second)]
    if editions[0] != editions[1]:
        found.append(f"suite: {', '.join(sorted(editions[0]))} -> {', '.join(sorted(editions[1]))}")
    return tuple(found) or ("parameters",)


def table(pairs: Sequence[Pair]) -> Table:
    """Return the pairs for people."""
    headers = ["victim", "defense", "section", "figure", "A", "B", "B better : worse", "p", "B is", "changed"]
    rows = [
        [
            pair.victim,
            pair.defense,
            pair.section,
            pair.column,
            number(pair.first),
            number(pair.second),
            f"{pair.wins} : {pair.losses}",
            f"{pair.p:.2g}",
            pair.verdict,
            "; ".join(pair.changed) or "nothing",
        ]
        for pair in pairs
    ]
    return Table(headers, rows, first=("victim", "defense", "B is", "A", "B", "section"))
