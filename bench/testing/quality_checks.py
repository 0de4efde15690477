"""The checks that every attack on quality models passes, on a victim whose score is linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustspike.bench.attack.result import ShardResult
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import params_of
from robustspike.bench.testing.attack_checks import QUALITY_GOALS
from robustspike.bench.testing.attack_checks import attack_reference
from robustspike.bench.testing.attack_checks import counts_its_passes
from robustspike.bench.testing.attack_checks import declares_itself
from robustspike.bench.testing.attack_checks import ignores_batch_mates
from robustspike.bench.testing.attack_checks import plain_run
from robustspike.bench.testing.attack_checks import respects_budgets
from robustspike.bench.testing.attack_checks import same_seed_same_bytes
from robustspike.bench.testing.attack_checks import stays_legal
from robustspike.bench.testing.attack_checks import survives_a_constant_victim
from robustspike.bench.testing.attack_checks import threat_for
from robustspike.bench.testing.attack_checks import zero_eps_changes_nothing
from robustspike.bench.testing.check import Checks
from robustspike.bench.testing.check import require
from robustspike.bench.testing.reference import reference

ROUNDING = 1e-3
"""Largest difference of two float32 sums of some thousand terms, on a score of 50."""

LENGTHS: Mapping[str, int] = {"queries": 60, "iterations": 4, "images": 32, "draws": 1}
"""Parameters that say how long attacks on quality models go on, and the length that checks are run at."""


def shortened(attack: Any) -> tuple[Any, dict[str, int]]:
    """Return the attack with shorter `LENGTHS`, where it is a dataclass with any, and those that changed."""
    given = params_of(attack)
    changed = {
        name: length
        for name, length in LENGTHS.items()
        if isinstance(given.get(name), int) and given[name] > length
    }
    return (replace(attack, **changed) if changed else attack), changed


def _attacked(attack: Any, goal: Goal | None = None) -> ShardResult:
    threat = threat_for(attack, task=Task.QUALITY)
    if goal in (None, threat.goal):
        return plain_run(attack, Task.QUALITY)
    return attack_reference(attack, replace(threat, goal=goal), task=Task.QUALITY)


def _change(result: ShardResult) -> Tensor:
    return result.adv_score - result.clean_score


def names_its_goals(attack: Any) -> None:
    """Quality models are attacked by raising, lowering or shifting their score."""
    known = set(QUALITY_GOALS)
    require(known & set(attack.spec.goals), f"spec.goals must name some of {sorted(known)}")


def scores_are_real(attack: Any) -> None:
    """The score of a final image, asked afresh, is the one that the attack is credited with."""
    result = _attacked(attack)
    require(not result.errors, f"expected no errors, got: {result.errors[:1]}")
    with torch.no_grad():
        fresh = reference(threat_for(attack).domain, task=Task.QUALITY).logits(result.x_adv).squeeze(1)
    worst = float((fresh.double() - result.adv_score).abs().max())
    require(worst <= ROUNDING, f"a final image scores {worst:.3g} away from what was recorded")


def moves_the_score_its_way(attack: Any) -> None:
    """Under every goal it declares, no score moves against the goal, and a linear one moves at all."""
    for goal in attack.spec.goals:
        if goal not in QUALITY_GOALS:
            continue
        change = _change(_attacked(attack, goal))
        ahead = {Goal.RAISE: change, Goal.LOWER: -change}.get(goal, change.abs())
        require(
            bool((ahead >= -ROUNDING).all()), f"goal {goal}: a score moves against it by {ahead.min():.3g}"
        )
        require(bool((ahead > ROUNDING).any()), f"goal {goal}: moves no score of the linear victim")


def larger_eps_is_not_weaker(attack: Any) -> None:
    """Four times the budget moves a linear score at least half as far: an attack may aim at a score, not at
    the largest change, and meet it better."""
    threat = threat_for(attack, task=Task.QUALITY)
    assert threat.eps is not None
    small = float(_change(plain_run(attack, Task.QUALITY)).abs().mean())
    wide = replace(threat, eps=threat.eps * 4)
    large = float(_change(attack_reference(attack, wide, task=Task.QUALITY)).abs().mean())
    require(large >= 0.5 * small, f"the mean change is {small:.3g} at eps, {large:.3g} at 4 eps")


QUALITY_CHECKS: Checks = {
    "declares_itself": declares_itself,
    "names_its_goals": names_its_goals,
    **{
        check.__name__: partial(check, task=Task.QUALITY)
        for check in (
            zero_eps_changes_nothing,
            stays_legal,
            same_seed_same_bytes,
            ignores_batch_mates,
            respects_budgets,
            counts_its_passes,
            survives_a_constant_victim,
        )
    },
    "scores_are_real": scores_are_real,
    "moves_the_score_its_way": moves_the_score_its_way,
    "larger_eps_is_not_weaker": larger_eps_is_not_weaker,
}
