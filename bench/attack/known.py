"""What a shard of samples says of a victim whatever attacks it: found once, for all cells of the two."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import TypeVar
from weakref import WeakKeyDictionary

from robustspike.bench.victim.module import ModuleVictim

Found = TypeVar("Found")

SHARDS_KEPT = 256
"""Shards of one victim that are remembered; a few kilobytes each."""


@dataclass
class Known:
    """Results by name; whoever asks first computes them."""

    found: dict[Hashable, object] = field(default_factory=dict)

    def once(self, name: Hashable, compute: Callable[[], Found]) -> Found:
        """Return what is known under a name, computed now where nobody has asked before."""
        if name not in self.found:
            self.found[name] = compute()
        return self.found[name]  # type: ignore[return-value]


_KNOWN: WeakKeyDictionary[ModuleVictim, dict[Hashable, Known]] = WeakKeyDictionary()


def known_of(victim: ModuleVictim, shard: Mapping[str, Hashable]) -> Known:
    """Return what is known of a victim on a shard. It is forgotten with the victim.

    Args:
        shard: whatever the results hang on beside the victim: the data, the rows, the seed.
    """
    shards = _KNOWN.setdefault(victim, {})
    which = tuple(sorted(shard.items()))
    if which not in shards and len(shards) >= SHARDS_KEPT:
        del shards[next(iter(shards))]
    return shards.setdefault(which, Known())
