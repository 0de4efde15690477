"""Who a row of a table stands for: a victim, a defense, and the weights that were measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from robustspike.bench.record.schema import CellRecord

SHORT = 8
"""Digits of a weights' digest in the name of a row that needs them."""


class Owner(NamedTuple):
    """What one row stands for; `weights` is the digest of all parameters and buffers."""

    victim: str
    defense: str
    weights: str


def owner_of(record: CellRecord) -> Owner:
    """Return what the row of a record stands for."""
    return Owner(record.victim, record.defense, record.digests["weights"])


def by_owner(records: Iterable[CellRecord]) -> dict[Owner, list[CellRecord]]:
    """Return the records of every row, rows in alphabetical order."""
    found: dict[Owner, list[CellRecord]] = defaultdict(list)
    for record in records:
        found[owner_of(record)].append(record)
    return dict(sorted(found.items()))


class Names:
    """Names of rows: that of the victim, with digits of the weights where several nets share it.

    Args:
        records: all records that are shown together; a name means the same in all of their tables.
    """

    def __init__(self, records: Iterable[CellRecord]) -> None:
        weights: dict[tuple[str, str], set[str]] = defaultdict(set)
        for record in records:
            weights[record.victim, record.defense].add(record.digests["weights"])
        self._digits = {
            owner: next(n for n in range(SHORT, 1 + max(SHORT, *map(len, known))) if _apart(known, n))
            for owner, known in weights.items()
            if len(known) > 1
        }

    def of(self, owner: Owner) -> str:
        """Return the victim's name, e.g. "net", or "net #3fa80c1d" where two nets are called so."""
        digits = self._digits.get((owner.victim, owner.defense))
        return owner.victim if digits is None else f"{owner.victim} #{owner.weights[:digits]}"


def _apart(digests: set[str], digits: int) -> bool:
    return len({digest[:digits] for digest in digests}) == len(digests)
