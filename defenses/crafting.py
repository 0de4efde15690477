"""Training points: adversarial examples and noise, made without the oracle, from training data only."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import Domain
from robustspike.bench.api import Step
from robustspike.bench.api import Task
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import cross_entropy

Start = Literal["clean", "uniform", "normal"]
Objective = Callable[[Tensor], Tensor]
"""What a training attack increases: logits [N, K] -> [N]."""

NEAR = 0.001
"""Standard deviation of the "normal" start, in pixel units (TRADES, MPPD)."""


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode for the length of the block; each part gets its own mode back."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


def normal(step: Step, scale: float) -> Tensor:
    """Draw normal noise of the shape of the batch from the step's own generator."""
    drawn = torch.randn(step.x.shape, generator=step.rng, dtype=step.x.dtype)
    return scale * drawn.to(step.x.device)


def craft(
    step: Step,
    objective: Objective,
    *,
    eps: float,
    steps: int,
    size: float,
    start: Start = "uniform",
    project: bool = True,
    training_mode: bool = False,
) -> Tensor:
    """Climb an objective by signed gradient steps inside an L-inf ball around the batch.

    Args:
        step: the training step; every pass starts from cleared state and draws fresh noise.
        objective: what is increased.
        eps: radius in pixel units.
        steps: gradient steps.
        size: step size in pixel units.
        start: at the clean point, at a uniform point of the ball, or at clean + 0.001 N(0, 1).
        project: whether iterates are projected into the ball (and not only into [0, 1]).
        training_mode: whether passes use BatchNorm's batch statistics (and update its running ones).

    Shape: returns detached points of the shape of step.x in [0, 1].
    Cost: `steps` forwards and backwards.
    """
    x0 = step.x.detach()
    x = x0.clone()
    if start == "uniform":
        u = torch.rand(x0.shape, generator=step.rng, dtype=x0.dtype).to(x0.device)
        x = (x0 + eps * (2 * u - 1)).clamp(0, 1)
    elif start == "normal":
        x = x0 + normal(step, NEAR)
    with nullcontext() if training_mode else in_eval_mode(step.module):
        for _ in range(steps):
            x.requires_grad_(True)
            gradient = step.input_gradient(objective(step.logits(x)), x)
            x = x.detach() + size * gradient.sign()
            if project:
                x = torch.minimum(torch.maximum(x, x0 - eps), x0 + eps)
            x = x.clamp(0, 1)
    return x.detach()


def pixels_only(recipe: VictimRecipe, *, classifier: bool = True) -> str | None:
    """Say why a rule on the pixels of a classifier does not apply to a victim, else None."""
    spec = recipe.spec()
    if spec.domain is not Domain.STATIC:
        return "it works on pixel values in [0, 1]; this victim takes event frames"
    if classifier:
        return classes_only(recipe)
    return None


def classes_only(recipe: VictimRecipe) -> str | None:
    """Say why a rule for class logits does not apply to a victim, else None."""
    if recipe.spec().task is not Task.CLASSIFY:
        return "its loss needs class logits; this victim answers a quality score"
    return None


@dataclass(frozen=True)
class Adversarial(DefenseBase):
    """Base of rules that train on adversarial examples of the cross-entropy.

    Args:
        eps: radius of the training attack in pixel units, at most the whole domain, 1; 0 trains on clean
            points.
        steps: gradient steps of the training attack.
        step: step size as a share of eps.
        start: where the training attack starts: "clean", "uniform" or "normal".
        training_mode: whether the attack sees batch statistics; by default running ones.
    """

    eps: float = 0.1
    steps: int = 5
    step: float = 0.5
    start: Start = "uniform"
    training_mode: bool = False

    def __post_init__(self) -> None:
        name = self.spec.name
        if not 0 <= self.eps <= 1 or self.steps < 1 or not self.step > 0:
            raise ConfigError(
                f"{name}: eps must be in [0, 1], steps at least 1, step above 0; got {self.eps}, "
                f"{self.steps} and {self.step}."
            )
        if self.start not in ("clean", "uniform", "normal"):
            raise ConfigError(f"{name}: start must be 'clean', 'uniform' or 'normal', got '{self.start}'.")

    def fits(self, recipe: VictimRecipe) -> str | None:
        return pixels_only(recipe) if self.eps else classes_only(recipe)

    def attack(self, step: Step, objective: Objective | None = None) -> Tensor:
        """Return adversarial training points of an objective, by default the cross-entropy."""

        def default(logits: Tensor) -> Tensor:
            return cross_entropy(logits, step.y)

        return craft(
            step,
            objective or default,
            eps=self.eps,
            steps=self.steps,
            size=self.step * self.eps,
            start=self.start,
            training_mode=self.training_mode,
        )

    def points(self, step: Step) -> Tensor:
        return self.attack(step) if self.eps else step.x
