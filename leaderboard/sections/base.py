"""What all sections share: how rows are named, ordered and ranked. What differs is a `Kind`'s."""

from __future__ import annotations

from abc import ABC
from abc import abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import ClassVar

import pandas as pd

from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Task
from robustspike.bench.record.flags import cost_rank
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard import protocol
from robustspike.leaderboard import ranks
from robustspike.leaderboard.board import NO_BOARD
from robustspike.leaderboard.board import Board
from robustspike.leaderboard.owners import Names
from robustspike.leaderboard.owners import Owner
from robustspike.leaderboard.owners import by_owner
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import with_defense
from robustspike.leaderboard.verdicts import credits

NAN = float("nan")

Row = dict[str, Any]

IDENTITY = {
    "rank_low": "best rank that the pairs allow (see the rule of ranks); none where a flag costs the row it",
    "rank_high": "worst rank that they allow",
    "name": "victim, with the first digits of its weights where several nets share a victim's name",
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name, with changed parameters",
    "weights": "sha256 of all parameters and buffers",
}


STANDING = {
    "status": "verified: all of its records were run again by others, to the same verdicts; re-scored: their "
    "stored inputs were answered afresh; claimed: neither is on file",
    "notes": "whose inputs lowered the row; disputes and withdrawals, by whom, and how they ended",
}
"""The columns that a board's folder decides; they stand before the flags."""


@dataclass(frozen=True)
class Shared:
    """What the sections of one board share.

    Args:
        names: names of rows.
        checks: the unbounded sanity checks of every owner of a row.
        apart: the suites whose editions are kept apart.
        board: what the board says of the records.
    """

    names: Names
    checks: Mapping[Owner, list[CellRecord]]
    apart: frozenset[str]
    board: Board = NO_BOARD


class Kind(ABC):
    """What differs between the tables of two kinds of records.

    Class attributes:
        name: of the kind, in data files.
        place: kinds with a smaller number come first; those with the same number are mixed.
        columns: the columns of its frame but for `IDENTITY` and `STANDING`, in order, with their definitions.
        by: (column, ascending) that rows are ordered by; the first one is the figure that ranks them.
        parts: prefix of the columns with one attack's figure.
        introduction: what a reader must know about its tables.
    """

    name: ClassVar[str]
    place: ClassVar[int] = 0
    columns: ClassVar[Mapping[str, str]]
    by: ClassVar[tuple[tuple[str, bool], ...]]
    parts: ClassVar[str] = "acc:"
    introduction: ClassVar[str]

    @abstractmethod
    def takes(self, record: CellRecord) -> bool:
        """Say whether a record belongs into a section of this kind."""

    def comparable(self, record: CellRecord) -> CellRecord:
        """Return the record with whatever its section compares left open."""
        return record

    @abstractmethod
    def order(self, first: CellRecord) -> tuple[Any, ...]:
        """Return the place of a section among those of its kind, from one of its records."""

    def title(self, first: CellRecord, rows: Sequence[Row]) -> str:
        """Return data and threat model of a section, from one of its records."""
        del rows
        return f"{first.dataset} ({first.split}, n = {first.samples}), {first.threat.label}"

    @abstractmethod
    def rows(self, members: Sequence[CellRecord], shared: Shared) -> list[Row]:
        """Return the rows of a section: "owner", "flags" and `columns`, all but the ranks."""

    def outcome(self, records: Sequence[CellRecord]) -> ranks.Outcome | None:
        """Return what a row reaches on each sample (larger is more robust); None: rows have no rank."""
        del records
        return None

    def span(self, records: Sequence[CellRecord]) -> tuple[float, float, float]:
        """Return one attack's figure in a row, and the ends of its 95 % interval; NaN where it has none."""
        del records
        return NAN, NAN, NAN

    def details(self, members: Sequence[CellRecord], names: Mapping[Owner, str]) -> dict[str, pd.DataFrame]:
        """Return the frames "attacks", "curves" and "certificates" of a section, those that it has."""
        del members, names
        return {}

    @abstractmethod
    def tables(self, section: Section, *, narrow: bool = False) -> list[Table]:
        """Return a section's tables for people, the main one first; the narrow ones fit a terminal."""

    def introductions(self, section: Section) -> list[str]:
        """Return what a reader must know about one section, a paragraph each."""
        del section
        return [self.introduction]


class ScoreKind(Kind):
    """What a table on quality models is about: one section a data set, goal and budget."""

    def order(self, first: CellRecord) -> tuple[Any, ...]:
        eps = first.threat.eps
        return first.dataset, first.threat.goal, float("inf") if eps is None else float(eps)


@dataclass(frozen=True)
class Section:
    """One comparable group of rows.

    Args:
        kind: what the table is about.
        title: data set, threat model, samples.
        protocol: the rules and suites that it was measured by, a line.
        frame: one row per victim, defense and weights: `IDENTITY` and the kind's columns, with one column
            per attack (the kind's `parts` and its name) and `STANDING` before "flags". Shares are floats
            in [0, 1].
        members: the records behind every row.
        attacks: what every attack had to change (`spikes.COLUMNS`); else empty.
        curves: success over budget of every attack (`spikes.CURVE_COLUMNS`); else empty.
        certificates: what was certified (`certificates.FRAME`); else empty.
        board: what the board says of the records.
    """

    kind: Kind
    title: str
    protocol: str
    frame: pd.DataFrame
    members: Mapping[Owner, list[CellRecord]]
    attacks: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    certificates: pd.DataFrame = field(default_factory=pd.DataFrame)
    board: Board = NO_BOARD

    @property
    def first(self) -> CellRecord:
        """One of its records: data, threat model and budget are those of all."""
        return next(iter(self.members.values()))[0]

    @property
    def reach(self) -> facts.Reach:
        """What its geometry counts and can reach."""
        return facts.reach(self.first)

    @property
    def is_targeted(self) -> bool:
        """Whether success is one given class."""
        return self.first.threat.goal is Goal.TARGETED

    @property
    def part_columns(self) -> list[str]:
        """The columns with one attack's figure."""
        return [column for column in self.frame.columns if column.startswith(self.kind.parts)]

    def tables(self, *, narrow: bool = False) -> list[Table]:
        """Return its tables for people, the main one first; the narrow ones fit a terminal."""
        main, *others = self.kind.tables(self, narrow=narrow)
        if self.board.given and len(main.rows) == len(self.frame):
            main = _with_status(main, self.frame)
        notes = [[with_defense(row), str(row["notes"])] for _, row in self.frame.iterrows() if row["notes"]]
        unique = [list(row) for row in dict.fromkeys(map(tuple, notes))]
        return [main, *others, *([Table(["notes on rows", "note"], unique)] if unique else [])]


def _with_status(main: Table, frame: pd.DataFrame) -> Table:
    """Return a main table with the standing of its rows before their flags."""
    place = len(main.headers) - 1
    rows = [
        [*row[:place], str(status), *row[place:]]
        for row, status in zip(main.rows, frame["status"], strict=True)
    ]
    return replace(main, headers=[*main.headers[:place], "status", *main.headers[place:]], rows=rows)


def make_section(kind: Kind, members: Sequence[CellRecord], shared: Shared) -> Section | None:
    """Build one section; None where its records make no row."""
    rows = kind.rows(members, shared)
    if not rows:
        return None
    first = members[0]
    owned = by_owner(members)
    frame = _ordered(kind, rows, owned, shared)
    names = dict(zip(owners(frame), frame["name"], strict=True))
    return Section(
        kind,
        kind.title(first, rows) + protocol.remarks(first, shared.apart),
        protocol.line(members),
        frame,
        owned,
        **kind.details(members, names),
        board=shared.board,
    )


def owners(frame: pd.DataFrame) -> list[Owner]:
    """Return what the rows of a section's frame stand for, in order."""
    return [Owner(*map(str, owner)) for owner in zip(*(frame[c] for c in Owner._fields), strict=True)]


def _ordered(
    kind: Kind, rows: Sequence[Row], members: Mapping[Owner, list[CellRecord]], shared: Shared
) -> pd.DataFrame:
    """Return the frame of a section: rows in the order of the table, with their ranks."""
    made = [
        {**row["owner"]._asdict(), "name": shared.names.of(row["owner"])}
        | {name: value for name, value in row.items() if name != "owner"}
        | _standing(row, members[row["owner"]], shared.board)
        for row in rows
    ]
    frame = pd.DataFrame(made)
    frame["ranked"] = [not cost_rank(flags) for flags in frame["flags"]]
    by = [("ranked", False), *kind.by, ("name", True), ("defense", True)]
    frame = frame.sort_values(
        [column for column, _ in by],
        ascending=[ascending for _, ascending in by],
        ignore_index=True,
        kind="stable",
    )
    outcomes = {owner: kind.outcome(members.get(owner, [])) for owner in owners(frame[frame["ranked"]])}
    compared = [outcome for outcome in outcomes.values() if outcome is not None]
    frame["rank_low"], frame["rank_high"] = NAN, NAN
    if compared and len(compared) == len(outcomes):
        column, ascending = kind.by[0]
        figures = frame.loc[frame["ranked"], column].fillna(float("inf") if ascending else -float("inf"))
        found = ranks.rank_intervals([-f if ascending else f for f in figures], compared)
        frame.loc[frame["ranked"], ["rank_low", "rank_high"]] = found
    parts = sorted(column for column in frame.columns if column.startswith(kind.parts))
    return frame[[*IDENTITY, *(c for c in kind.columns if c != "flags"), *parts, *STANDING, "flags"]]


def _standing(row: Row, records: Sequence[CellRecord], board: Board) -> Row:
    """Return what a board says of a row: the columns of `STANDING`, and its flags with those of the board."""
    flags = {*str(row["flags"]).split(), *board.flags(records)}
    attacked = [record for record in records if record.task is Task.CLASSIFY]
    notes = "; ".join([*credits(attacked), *(note.line for note in board.notes_on(records))])
    return {"status": str(board.standing(records)), "notes": notes, "flags": " ".join(sorted(flags))}


def rank_cell(row: pd.Series[Any]) -> str:
    """Return the rank of a row for people."""
    return ranks.text(float(row["rank_low"]), float(row["rank_high"]))
