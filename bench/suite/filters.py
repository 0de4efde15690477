"""Which cells of a suite a command asks for."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from enum import StrEnum

from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.decode import decode
from robustspike.bench.contract.registry import registry
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.variant import Variant


class Field(StrEnum):
    """What a filter looks at."""

    VICTIM = "victim"
    DEFENSE = "defense"
    ATTACK = "attack"
    DATASET = "dataset"
    THREAT = "threat"


@dataclass(frozen=True)
class Filters:
    """Patterns by field: of one field any may match, of several fields all must."""

    patterns: Mapping[Field, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, only: Sequence[tuple[str, str]]) -> Filters:
        """Read filters and check names that are written out. Raises: ConfigError: one is unknown."""
        patterns: dict[Field, tuple[str, ...]] = {}
        for key, pattern in only:
            what: Field = decode(key, Field, f"--only {key}={pattern}")
            _check_name(what, pattern)
            patterns[what] = (*patterns.get(what, ()), pattern)
        return cls(patterns)

    def take_variant(self, variant: Variant) -> bool:
        """Say whether cells on a variant may be asked for."""
        return (
            self._take(Field.VICTIM, (variant.victim, variant.label))
            and self._take(Field.DEFENSE, (variant.family, variant.defense))
            and self._take(Field.DATASET, (variant.recipe.dataset,))
        )

    def take_cell(self, cell: Cell) -> bool:
        """Say whether a cell on a variant that was taken is asked for."""
        return self._take(Field.ATTACK, (cell.attack, cell.label)) and self._take(
            Field.THREAT, (cell.threat.label,)
        )

    def _take(self, what: Field, names: Iterable[str]) -> bool:
        patterns = self.patterns.get(what)
        return patterns is None or any(matches(name, p) for name in names for p in patterns)


def _check_name(what: Field, pattern: str) -> None:
    if what is Field.THREAT or any(sign in pattern for sign in "*?["):
        return
    name = parse_call(pattern)[0].partition("@")[0]
    if what is not Field.ATTACK or name not in registry("certifiers").names():
        registry(f"{what}s").entry(name)


def matches(name: str, pattern: str) -> bool:
    """Say whether a name is a pattern's, which may be the name itself, brackets and all."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def chosen(label: str, patterns: Sequence[str]) -> bool:
    """Say whether a threat's `attacks` name an attack; patterns that begin with "!" leave out."""
    without = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    among = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"] * bool(without)
    return any(matches(label, p) for p in among) and not any(matches(label, p) for p in without)
