"""What a board says of records beyond their numbers: checks, disputes, withdrawals, editions.

A board is a folder that its maintainers keep; no bundle can bring one. It holds

    checks/NAME.csv      what `robustspike verify --note` and `check-submission --note` found
    notes/NAME.toml      a dispute or a withdrawal
    editions/NAME.toml   which bundles and files made an edition that stays citable

Everything in it is optional; a file that cannot be read as what it claims to be is an error.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import TypeVar

from robustspike.bench.contract.decode import Count
from robustspike.bench.contract.decode import Rule
from robustspike.bench.contract.decode import decode
from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.record.checks import Check
from robustspike.bench.record.checks import Found
from robustspike.bench.record.checks import How
from robustspike.bench.record.checks import best
from robustspike.bench.record.checks import read_checks
from robustspike.bench.record.checks import stored_digest
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.types import Line
from robustspike.leaderboard.fields import FIELDS
from robustspike.leaderboard.fields import passes

MAX_BYTES = 1 << 20

T = TypeVar("T")


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _says_whose(of: Mapping[str, str]) -> bool:
    return bool(of) and of.keys() <= {*FIELDS}


Day = Annotated[str, Rule("a day such as 2026-11-30", _is_day)]
Told = Annotated[Line, Rule("a text that is not empty", bool)]
Whose = Annotated[
    Mapping[str, Line],
    Rule(f"a table of patterns by {', '.join(FIELDS)}, at least one of them", _says_whose),
]
Hash = Annotated[
    str, Rule("a sha256 in hex", lambda text: len(text) == 64 and set(text) <= {*"0123456789abcdef"})
]


class Standing(StrEnum):
    """How far the numbers of a row were checked by others than those who measured them."""

    VERIFIED = "verified"
    RESCORED = "re-scored"
    CLAIMED = "claimed"


class Of(StrEnum):
    """What a note is about."""

    DISPUTE = "dispute"
    WITHDRAWAL = "withdrawal"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A dispute or a withdrawal.

    Args:
        kind: which of the two.
        of: pattern by field (victim, defense, attack, dataset, threat, weights, key): the rows one of whose
            records passes all of them.
        by: who says so; credited in the tables.
        date: the day.
        text: what is wrong, or why it is taken back.
        url: where it is discussed.
        settled: how a dispute ended; the note then stays, without its flag.
    """

    kind: Of
    of: Whose
    by: Told
    date: Day
    text: Told
    url: Line = ""
    settled: Line = ""

    @property
    def flag(self) -> str:
        """The flag that it raises on its rows; none for a dispute that is settled."""
        if self.kind is Of.WITHDRAWAL:
            return "withdrawn"
        return "" if self.settled else "disputed"

    @property
    def line(self) -> str:
        """The note in words."""
        verb = "withdrawn" if self.kind is Of.WITHDRAWAL else "disputed"
        parts = [f"{verb} by {self.by}, {self.date}: {self.text}", self.url]
        return " ".join(filter(None, [*parts, f"Settled: {self.settled}" if self.settled else ""]))


@dataclass(frozen=True, kw_only=True)
class Edition:
    """A state of the board that can be cited, and built again.

    Args:
        name: such as "2026.2".
        date: the day it was made.
        bundles: sha256 of its bundles, by the names that they had.
        files: sha256 of the board's checks and notes that it was made with, by name.
        rows: rows of its tables.
        digest: sha256 of its rows.csv.
        version: of the package that made it.
    """

    name: Told
    date: Day
    bundles: Mapping[str, Hash]
    files: Mapping[str, Hash] = field(default_factory=dict)
    rows: Count
    digest: Hash
    version: Line


@dataclass(frozen=True)
class Board:
    """A board's folder, read.

    Args:
        checks: what was found of records, by the digest of what was checked.
        notes: disputes and withdrawals, oldest first.
        editions: those that were made, oldest first.
        given: whether there is a board; without one tables for people show no standing.
    """

    checks: Mapping[str, Check] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    editions: tuple[Edition, ...] = ()
    given: bool = False

    def standing(self, records: Iterable[CellRecord]) -> Standing:
        """Return how far the records of a row were checked: as far as the one that was checked least."""
        depth = {How.RERUN: 2, How.INPUTS: 1}
        found = []
        for record in records:
            check = self.checks.get(stored_digest(record))
            found.append(depth[check.how] if check and check.found is Found.CONFIRMED else 0)
        return [Standing.CLAIMED, Standing.RESCORED, Standing.VERIFIED][min(found, default=0)]

    def notes_on(self, records: Sequence[CellRecord]) -> list[Note]:
        """Return the notes on the row of some records."""
        return [note for note in self.notes if any(_of(record, note.of) for record in records)]

    def flags(self, records: Sequence[CellRecord]) -> set[str]:
        """Return the flags that notes and checks raise on the row of some records."""
        raised = {note.flag for note in self.notes_on(records)} - {""}
        checks = (self.checks.get(stored_digest(record)) for record in records)
        return raised | {"refuted" for check in checks if check and check.found is Found.REFUTED}

    def edition(self, name: str) -> Edition:
        """Return an edition by its name. Raises: ConfigError: there is none of this name."""
        known = {edition.name: edition for edition in self.editions}
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"--edition {name}: unknown.{hint} Editions: {', '.join(known) or 'none'}.")
        return known[name]


NO_BOARD = Board()


def read_board(folder: Path, only: Mapping[str, str] | None = None) -> Board:
    """Read a board's folder.

    Args:
        folder: the folder.
        only: the checks and notes to read, with their sha256: those of an edition; None for all.

    Raises: ArtefactError: a file is not what it should be, or not that of the edition.
    """
    if not folder.is_dir():
        raise ConfigError(f"--board {folder}: no such folder.")
    if only is not None:
        for name, wanted in only.items():
            path = folder / name
            if not path.is_file() or sha256(path.read_bytes()) != wanted:
                raise ArtefactError(
                    f"{path}: missing, or not the file that the edition was made with ({wanted[:12]}). "
                    "Take it from the version of the repository that made the edition."
                )
    files = {name: folder / name for name in file_digests(folder) if only is None or name in only}
    checks = [
        check for name, path in files.items() if name.startswith("checks/") for check in read_checks(path)
    ]
    notes = [_toml(path, Note) for name, path in files.items() if name.startswith("notes/")]
    editions = [_toml(path, Edition) for path in sorted((folder / "editions").glob("*.toml"))]
    return Board(
        best(checks),
        tuple(sorted(notes, key=lambda note: (note.date, note.line))),
        tuple(sorted(editions, key=lambda edition: (edition.date, edition.name))),
        given=True,
    )


def file_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of a board's checks and notes, by name."""
    paths = [*sorted(folder.glob("checks/*.csv")), *sorted(folder.glob("notes/*.toml"))]
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in paths}


def encode_edition(edition: Edition) -> bytes:
    """Return the file of an edition."""

    def table(name: str, values: Mapping[str, str]) -> list[str]:
        return ["", f"[{name}]", *(f"{_quoted(key)} = {_quoted(value)}" for key, value in values.items())]

    lines = [f"{key} = {_quoted(getattr(edition, key))}" for key in ("name", "date", "digest", "version")]
    lines += [f"rows = {edition.rows}", *table("bundles", edition.bundles), *table("files", edition.files)]
    return ("\n".join(lines) + "\n").encode()


def _of(record: CellRecord, of: Mapping[str, str]) -> bool:
    return all(passes(record, name, [pattern]) for name, pattern in of.items())


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _toml(path: Path, kind: type[T]) -> T:
    try:
        if path.is_symlink() or path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{path}: a link, or more than {MAX_BYTES} bytes.")
        value: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ArtefactError(f"{path}: not a readable TOML file ({error}).") from error
    if isinstance(value.get("date"), datetime.date):
        value["date"] = value["date"].isoformat()
    try:
        return decode(value, kind, str(path))
    except ConfigError as error:
        raise ArtefactError(str(error)) from error
