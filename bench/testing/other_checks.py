"""The checks of defenses, gradient estimators and geometries."""

from __future__ import annotations

from typing import Any

import torch

from robustspike.bench.contract.registry import registry
from robustspike.bench.data.base import Split
from robustspike.bench.numbers.losses import cross_entropy
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import generator
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.testing.check import Checks
from robustspike.bench.testing.check import CheckSkipped
from robustspike.bench.testing.check import require
from robustspike.bench.testing.recipe_checks import liven
from robustspike.bench.training.fit import Schedule
from robustspike.bench.training.fit import fit
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.module import ModuleVictim

_ADAPTIVE = {"eot", "straight_through", "wide_surrogate"}


def _recipe(defense: Any) -> Any:
    """Return the first registered victim on embedded data that the defense applies to."""
    for name in registry("victims").names("*.digits*"):
        recipe = registry("victims").get(name)
        if not recipe.shares and defense.fits(recipe) is None:
            return recipe
    raise CheckSkipped("applies to no registered victim on embedded data")


def defense_declares_itself(defense: Any) -> None:
    spec = defense.spec
    require(spec.name and spec.name == spec.name.lower(), f"spec.name must be lower-case, got '{spec.name}'")
    require(spec.source, "spec.source must say which paper, and how the defense differs from it")
    for need in spec.adaptive:
        known = need in _ADAPTIVE or need in registry("attacks").names()
        require(known, f"spec.adaptive names '{need}', which is neither {sorted(_ADAPTIVE)} nor an attack")
    if spec.stochastic:
        require("eot" in spec.adaptive, "a randomised defense must require the adaptive attack 'eot'")
    if spec.hides_gradient:
        require("straight_through" in spec.adaptive, "a part without gradient needs 'straight_through'")


def defense_builds_a_sound_victim(defense: Any) -> None:
    recipe = _recipe(defense)
    spec = defense.describe(recipe.spec())
    module = defense.transform(recipe.build(generator("contract")), spec)
    x = recipe.data().load("test").x
    liven(recipe.trainable(module), x[:64])
    check_victim(ModuleVictim(module, spec), x)


def defense_trains_deterministically(defense: Any) -> None:
    if not defense.spec.trains:
        raise CheckSkipped("does not change the training")
    recipe = _recipe(defense)
    data = recipe.data()
    part: Split = data.load("train")[:32]
    states = []
    for _ in range(2):
        spec = defense.describe(recipe.spec())
        module = defense.transform(recipe.build(generator("contract")), spec)
        fit(
            recipe.trainable(module),
            part,
            part,
            schedule=Schedule(epochs=1, batch=16, lr=1e-3),
            terms=defense.terms,
            loss_of=recipe.loss,
            seed=0,
        )
        states.append(module.state_dict())
    for name, tensor in states[0].items():
        require(bool(torch.isfinite(tensor.double()).all()), f"'{name}' is not finite after two steps")
        require(torch.equal(tensor, states[1][name]), f"'{name}' differs between two runs of one seed")


DEFENSE_CHECKS: Checks = {
    check.__name__: check
    for check in (
        defense_declares_itself,
        defense_builds_a_sound_victim,
        defense_trains_deterministically,
    )
}


def estimator_declares_itself(estimator: Any) -> None:
    require(isinstance(estimator, GradientEstimator), "must derive from GradientEstimator")
    require(estimator.name, "must set the class attribute name")
    require(estimator.source, "must set the class attribute source")
    hash(estimator)


def estimator_keeps_the_forward(estimator: Any) -> None:
    for name in ("lif_cnn.digits", "qcfs_cnn.digits"):
        recipe = registry("victims").get(name)
        victim = ModuleVictim(recipe.build(generator("contract")), recipe.spec())
        reason = estimator.fits(victim.module, victim.neurons)
        if reason is None:
            break
    else:
        raise CheckSkipped(f"applies to no embedded spiking victim: {reason}")
    split = recipe.data().load("test")[:4]
    before = {id(n.module): n.module.surrogate_function for n in victim.neurons}
    with torch.no_grad():
        plain = victim.logits(split.x)
    out = victim.loss_and_grad(split.x, split.y, cross_entropy, estimator)
    require(torch.equal(out.logits, plain), "the forward answer changed under the estimator")
    got, expected = list(out.grad.shape), list(split.x.shape)
    require(got == expected, f"gradient {got} for inputs {expected}")
    require(bool(torch.isfinite(out.grad).all()), "the gradient is not finite")
    for neuron in victim.neurons:
        own = before[id(neuron.module)]
        require(neuron.module.surrogate_function is own, "the neuron's own surrogate was not put back")


ESTIMATOR_CHECKS: Checks = {
    check.__name__: check for check in (estimator_declares_itself, estimator_keeps_the_forward)
}


def _points() -> tuple[torch.Tensor, torch.Tensor, RowStreams, torch.Tensor]:
    n, shape = 8, (4, 2, 3, 3)
    streams = RowStreams.derive(range(n), "geometry check")
    x0 = (streams.uniform(shape) > 0.6).float()
    return x0, (x0 + streams.normal(shape)).clamp(-1, 2), streams, torch.arange(n)


def geometry_lands_inside(geometry: Any) -> None:
    x0, x, streams, rows = _points()
    for eps in (0.0, 0.5, 3.0):
        inside = geometry.project(x0, x, eps=eps, bounds=(0.0, 1.0))
        legal = geometry.legal(x0, inside, eps=eps, bounds=(0.0, 1.0))
        require(bool(legal.all()), f"project() leaves the ball of eps {eps}")
        again = geometry.project(x0, inside, eps=eps, bounds=(0.0, 1.0))
        require(bool(torch.allclose(again, inside, atol=1e-6)), "project() twice differs from once")
        drawn = geometry.sample(x0, eps=eps, bounds=(0.0, 1.0), rng=streams, rows=rows)
        legal = geometry.legal(x0, drawn, eps=eps, bounds=(0.0, 1.0))
        require(bool(legal.all()), f"sample() leaves the ball of eps {eps}")


def geometry_zero_eps_is_identity(geometry: Any) -> None:
    x0, x, _, _ = _points()
    same = torch.equal(geometry.project(x0, x, eps=0.0, bounds=(0.0, 1.0)), x0)
    require(same, "project() with eps = 0 must return x0 bit for bit")


def geometry_refuses_nan(geometry: Any) -> None:
    x0, _, _, _ = _points()
    bad = x0.clone()
    bad[0, 0, 0, 0, 0] = torch.nan
    legal = geometry.legal(x0, bad, eps=1e9, bounds=(0.0, 1.0))
    require(not bool(legal[0]) and bool(legal[1:].all()), "legal() must refuse the NaN row and only that")


def geometry_measures(geometry: Any) -> None:
    x0, x, _, _ = _points()
    require(bool((geometry.distance(x0, x0) == 0).all()), "distance(x, x) must be 0")
    inside = geometry.project(x0, x, eps=float("inf"), bounds=(0.0, 1.0))
    forward, back = geometry.distance(x0, inside), geometry.distance(inside, x0)
    require(forward.dtype == torch.float64, f"distance() must be float64, got {forward.dtype}")
    require(bool(torch.equal(forward, back)), "distance() must be symmetric")


GEOMETRY_CHECKS: Checks = {
    check.__name__: check
    for check in (
        geometry_lands_inside,
        geometry_zero_eps_is_identity,
        geometry_refuses_nan,
        geometry_measures,
    )
}
