"""APGD: projected ascent with momentum whose step size halves when progress stalls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.pixels.climbing import check
from robustspike.attacks.pixels.climbing import eot
from robustspike.attacks.pixels.climbing import from_starts
from robustspike.attacks.pixels.climbing import unit
from robustspike.attacks.pixels.climbing import vanishes
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Goal
from robustspike.bench.api import Loss
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import margin

_MOMENTUM, _RISING = 0.75, 0.75
"""Weight of the new step against the last move; share of rising steps that keeps the step size."""

_SOURCE = (
    "Croce & Hein 2020, arXiv:2003.01690, algorithm 1, with the constants of the authors' code (first step "
    "2 eps, random start on the surface of the ball). Differs: a sample stops at its first hit; the first "
    "window counts its first step against the start's loss, where the code compares it with 0."
)


def checkpoints(steps: int) -> list[int]:
    """Return after which steps the step size is reconsidered.

    Windows start at 0.22 of the steps and shrink by 0.03 down to 0.06 (rounded down, at least 1).
    """
    window, floor, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    at, found = window, []
    while at <= steps:
        found.append(at)
        window = max(window - shrink, floor)
        at += window
    return found


def surface(oracle: Oracle, x0: Tensor, *, rng: RowStreams) -> Tensor:
    """Return one random point per sample on the surface of the ball, cut to the domain."""
    if oracle.geometry.name == "l2":
        way = unit(rng.normal(x0.shape[1:], dtype=x0.dtype), power=2)
    else:
        noise = rng.uniform(x0.shape[1:], dtype=x0.dtype) * 2 - 1
        way = noise / noise.flatten(1).abs().amax(dim=1).view(-1, *[1] * (x0.dim() - 1))
    return oracle.project(x0 + oracle.radius * way, torch.arange(len(x0), device=x0.device))


def climb(
    oracle: Oracle,
    x: Tensor,
    *,
    steps: int,
    loss_of: Callable[[Tensor], Loss | str],
    estimator: str,
    draws: int,
) -> tuple[Tensor, Tensor]:
    """Run APGD from x; return the best iterates and their losses (-inf where nothing was computed).

    A sample whose gradient is zero at the start never moves and stops there, unless the victim draws noise or
    the estimator remembers.

    Args:
        x: legal starting points; changed in place.
        loss_of: rows -> the loss of those rows.
    """
    best, old = x.clone(), x.clone()
    top = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
    rows = oracle.differentiable(estimator, draws=draws)
    if not len(rows):
        return best, top
    out = oracle.loss_and_grad(x[rows], rows, loss_of(rows), estimator=estimator, draws=draws)
    gradient = torch.zeros_like(x)
    gradient[rows], top[rows] = out.grad, out.loss
    stuck = torch.zeros_like(top, dtype=torch.bool)
    if not oracle.spec.stochastic and not oracle.remembers(estimator):
        stuck[rows] = vanishes(out.grad)
    best_gradient, value, checked = gradient.clone(), top.clone(), top.clone()
    size = torch.full_like(top, 2 * oracle.radius)
    rises, reduced = torch.zeros_like(top), torch.ones_like(top, dtype=torch.bool)
    heading = torch.sign if oracle.geometry.name == "linf" else lambda g: unit(g, power=2)
    checks, last = checkpoints(steps), 0
    for done in range(1, steps + 1):
        rows = oracle.differentiable(estimator, draws=draws, among=~stuck)
        if not len(rows):
            break
        here, share = x[rows], _MOMENTUM if done > 1 else 1.0
        length = size[rows].view(-1, *[1] * (x.dim() - 1))
        plain = oracle.project(here + length * heading(gradient[rows]), rows)
        moved = oracle.project(here + share * (plain - here) + (1 - share) * (here - old[rows]), rows)
        old[rows], x[rows] = here, moved
        out = oracle.loss_and_grad(moved, rows, loss_of(rows), estimator=estimator, draws=draws)
        gradient[rows] = out.grad
        rises[rows] += (out.loss > value[rows]).to(rises.dtype)
        value[rows] = out.loss
        better = (out.loss > top[rows]).view(-1, *[1] * (x.dim() - 1))
        best[rows] = torch.where(better, moved, best[rows])
        best_gradient[rows] = torch.where(better, out.grad, best_gradient[rows])
        top[rows] = torch.maximum(top[rows], out.loss)
        if done in checks:
            stalled = rises[rows] <= _RISING * (done - last)
            stalled |= ~reduced[rows] & (checked[rows] >= top[rows])
            reduced[rows], checked[rows] = stalled, top[rows]
            size[rows] = torch.where(stalled, size[rows] / 2, size[rows])
            stalled = stalled.view_as(better)
            x[rows] = torch.where(stalled, best[rows], moved)
            gradient[rows] = torch.where(stalled, best_gradient[rows], out.grad)
            rises.zero_()
            last = done
    return best, top


@dataclass(frozen=True)
class ApgdCe:
    """APGD on the cross-entropy.

    Args:
        steps: iterations N.
        restarts: random starts, each run on the samples still standing.
        estimator: registry name of the gradient estimator.
        draws: noise draws averaged into one gradient (EOT); 0: 10 for stochastic victims, else 1.

    Cost: restarts * (steps + 1) gradients.
    """

    steps: int = 100
    restarts: int = 1
    estimator: str = "native"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="apgd.ce",
        geometries=("linf", "l2"),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=_SOURCE,
        cost="101 forwards + 101 backwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, steps=self.steps, restarts=self.restarts)

    def losses(self, oracle: Oracle) -> str:
        """Return the name of the loss."""
        del oracle
        return "ce"

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        loss = self.losses(oracle)

        def start(_: int) -> tuple[Tensor, Tensor]:
            return climb(
                oracle,
                surface(oracle, x0, rng=rng),
                steps=self.steps,
                loss_of=lambda rows: loss,
                estimator=self.estimator,
                draws=eot(oracle, self.draws),
            )

        return from_starts(oracle, x0, start, restarts=self.restarts)


@dataclass(frozen=True)
class ApgdDlr(ApgdCe):
    """APGD on the difference-of-logits ratio (the plain margin for victims with two classes).

    Args and cost: as `ApgdCe`.
    """

    spec: ClassVar[AttackSpec] = AttackSpec(
        name="apgd.dlr",
        geometries=("linf", "l2"),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=_SOURCE,
        cost="101 forwards + 101 backwards",
    )

    def losses(self, oracle: Oracle) -> str:
        return "dlr" if oracle.spec.classes > 2 else "margin"


def _towards(classes: Tensor, rows: Tensor) -> Loss:
    return targeted_dlr(classes[rows])


def targeted_dlr(target: Tensor) -> Loss:
    """Return the targeted difference-of-logits ratio, to be increased, for one class per row.

    (z_t - z_y) / (z_1 - (z_3 + z_4) / 2), z sorted in the denominator; the plain difference below
    four classes. Source: Croce & Hein 2020, arXiv:2003.01690, eq. 7.
    """

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        wanted = target.repeat_interleave(len(y) // max(len(target), 1))  # members of a joint victim in turn
        gain = (logits.gather(1, wanted[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
        if logits.shape[1] < 4:
            return gain
        high = logits.topk(4, dim=1).values
        return gain / (high[:, 0] - high[:, 2:].mean(dim=1) + 1e-12)

    return loss


@dataclass(frozen=True)
class ApgdTargeted:
    """APGD towards each of the most likely wrong classes in turn, on the samples still standing.

    Args:
        targets: number of target classes, the best-scored wrong ones on the clean input.
        steps: iterations per target.
        restarts: times that all targets are tried, from new random starts.
        estimator: registry name of the gradient estimator.
        draws: noise draws averaged into one gradient (EOT); 0: 10 for stochastic victims, else 1.

    Cost: 1 forward, and restarts * targets * (steps + 1) gradients, and 1 forward for each of them.
    """

    targets: int = 9
    steps: int = 100
    restarts: int = 1
    estimator: str = "native"
    draws: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="apgd.targeted",
        geometries=("linf", "l2"),
        stochastic=True,
        source=_SOURCE + " Loss: eq. 7; targets by the clean logits as in AutoAttack's apgd-t.",
        cost="910 forwards + 909 backwards",
    )

    def __post_init__(self) -> None:
        check(self.spec.name, steps=self.steps, targets=self.targets, restarts=self.restarts)

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        draws = eot(oracle, self.draws)
        rows = oracle.active(forwards=draws)
        if not len(rows):
            return oracle.best()[0]
        order = torch.zeros(len(x0), oracle.spec.classes, dtype=torch.int64, device=x0.device)
        _, answers = oracle.loss(x0[rows], rows, draws=draws)
        logits = answers.unflatten(1, (-1, oracle.spec.classes)).mean(dim=1)  # of a joint victim: the mean
        own = torch.nn.functional.one_hot(y[rows], logits.shape[1]).bool()
        wrong_first = logits.masked_fill(own, -torch.inf)
        order[rows] = wrong_first.argsort(dim=1, descending=True, stable=True)

        def start(_: int) -> tuple[Tensor, Tensor]:
            return self._towards_each(oracle, x0, order, draws, rng)

        return from_starts(oracle, x0, start, restarts=self.restarts)

    def _towards_each(
        self, oracle: Oracle, x0: Tensor, order: Tensor, draws: int, rng: RowStreams
    ) -> tuple[Tensor, Tensor]:
        """Climb towards each target once; return the iterates of largest margin, and that margin."""
        best = x0.clone()
        top = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
        for rank in range(min(self.targets, oracle.spec.classes - 1)):
            found, _ = climb(
                oracle,
                surface(oracle, x0, rng=rng),
                steps=self.steps,
                loss_of=functools.partial(_towards, order[:, rank]),
                estimator=self.estimator,
                draws=draws,
            )
            still = oracle.active(forwards=draws)
            if len(still):
                value, _ = oracle.loss(found[still], still, margin, draws=draws)
                better = still[value > top[still]]
                best[better], top[still] = found[better], torch.maximum(top[still], value)
        return best, top
