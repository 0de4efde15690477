"""FGSM, I-FGSM and MI-FGSM on a quality score, their transferred form, and the random-sign control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.pixels.climbing import eot
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Task
from robustspike.bench.api import registry

QUALITY = (Task.QUALITY,)
GOALS = (Goal.SHIFT, Goal.RAISE, Goal.LOWER)


def directions(oracle: Oracle, scores: Tensor) -> Tensor:
    """Return +1 (raise the score) or -1 for each clean score [n].

    For Goal.SHIFT: down where the prediction is above the middle of the score range, else up, which is
    the side with more room ("mid" in the literature).
    """
    goal = oracle.threat.goal
    if goal is not Goal.SHIFT:
        return torch.full_like(scores, -1.0 if goal is Goal.LOWER else 1.0)
    low, high = oracle.spec.score_range or (0.0, 1.0)
    return torch.where(scores > (low + high) / 2, -1.0, 1.0).to(scores)


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """View one value per image so that it broadcasts over x."""
    return values.view(-1, *[1] * (x.dim() - 1))


Update = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [n, ...], gradient of the aim [n, ...], rows [n]) -> the next x, not projected."""


def climb(oracle: Oracle, x0: Tensor, *, steps: int, estimator: str, update: Update) -> Tensor:
    """Follow the gradient of the aim for some steps; return the best iterate that the oracle saw.

    Against a stochastic model every gradient is an average over draws of its noise (EOT).

    Cost: per row, steps gradients of the estimator, each of all draws, and one forward for the last iterate.
    """
    draws = eot(oracle, 0)
    x, aim = x0.clone(), torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
    for iteration in range(steps):
        rows = oracle.differentiable(estimator, draws=draws)
        if not len(rows):
            break
        out = oracle.loss_and_grad(x[rows], rows, "score", estimator=estimator, draws=draws)
        if iteration == 0:
            aim[rows] = directions(oracle, out.loss)
        gradient = torch.nan_to_num(out.grad) * per_image(aim[rows], x0)
        x[rows] = oracle.project(update(x[rows], gradient, rows), rows)
    return finish(oracle, x, x0)


def finish(oracle: Oracle, x: Tensor, x0: Tensor) -> Tensor:
    """Ask for the score of the last iterate and return the best one seen (x0 where none)."""
    rows = oracle.active(forwards=1)
    if len(rows):
        oracle.logits(x[rows], rows)
    best, seen = oracle.best()
    return torch.where(per_image(seen, x0), best, x0)


@dataclass(frozen=True)
class QualityFgsm:
    """x + eps * direction * sign(gradient of the score).

    Args:
        estimator: registry name of the gradient estimator.

    Cost: 2 forwards + 1 backward.
    """

    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.fgsm",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source="Goodfellow et al. 2015, arXiv:1412.6572, on the score itself. Differs: none.",
        cost="2 forwards + 1 backward",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        def update(x: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
            del rows
            return x + oracle.radius * gradient.sign()

        return climb(oracle, x0, steps=1, estimator=self.estimator, update=update)


@dataclass(frozen=True)
class QualityIfgsm:
    """Signed gradient steps inside the ball, from the clean image.

    Args:
        steps: gradient steps.
        step: step size as a share of eps, times steps: each step is eps * step / steps.
        momentum: decay of the accumulated gradient; 0 for I-FGSM, 1 for MI-FGSM.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards.
    """

    steps: int = 10
    step: float = 2.5
    momentum: float = 0.0
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.ifgsm",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Kurakin et al. 2017, arXiv:1607.02533, as in Antsiferova et al., AAAI 2024. Differs: step "
            "2.5 eps / steps instead of 1/255; the best iterate is returned."
        ),
        cost="11 forwards + 10 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step > 0 or self.momentum < 0:
            raise ConfigError(
                f"{self.spec.name}: steps must be at least 1, step above 0 and momentum 0 or more, got "
                f"{self.steps}, {self.step} and {self.momentum}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        size = oracle.radius * self.step / self.steps
        velocity = torch.zeros_like(x0)

        def update(x: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
            velocity[rows] = self.momentum * velocity[rows] + gradient
            return x + size * velocity[rows].sign()

        return climb(oracle, x0, steps=self.steps, estimator=self.estimator, update=update)


@dataclass(frozen=True)
class QualityMifgsm(QualityIfgsm):
    """I-FGSM with accumulated gradients."""

    momentum: float = 1.0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.mifgsm",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Dong et al. 2018, arXiv:1710.06081, as in Antsiferova et al., AAAI 2024. Differs: gradients "
            "are accumulated without L1 normalisation, as there; the best iterate is returned."
        ),
        cost="11 forwards + 10 backwards",
    )


@dataclass(frozen=True)
class RandomSign:
    """x + eps * random signs: the control that every attack must beat.

    A victim whose score moves nearly as far under this as under a gradient attack follows noise; its
    score was not attacked.

    Cost: 1 forward.
    """

    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.random_sign",
        geometries=("linf",),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source="Control. Differs: none.",
        cost="1 forward",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = x0.clone()
        rows = oracle.active(forwards=1)
        if len(rows):
            noise = rng.sign(x0.shape[1:], rows=rows, dtype=x0.dtype)
            x[rows] = oracle.project(x0[rows] + oracle.radius * noise, rows)
            oracle.logits(x[rows], rows)
        return x


def practice_images(oracle: Oracle, dataset: str, count: int) -> Tensor:
    """Return images of a data set's training split in the victim's input size, for the attacker to learn on.

    Shape: [count, *spec.shape]; smaller images are tiled.
    """
    shape = oracle.spec.shape
    x: Tensor = registry("datasets").get(dataset).load("train")[:count].x
    if x.shape[1] != shape[0]:
        x = x.mean(dim=1, keepdim=True).expand(-1, shape[0], -1, -1)
    times = [-(-want // have) for want, have in zip(shape[1:], x.shape[2:], strict=True)]
    return x.repeat(1, 1, *times)[:, :, : shape[1], : shape[2]].contiguous()
