"""What ensembles have in common: a list of attacks, run one after the other, each for itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
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
        name: its name in the records: attack/estimator, or black_box/attack.
        attack: registry call.
    """

    name: str
    attack: str

    @property
    def is_black_box(self) -> bool:
        """Whether it uses no gradient of the target."""
        return self.name.startswith(BLACK_BOX_STAGE)


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


def levels(
    quick: Sequence[Member],
    standard: Sequence[Member],
    full: Sequence[Member],
    *,
    last: dict[Level, tuple[Member, ...]],
) -> dict[Level, tuple[Member, ...]]:
    """Return the list of every level: what it adds to the lower ones, then its black boxes.

    A black box comes again in every level under the same name, with no fewer queries: a member's random
    numbers hang on its name, so that it asks the lower level's queries first: each level contains the lower.
    """
    added = dict(zip(LEVELS, (quick, standard, full), strict=True))
    return {
        level: (*(m for lower in LEVELS[: place + 1] for m in added[lower]), *last[level])
        for place, level in enumerate(LEVELS)
    }


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
            applied += not member.is_black_box
    oracle.tally("members", sum(not member.is_black_box for member, _ in wanted))
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
        abreast: run as many of the next members side by side as fill a pass, else one after the other.
    """
    todo = list(members)
    while todo and len(oracle.active()):
        count = oracle.abreast(len(todo)) if abreast else 1
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
            if not member.is_black_box:
                oracle.tally("members_applied", -1)


def _part(
    oracle: Oracle, member: Member, attack: Attack, x0: Tensor, y: Tensor, rng: RowStreams
) -> Callable[[], Tensor]:
    return lambda: attack.run(oracle, x0.clone(), y.clone(), rng=rng.fork("member", member.name))
