"""What ensembles have in common: a list of attacks, run one after the other, each for itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from torch import Tensor

from robustspike.bench.api import BLACK_BOX_STAGE
from robustspike.bench.api import Attack
from robustspike.bench.api import EstimatorRefused
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

Level = Literal["quick", "standard", "full"]

LEVELS: tuple[Level, ...] = ("quick", "standard", "full")


@dataclass(frozen=True)
class Member:
    """One attack of an ensemble.

    Args:
        name: its name in the records: attack/estimator, black_box/attack, or attack/closest.
        attack: registry call.
        goes_on: whether it starts at the best input that earlier members found. It uses no gradient itself,
            and is no control without gradients either.
    """

    name: str
    attack: str
    goes_on: bool = False

    @property
    def is_black_box(self) -> bool:
        """Whether neither it nor where it starts uses a gradient of the target."""
        return self.name.startswith(BLACK_BOX_STAGE)

    @property
    def is_steep(self) -> bool:
        """Whether it follows gradients of the target, from starts of its own."""
        return not (self.is_black_box or self.goes_on)


def gradient(attack: str, estimator: str, *, start: int = 0, **params: object) -> Member:
    """Make a member that follows gradients.

    Args:
        start: which of several random starts of the same attack it is.
    """
    short = "-".join([attack.rpartition(".linf")[0] or attack, *map(str, params.values())])
    again = f"#{start}" if start else ""
    given = "".join(f", {key}={value}" for key, value in params.items())
    return Member(f"{short}{again}/{estimator}", f"{attack}(estimator='{estimator}'{given})")


def starts(
    count: int, attack: str, estimator: str, *, first: int = 0, **params: object
) -> tuple[Member, ...]:
    """Make one member for each of several random starts."""
    return tuple(gradient(attack, estimator, start=first + k, **params) for k in range(count))


def black(attack: str) -> Member:
    """Make a member that uses no gradient of the target."""
    return Member(BLACK_BOX_STAGE + attack.partition("(")[0].removesuffix(".linf"), attack)


def onward(queries: int) -> Member:
    """Make a member that searches on from the best input of all earlier ones, with forwards alone."""
    return Member(f"vertex-{queries}/closest", f"vertex.linf(queries={queries})", goes_on=True)


def levels(
    quick: Sequence[Member], standard: Sequence[Member], full: Sequence[Member]
) -> dict[Level, tuple[Member, ...]]:
    """Return the list of every level: that of the lower one, then what it adds.

    A member's random numbers hang on its name, and where it goes on from on the members before it: so each
    level contains the lower one, sample by sample.
    """
    return {"quick": (*quick,), "standard": (*quick, *standard), "full": (*quick, *standard, *full)}


def resolved(listed: Sequence[Member], only: str) -> list[tuple[Member, Attack]]:
    """Return the members whose names match a shell-style pattern, with their attacks."""
    wanted = [member for member in listed if fnmatch.fnmatchcase(member.name, only)]
    return [(member, registry("attacks").get(member.attack)) for member in wanted]


def applying(oracle: Oracle, listed: Sequence[Member], only: str) -> list[tuple[Member, Attack]]:
    """Return the members that apply to the victim; the record names and counts the others (refused:NAME).

    Args:
        listed: the list for the victim's kind.
        only: shell-style pattern of names; what it does not match is left out and not counted.
    """
    wanted = resolved(listed, only)
    found, applied = [], 0
    for member, attack in wanted:
        estimator, fits = getattr(attack, "estimator", None), getattr(attack, "fits", None)
        refused = estimator is not None and oracle.refusal(estimator) is not None
        if refused or (callable(fits) and fits(oracle.spec) is not None):
            oracle.tally(f"refused:{member.name}", 1)
        else:
            found.append((member, attack))
            applied += member.is_steep
    oracle.tally("members", sum(member.is_steep for member, _ in wanted))
    oracle.tally("members_applied", applied)
    return found


def is_thin(oracle: Oracle) -> bool:
    """Say whether fewer than half of the gradient members of the list can be run, or were."""
    return 2 * oracle.tallied("members_applied") < oracle.tallied("members")


def attempts(
    oracle: Oracle,
    members: Sequence[tuple[Member, Attack]],
    x0: Tensor,
    y: Tensor,
    *,
    rng: RowStreams,
    abreast: bool = False,
) -> Iterator[Tensor]:
    """Run members on the samples still standing; yield what each returned.

    A member's random numbers hang on its name alone. What a member raises is booked, and the others go on.

    Args:
        abreast: run as many of the next members that follow gradients side by side as fill a pass, else all
            one after the other.
    """
    todo = list(members)
    if any(member.goes_on for member, _ in todo):
        oracle.closest()  # kept from here on
    while todo and len(oracle.active()):
        steep = len(list(takewhile(lambda member: member[0].is_steep, todo)))
        count = oracle.abreast(steep) if abreast and steep else 1
        group, todo = todo[:count], todo[count:]
        for member, _ in group:
            oracle.stage(member.name)  # accounts are kept in the order of the list
        # the longest begin first, so that none of them is left alone with few samples a pass
        group.sort(key=lambda member: -int(getattr(member[1], "steps", 0)))
        parts = [(member.name, _part(oracle, member, attack, x0, y, rng)) for member, attack in group]
        for (member, _), found in zip(group, oracle.side_by_side(parts), strict=True):
            if found is None:
                continue
            if isinstance(found, EstimatorRefused):  # a neuron can refuse as late as in its first pass
                oracle.tally(f"refused:{member.name}", 1)
            elif isinstance(found, Exception):
                oracle.failed(member.name, found)
            else:
                yield found
                continue
            if member.is_steep:
                oracle.tally("members_applied", -1)


def _part(
    oracle: Oracle, member: Member, attack: Attack, x0: Tensor, y: Tensor, rng: RowStreams
) -> Callable[[], Tensor]:
    return lambda: attack.run(oracle, x0.clone(), y.clone(), rng=rng.fork("member", member.name))
