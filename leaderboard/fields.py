"""What a record is filtered by: names, threat, weights and key. Pure functions."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard.seeds import split

FIELDS = ("victim", "defense", "attack", "dataset", "threat", "weights", "key")

_DIGESTS = ("weights", "key")
"""Fields that the first digits will do for."""


def passes(record: CellRecord, field: str, patterns: Sequence[str]) -> bool:
    """Say whether a field of a record is, or matches, one of some shell-style patterns."""
    values = {
        "victim": (record.victim, split(record.victim)[0]),
        "defense": (record.defense, record.defense.partition("(")[0]),
        "attack": (record.attack, record.label, facts.attack_name(record)),
        "dataset": (record.dataset,),
        "threat": (record.threat.label,),
        "weights": (record.digests["weights"],),
        "key": (record.key,),
    }[field]
    ends = "*" if field in _DIGESTS else ""
    return any(
        value == pattern or fnmatch.fnmatchcase(value, pattern + ends)
        for value in values
        for pattern in patterns
    )
