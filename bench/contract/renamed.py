"""Components that were renamed: the old name goes on working for a while, and says so."""

from __future__ import annotations

import warnings
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A name that a component had.

    Args:
        to: its present name.
        since: the version that renamed it.
        until: the first version without the old name.
    """

    to: str
    since: str
    until: str


RENAMED: dict[str, dict[str, Renamed]] = {}
"""Kind of component -> old name -> what became of it. A record keeps the name that it was made under."""


def present_name(kind: str, name: str) -> str:
    """Return the present name of a component, with a warning where an old one was asked for."""
    found = RENAMED.get(kind, {}).get(name)
    if found is None:
        return name
    warnings.warn(
        f"{kind} '{name}' is called '{found.to}' since version {found.since}; the old name goes with version "
        f"{found.until}. Use the new one.",
        FutureWarning,
        stacklevel=3,
    )
    return found.to
