"""Under which rules and for which suites the records of a table were measured.

Records of different suites stand in one table where data, threat model and shards agree: that is how a
submission meets the board. Editions of one suite (a name with two versions or digests) do not: their lists
of attacks differ under one name, so a row of the older list would look stronger than it is. Such records
make tables of their own, titled by their edition; nothing is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from robustspike.bench.contract.specs import Budget
from robustspike.bench.record.schema import PROTOCOL
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import canonical
from robustspike.bench.record.threat import encode_threat

_SHORT = 12
_FREE = Budget()


def edition(record: CellRecord) -> tuple[str, str, str]:
    """Return name, version and digest of the suite that last asked for a record."""
    return record.suite, str(record.suite_version), record.suite_digest


def competing(records: Iterable[CellRecord]) -> frozenset[str]:
    """Return the names of the suites that the records know in several editions."""
    known: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for record in records:
        known[record.suite].add(edition(record))
    return frozenset(name for name, found in known.items() if len(found) > 1)


def rules(record: CellRecord, apart: frozenset[str]) -> tuple[str, ...]:
    """Return what records of one table must share: data, threat model (but for access), shards, edition.

    Args:
        apart: the suites whose editions are kept apart, from `competing`.
    """
    threat = {key: value for key, value in encode_threat(record.threat).items() if key != "access"}
    shared = (record.dataset, record.split, record.digests["data"], canonical(threat).decode())
    return (*shared, str(record.shard), *(edition(record) if record.suite in apart else ()))


def name(record: CellRecord) -> str:
    """Name the edition of a record's suite."""
    return f"{record.suite} v{record.suite_version} ({record.suite_digest[:_SHORT] or 'digest unknown'})"


def remarks(record: CellRecord, apart: frozenset[str]) -> str:
    """Return what the title of a table must say beyond data and threat: its budget, its suite's edition."""
    budget = record.threat.budget
    said = f", at most {budget.forwards} forwards and {budget.backwards} backwards" if budget != _FREE else ""
    return said + (f", suite {name(record)}" if record.suite in apart else "")


def line(records: Iterable[CellRecord]) -> str:
    """Return the header line of a table: the measuring rules, and every suite that asked for its records."""
    return f"protocol {PROTOCOL}; suites: {', '.join(sorted({name(record) for record in records}))}"
