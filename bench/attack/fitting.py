"""Whether an attack can be run on a victim under a threat model, and why not."""

from __future__ import annotations

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.oracle import loss_named
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.victim.checks import refusal
from robustspike.bench.victim.module import ModuleVictim


def misfit(attack: Attack, threat: ThreatModel, spec: VictimSpec) -> str | None:
    """Say why an attack cannot be run on a victim under a threat model (its access left aside), or None."""
    known = attack.spec
    for what, has, needs in (
        ("geometry", threat.geometry, known.geometries),
        ("domain", spec.domain, known.domains),
        ("task", spec.task, known.tasks),
        ("goal", threat.goal, known.goals),
    ):
        if has not in needs:
            return f"it is for the {what} {' or '.join(map(str, needs))}, not {has}"
    if threat.domain is not spec.domain:
        return f"the threat model is for the domain {threat.domain}, the victim's is {spec.domain}"
    meant = domains_of(threat.geometry)
    if meant is not None and spec.domain not in meant:
        return f"the geometry {threat.geometry} is for the domain {' or '.join(meant)}, not {spec.domain}"
    if spec.black_box and known.access is Access.WHITE:
        return "it needs gradients, and this victim is a black box that has none"
    if threat.is_minimum_norm and not known.minimum_norm:
        return "it needs a budget: it does not minimise the distance by itself"
    refuses = getattr(attack, "fits", None)  # optional: why the attack cannot run on a victim
    return refuses(spec) if callable(refuses) else None


def domains_of(geometry: str) -> tuple[str, ...] | None:
    """Return the input domains that a geometry declares to be for; None where it declares none."""
    declared: tuple[str, ...] | None = getattr(registry("geometries").get(geometry), "domains", None)
    return declared


def needs_of(attack: Attack) -> tuple[GradientEstimator | str, ...]:
    """Return the gradient estimators, or their names, that an attack cannot do without (see `Attack`)."""
    needs = getattr(attack, "needs", None)
    if callable(needs):
        return tuple(needs())
    own = getattr(attack, "estimator", None)
    return (own,) if isinstance(own, str | GradientEstimator) else ()


def refused_gradient(attack: Attack, victim: ModuleVictim) -> str | None:
    """Say which gradient that an attack cannot do without does not apply to a victim, and why; or None.


    Raises: ConfigError: an estimator, or the attack's `loss`, that does not exist or not for such a victim.
    """
    loss = getattr(attack, "loss", None)
    if isinstance(loss, str) and loss not in getattr(attack, "own_losses", ()):
        loss_named(loss, victim.spec)
    for estimator in needs_of(attack):
        rule: GradientEstimator = (
            registry("estimators").get(estimator) if isinstance(estimator, str) else estimator
        )
        reason = refusal(victim, rule)
        if reason is not None:
            name = estimator if isinstance(estimator, str) else rule.name
            return f"estimator '{name}' does not apply: {reason}"
    return None
