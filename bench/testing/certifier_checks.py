"""The checks of certifiers: of answers on the first shipped victim that fits, of scores on a linear one."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from robustspike.bench.attack.decide import decide
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.testing.check import Checks
from robustspike.bench.testing.check import CheckSkipped
from robustspike.bench.testing.check import require
from robustspike.bench.testing.reference import reference
from robustspike.bench.testing.reference import samples
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import load_victim
from robustspike.bench.victim.module import ModuleVictim

_N = 12
_RADII = {"linf": (0.001, 0.01), "l1": (0.001, 0.02)}
"""Radii in each norm at which something is certified of a small network on digits, and less of it."""

_DRAWS = 20
"""Points of every ball that are tried against a certificate."""


@cache
def _certifiable(certifier: Any) -> ModuleVictim:
    """Return the first victim on embedded images, plain or behind a filter, that a certifier fits."""
    filters = [
        name for name in registry("defenses").names() if not registry("defenses").get(name).spec.trains
    ]
    for defense in sorted(filters, key="none".__ne__):
        for name in registry("victims").names("*.digits"):
            recipe = registry("victims").get(name)
            is_hidden = recipe.shares or find_weights(recipe, defense, 0, None) is None
            if is_hidden or registry("defenses").get(defense).fits(recipe) is not None:
                continue
            victim = load_victim(name, defense=defense)
            if certifier.fits(victim) is None:
                return victim
    raise CheckSkipped("fits no shipped victim on embedded images")


def _batch() -> tuple[Tensor, Tensor]:
    data = registry("datasets").get("digits").load("test")
    return data.x[:_N], data.y[:_N]


def _certified(certifier: Any, x: Tensor, y: Tensor, ids: list[int] | None = None) -> Any:
    """Return what the certifier says of a batch, a `Certified`."""
    radii = _RADII.get(certifier.spec.norm, (0.001,))
    streams = RowStreams.derive(ids if ids is not None else range(len(x)), "certifier check")
    return certifier.certify(_certifiable(certifier), x, y, radii=list(radii), streams=streams)


def certifier_declares_itself(certifier: Any) -> None:
    spec = certifier.spec
    require(spec.name and spec.name == spec.name.lower(), f"spec.name must be lower-case, got '{spec.name}'")
    require(spec.norm in ("linf", "l1", "l2"), f"spec.norm must be linf, l1 or l2, got '{spec.norm}'")
    require(spec.source, "spec.source must say which paper, and how the certifier differs from it")
    require(0 < certifier.confidence <= 1, f"confidence must be in (0, 1], got {certifier.confidence}")


def certifier_says_what_it_fits(certifier: Any) -> None:
    domain = registry("datasets").get("digits").domain
    for task in (Task.CLASSIFY, Task.QUALITY):
        answer = certifier.fits(reference(domain, task=task))
        require(
            answer is None or (isinstance(answer, str) and answer), f"fits() must say why, got {answer!r}"
        )
        require(
            task in certifier.spec.tasks or answer, f"fits a victim of the task {task}, not in spec.tasks"
        )
    if Task.CLASSIFY in certifier.spec.tasks:
        _certifiable(certifier)


def certifier_answers_every_sample(certifier: Any) -> None:
    x, y = _batch()
    before = x.clone()
    found = _certified(certifier, x, y)
    require(torch.equal(x, before), "certify() changed its input in place")
    require(found.radius.shape == (len(x),), f"radius must be [{len(x)}], got {list(found.radius.shape)}")
    require(found.radius.dtype == torch.float64, f"radius must be float64, got {found.radius.dtype}")
    require(bool((found.radius >= -1).all()), "a radius is a number of -1 or more (-1: not certified)")
    require((found.n, found.norm) == (len(x), certifier.spec.norm), "n or norm is not that of the batch")
    small, large = _RADII.get(certifier.spec.norm, (0.001, 0.002))[:2]
    counts = found.count(0), found.count(small), found.count(large)
    require(counts[0] >= counts[1] >= counts[2], f"certifies more at a larger radius: {counts}")


def certifier_never_certifies_a_wrong_answer(certifier: Any) -> None:
    x, y = _batch()
    wrong = (y + 1) % _certifiable(certifier).spec.classes
    count = int((_certified(certifier, x, wrong).radius >= 0).sum())
    require(count <= 1, f"certifies {count} of {len(x)} samples whose labels are wrong")


def certifier_is_reproducible(certifier: Any) -> None:
    x, y = _batch()
    whole = _certified(certifier, x, y).radius
    require(torch.equal(whole, _certified(certifier, x, y).radius), "two runs on the same streams differ")
    order = list(range(len(x)))[::-1]
    turned = _certified(certifier, x[order], y[order], ids=order).radius
    same = (turned - whole[order]).abs() <= 1e-9
    require(bool(same.all()), "a sample's radius depends on its place in the batch")


def certificates_hold(certifier: Any) -> None:
    """No point that is tried inside a certified ball changes the answer of the victim."""
    victim, (x, y) = _certifiable(certifier), _batch()
    found = _certified(certifier, x, y)
    sure = found.radius > 0
    if not bool(sure.any()):
        raise CheckSkipped("certifies none of the samples")
    x, y, radius = x[sure], y[sure], found.radius[sure].to(x.dtype)
    size = radius.view(-1, *[1] * (x.dim() - 1)) * (1 - 1e-4)
    streams = RowStreams.derive(range(len(x)), "certificates hold")
    rows = torch.arange(len(x))
    for draw in range(_DRAWS):
        if certifier.spec.norm == "linf":
            step = streams.sign(x.shape[1:], rows=rows, dtype=x.dtype)
        else:  # one element by the whole radius: inside the l1 and the l2 ball
            step = torch.zeros_like(x).flatten(1)
            at = streams.integers(step.shape[1], (1,), rows=rows)
            step = step.scatter(1, at, streams.sign((1,), rows=rows, dtype=x.dtype)).view_as(x)
        point = (x + size * step).clamp(*victim.spec.bounds)
        answer = decide(victim, point, y, streams.fork("decide", draw))
        broken = int((answer.label != y).sum())
        require(broken == 0, f"{broken} of {len(x)} certified answers change inside their radius")


CERTIFIER_CHECKS: Checks = {
    check.__name__: check
    for check in (
        certifier_declares_itself,
        certifier_says_what_it_fits,
        certifier_answers_every_sample,
        certifier_never_certifies_a_wrong_answer,
        certifier_is_reproducible,
        certificates_hold,
    )
}


_IMAGES = 3
_RADIUS = {"linf": 0.001, "l1": 1.0, "l2": 0.05}
"""A radius in each norm at which scores are bounded, and could move."""


def _bounds(certifier: Any, x: Tensor, radius: float, ids: list[int] | None = None) -> Any:
    """Return what the certifier says of the linear score, a `CertifiedScores`."""
    victim = reference(Domain.STATIC, task=Task.QUALITY)
    streams = RowStreams.derive(ids if ids is not None else range(len(x)), "score certifier check")
    y = torch.zeros(len(x), dtype=torch.float64)
    return certifier.certify(victim, x, y, radii=[radius], streams=streams)


def _images() -> Tensor:
    return 0.25 + samples(Domain.STATIC, task=Task.QUALITY)[:_IMAGES] / 2


@cache
def _plain_bounds(certifier: Any) -> Any:
    return _bounds(certifier, _images(), _RADIUS[certifier.spec.norm])


def bounds_frame_every_score(certifier: Any) -> None:
    x = _images()
    found = _plain_bounds(certifier)
    require(torch.equal(x, _images()), "certify() changed its input in place")
    for name in ("score", "low", "high"):
        value = getattr(found, name)
        require(value.shape == (len(x),), f"{name} must be [{len(x)}], got {list(value.shape)}")
        require(value.dtype == torch.float64, f"{name} must be float64, got {value.dtype}")
    require(
        bool((found.low <= found.score).all() and (found.score <= found.high).all()),
        "not low <= score <= high",
    )
    require(found.norm == certifier.spec.norm, "norm is not that of spec")
    require(found.draws >= 1, "draws must count the passes that a sample took")
    wide = _bounds(certifier, x, 2 * found.radius)
    require(
        bool((wide.low <= found.low).all() and (wide.high >= found.high).all()),
        "bounds are narrower at twice the radius",
    )


def bounds_are_reproducible(certifier: Any) -> None:
    whole = _plain_bounds(certifier)
    order = list(range(_IMAGES))[::-1]
    turned = _bounds(certifier, _images()[order], whole.radius, ids=order)
    for name in ("score", "low", "high"):
        gap = (getattr(turned, name) - getattr(whole, name)[order]).abs()
        require(bool((gap <= 1e-3).all()), f"{name} of a sample depends on its place in the batch")


def bounds_hold(certifier: Any) -> None:
    """The certified model answers inside its bounds where, in the ball, a linear score is largest."""
    found, x = _plain_bounds(certifier), _images()
    victim = reference(Domain.STATIC, task=Task.QUALITY)
    weight = victim.module.weight.detach()  # type: ignore[union-attr, operator]
    step = {"linf": weight.sign(), "l2": weight / weight.norm()}.get(certifier.spec.norm)
    if step is None:
        largest = weight.abs() == weight.abs().max()
        step = weight.sign() * largest / largest.sum()
    for sign in (1, -1):
        moved = _bounds(certifier, (x + sign * found.radius * step).clamp(0, 1), 0.0)
        inside = (moved.score >= found.low) & (moved.score <= found.high)
        require(
            bool(inside.all()),
            f"{int((~inside).sum())} of {len(x)} answers leave their bounds inside the radius",
        )


SCORE_CERTIFIER_CHECKS: Checks = {
    check.__name__: check
    for check in (
        certifier_declares_itself,
        certifier_says_what_it_fits,
        bounds_frame_every_score,
        bounds_are_reproducible,
        bounds_hold,
    )
}
