"""Sections of the leaderboard, one kind a module: records to tables of comparable rows. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import protocol
from robustspike.leaderboard.board import NO_BOARD
from robustspike.leaderboard.board import Board
from robustspike.leaderboard.owners import Names
from robustspike.leaderboard.owners import by_owner
from robustspike.leaderboard.sections.accuracy import Accuracy
from robustspike.leaderboard.sections.accuracy import is_unbounded
from robustspike.leaderboard.sections.base import Kind
from robustspike.leaderboard.sections.base import Section
from robustspike.leaderboard.sections.base import Shared
from robustspike.leaderboard.sections.base import make_section
from robustspike.leaderboard.sections.distance import Distance
from robustspike.leaderboard.sections.quality import Quality
from robustspike.leaderboard.sections.scores import CertifiedScores
from robustspike.leaderboard.sections.strength import Strength
from robustspike.leaderboard.sections.visibility import Visibility

KINDS: tuple[Kind, ...] = (Accuracy(), Distance(), Quality(), Visibility(), Strength(), CertifiedScores())
"""Every kind of section; a new kind of table is added here."""


def build(records: Iterable[CellRecord], board: Board = NO_BOARD) -> list[Section]:
    """Build all tables.

    A section is one protocol: task, data (by digest), threat model, shard size. Rows of different
    sections are never compared, and a section never mixes protocols, eps or data.

    Args:
        records: finished cells, from one or several folders; a key that comes twice counts once.
        board: what the board says of them.
    """
    unique = {record.key: record for record in records}
    ordered = [unique[key] for key in sorted(unique)]
    apart = protocol.competing(ordered)
    shared = Shared(
        Names(ordered), by_owner(record for record in ordered if is_unbounded(record)), apart, board
    )
    made = []
    for kind in KINDS:
        grouped: dict[tuple[str, ...], list[CellRecord]] = defaultdict(list)
        for record in filter(kind.takes, ordered):
            grouped[protocol.rules(kind.comparable(record), apart)].append(record)
        for key in sorted(grouped):
            section = make_section(kind, grouped[key], shared)
            if section is not None:
                made.append((kind.place, *kind.order(grouped[key][0]), key, section))
    return [entry[-1] for entry in sorted(made, key=lambda entry: entry[:-1])]


__all__ = ["KINDS", "Kind", "Section", "build"]
