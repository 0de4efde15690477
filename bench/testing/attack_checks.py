"""The checks that every attack passes, on victims whose answers are known."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch

from robustspike.bench.attack.decide import target_classes
from robustspike.bench.attack.evaluate import evaluate_shard
from robustspike.bench.attack.fitting import domains_of
from robustspike.bench.attack.fitting import refused_gradient
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Budget
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.testing.check import Checks
from robustspike.bench.testing.check import CheckSkipped
from robustspike.bench.testing.check import require
from robustspike.bench.testing.reference import reference
from robustspike.bench.testing.reference import samples
from robustspike.bench.victim.module import ModuleVictim

_SIZES = {"linf": Fraction(1, 8), "l2": Fraction(1, 2), "rmse": Fraction(1, 16)}
QUALITY_GOALS = (Goal.SHIFT, Goal.RAISE, Goal.LOWER)


def _domain(geometry: str) -> Domain:
    """Return the domain of the reference victim on which a geometry makes sense."""
    if geometry in _SIZES:
        return Domain.STATIC
    return Domain.EVENTS if domains_of(geometry) == (Domain.EVENTS,) else Domain.SPIKES


def threat_for(attack: Any, *, eps: Fraction | int | None = None, task: Task = Task.CLASSIFY) -> ThreatModel:
    """Return a bounded threat model that the attack declares to respect (minimum-norm if it must)."""
    spec = attack.spec
    geometry = spec.geometries[0]
    size = Fraction(eps) if eps is not None else _SIZES.get(geometry, Fraction(4))
    wanted = [goal for goal in spec.goals if (goal in QUALITY_GOALS) == (task is Task.QUALITY)]
    return ThreatModel(
        domain=_domain(geometry),
        geometry=geometry,
        eps=size,
        access=spec.access,
        goal=(wanted or spec.goals)[0],
        levels=256 if task is Task.QUALITY else 0,
    )


def attack_reference(
    attack: Any,
    threat: ThreatModel,
    *,
    task: Task = Task.CLASSIFY,
    dtype: torch.dtype = torch.float32,
    rows: list[int] | None = None,
    victim: ModuleVictim | None = None,
    seed: int = 0,
) -> ShardResult:
    """Attack the reference victim of the threat's domain on (some of) the reference inputs."""
    _skip_unless_it_applies(attack, task)
    chosen = victim if victim is not None else reference_for(attack, threat.domain, task=task, dtype=dtype)
    x = samples(threat.domain, task=task, dtype=dtype)
    with torch.no_grad():
        answers = chosen.logits(x)
    if task is Task.QUALITY:
        y = answers.squeeze(1).double()
    else:
        y = answers.argmax(dim=1)
        y[-1] = (y[-1] + 1) % 3  # one sample that is wrong on the clean input
    ids = torch.arange(len(x))
    if rows is not None:
        index = torch.tensor(rows)
        x, y, ids = x[index], y[index], ids[index]
    return evaluate_shard(chosen, attack, threat, x, y, ids, seed=seed)


def reference_for(
    attack: Any,
    domain: Domain,
    *,
    task: Task = Task.CLASSIFY,
    dtype: torch.dtype = torch.float32,
    constant: bool = False,
) -> ModuleVictim:
    """Return the reference victim, with spiking neurons where the attack's estimator needs them."""
    plain = reference(domain, task=task, dtype=dtype, constant=constant)
    if refused_gradient(attack, plain) is None:
        return plain
    return reference(domain, task=task, dtype=dtype, constant=constant, spiking=True)


def plain_run(attack: Any, task: Task = Task.CLASSIFY) -> ShardResult:
    """Attack the reference under the attack's own threat: one run for all checks that look at it.

    `same_seed_same_bytes` holds it against a second one.
    """
    try:
        hash(attack)
    except TypeError:  # a parameter that is a table, say
        return _plain_run.__wrapped__(attack, task)
    return _plain_run(attack, task)


@lru_cache(maxsize=512)
def _plain_run(attack: Any, task: Task) -> ShardResult:
    return attack_reference(attack, threat_for(attack, task=task), task=task)


def _skip_unless_it_applies(attack: Any, task: Task) -> None:
    if task not in attack.spec.tasks:
        battery = "AttackContract" if task is Task.QUALITY else "QualityAttackContract"
        raise CheckSkipped(f"attacks no {task} models; the checks of {battery} are for it")
    refuses = getattr(attack, "fits", None)
    victim = reference(_domain(attack.spec.geometries[0]), task=task)
    reason = refuses(victim.spec) if callable(refuses) else None
    if reason:
        raise CheckSkipped(f"does not attack the reference victim: {reason}")


def _no_errors(result: ShardResult) -> None:
    require(not result.errors, f"expected no errors, got: {result.errors[:1]}")


def declares_itself(attack: Any) -> None:
    spec = attack.spec
    require(spec.name and spec.name == spec.name.lower(), f"spec.name must be lower-case, got '{spec.name}'")
    require(spec.geometries and spec.domains and spec.goals, "spec must name geometries, domains and goals")
    require(spec.source, "spec.source must say which paper, and how the attack differs from it")
    for geometry in spec.geometries:
        registry("geometries").entry(geometry)


def zero_eps_changes_nothing(attack: Any, task: Task = Task.CLASSIFY) -> None:
    threat = threat_for(attack, eps=0, task=task)
    result = attack_reference(attack, threat, task=task)
    _no_errors(result)
    require(
        torch.equal(result.x_adv, samples(threat.domain, task=task)),
        "eps = 0 must return the input bit for bit",
    )
    require(result.count(Status.BROKEN) == 0, "eps = 0 must break nothing")


def stays_legal(attack: Any, task: Task = Task.CLASSIFY) -> None:
    threat = threat_for(attack, task=task)
    _no_errors(plain_run(attack, task))
    for one in attack.spec.geometries[1:]:
        eps = _SIZES.get(one, Fraction(4))
        _no_errors(
            attack_reference(attack, replace(threat, geometry=one, eps=eps, domain=_domain(one)), task=task)
        )


def successes_are_real(attack: Any) -> None:
    result = plain_run(attack)
    victim = reference_for(attack, threat_for(attack).domain)
    with torch.no_grad():
        wrong = victim.logits(result.x_adv).argmax(dim=1) != result.labels
    broken = result.status == 1
    require(bool((wrong | ~broken).all()), "a sample called broken is classified correctly afresh")


def wrong_samples_stay_untouched(attack: Any) -> None:
    result = plain_run(attack)
    require(result.status[-1] == 2, "a sample that is wrong on the clean input must be WRONG_CLEAN")
    require(int(result.forwards[-1]) == 0, "a sample that is wrong on the clean input must cost nothing")


def same_seed_same_bytes(attack: Any, task: Task = Task.CLASSIFY) -> None:
    first = plain_run(attack, task)
    second = attack_reference(attack, threat_for(attack, task=task), task=task)
    for name in ShardResult.TENSORS:
        same = torch.equal(getattr(first, name), getattr(second, name))
        require(same, f"two runs with one seed differ in {name}")


def ignores_batch_mates(attack: Any, task: Task = Task.CLASSIFY) -> None:
    threat = threat_for(attack, task=task)
    whole = attack_reference(attack, threat, task=task, dtype=torch.float64)
    for rows in ([3, 0, 5], [4]):
        part = attack_reference(attack, threat, task=task, dtype=torch.float64, rows=rows)
        for place, row in enumerate(rows):
            same = torch.equal(part.x_adv[place], whole.x_adv[row])
            same &= bool(part.status[place] == whole.status[row])
            require(same, f"in exact arithmetic, sample {row} ends differently in another batch {rows}")


def respects_budgets(attack: Any, task: Task = Task.CLASSIFY) -> None:
    for forwards, backwards in ((0, 0), (1, 0), (1, 1), (3, 2)):
        budget = Budget(forwards=forwards, backwards=backwards)
        result = attack_reference(attack, replace(threat_for(attack, task=task), budget=budget), task=task)
        _no_errors(result)
        spent = int(result.forwards.max()), int(result.backwards.max())
        require(
            spent[0] <= forwards and spent[1] <= backwards,
            f"spent {spent} passes of ({forwards}, {backwards})",
        )


def counts_its_passes(attack: Any, task: Task = Task.CLASSIFY) -> None:
    result = plain_run(attack, task)
    require(int(result.forwards.sum()) > 0, "an attack that never asks the oracle cannot have been metered")
    if attack.spec.access is not Access.WHITE:
        require(int(result.backwards.sum()) == 0, f"{attack.spec.access} access must not use gradients")


def survives_a_constant_victim(attack: Any, task: Task = Task.CLASSIFY) -> None:
    threat = threat_for(attack, task=task)
    budget = Budget(forwards=400, backwards=200)
    victim = reference_for(attack, threat.domain, task=task, constant=True)
    result = attack_reference(attack, replace(threat, budget=budget), task=task, victim=victim)
    _no_errors(result)
    require(result.count(Status.BROKEN) == 0, "a constant victim cannot be broken")


def larger_eps_is_not_weaker(attack: Any) -> None:
    threat = threat_for(attack)
    assert threat.eps is not None
    small = plain_run(attack).count(Status.ROBUST)
    large = attack_reference(attack, replace(threat, eps=threat.eps * 4)).count(Status.ROBUST)
    require(large <= small + 2, f"{small} samples robust at eps, {large} at 4 eps (slack 2)")


def pursues_its_goals(attack: Any) -> None:
    if Goal.TARGETED not in attack.spec.goals:
        raise CheckSkipped("declares no targeted goal")
    threat = threat_for(attack)
    assert threat.eps is not None
    threat = replace(threat, goal=Goal.TARGETED, eps=threat.eps * 4)
    victim = reference_for(attack, threat.domain)
    result = attack_reference(attack, threat, victim=victim)
    _no_errors(result)
    broken = result.status == 1
    require(bool(broken.any()), "reaches no target class of the linear victim at four times its eps")
    with torch.no_grad():
        answers = victim.logits(result.x_adv[broken]).argmax(dim=1)
    targets = target_classes(result.labels, result.ids, victim.spec.classes)[broken]
    require(bool((answers == targets).all()), "a sample called broken is not answered with its target class")


ATTACK_CHECKS: Checks = {
    check.__name__: check
    for check in (
        declares_itself,
        zero_eps_changes_nothing,
        stays_legal,
        successes_are_real,
        wrong_samples_stay_untouched,
        same_seed_same_bytes,
        ignores_batch_mates,
        respects_budgets,
        counts_its_passes,
        survives_a_constant_victim,
        larger_eps_is_not_weaker,
        pursues_its_goals,
    )
}
