"""NT: l1 gradient-norm regularization of a score, for quality models and classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Step
from robustspike.bench.api import Task
from robustspike.bench.api import Terms
from robustspike.bench.api import VictimSpec

Target = Literal["score", "prob", "margin"]


@dataclass(frozen=True)
class NormRegularization(DefenseBase):
    """Penalise how fast the score changes along the sign of its own input gradient.

    D = (f(x + h v) - f(x)) / h with v = sign(grad f(x)) held constant; D tends to ||grad f||_1 as h goes
    to 0, and needs no second derivative: on a spiking network v comes from the surrogate gradient while
    the difference is the true one.

    Args:
        weight: factor of the penalty mean |D|^p / p; 0 gives plain training bit for bit.
        p: 1 (the norm, as in text and theory) or 2 (half the square, as released).
        h: length of the difference in pixel units; 0.01 would regularise a secant.
        target: f. "score": the quality score over its range, or the true class's logit; "prob": the true
            class's probability; "margin": true minus strongest wrong logit.

    Cost: per step 3 forwards and 3 backwards.
    """

    weight: float = 2e-4
    p: Literal[1, 2] = 1
    h: float = 1e-3
    target: Target = "score"
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="nt",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Liu et al., CVPR 2024, arXiv:2403.11397. Differs: p = 1 instead of the released p = 2; h and "
            "weight in pixel units and for scores in [0, 1]; batch normalisation uses its running "
            "statistics in the penalty (batch statistics would hide the shift and pollute them)."
        ),
    )

    def __post_init__(self) -> None:
        if self.weight < 0 or not self.h > 0 or self.p not in (1, 2):
            raise ConfigError(
                f"nt: weight must be 0 or more, h above 0, p 1 or 2; got {self.weight}, {self.h}, {self.p}."
            )
        if self.target not in ("score", "prob", "margin"):
            raise ConfigError(f"nt: target must be 'score', 'prob' or 'margin', got '{self.target}'.")

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        if spec.task is Task.QUALITY:
            module.score_range = spec.score_range or (0.0, 1.0)  # type: ignore[assignment]
        return module

    def terms(self, step: Step) -> Terms:
        own = super().terms(step)
        if not self.weight:
            return own
        return {**own, "nt": self.weight * self.penalty(step)}

    def penalty(self, step: Step) -> Tensor:
        """Return mean |D|^p / p over the batch of a training step."""
        x = step.x.detach().clone().requires_grad_(True)
        with running_statistics(step.module):
            here = self.value(step, x)
            gradient = step.input_gradient(here, x, keep_graph=True)
            there = self.value(step, (x + self.h * gradient.sign()).detach())
        slope = (there - here) / self.h
        return slope.abs().mean() if self.p == 1 else slope.square().mean() / 2

    def value(self, step: Step, x: Tensor) -> Tensor:
        """Return f(x), one number per sample."""
        logits = step.logits(x)
        if logits.shape[1] == 1:
            low, high = step.module.score_range  # type: ignore[misc]
            return logits.squeeze(1) / (high - low)
        own = logits.gather(1, step.y[:, None]).squeeze(1)
        if self.target == "prob":
            return logits.softmax(dim=1).gather(1, step.y[:, None]).squeeze(1)
        if self.target == "margin":
            mask = torch.nn.functional.one_hot(step.y, logits.shape[1]).bool()
            return own - logits.masked_fill(mask, -torch.inf).amax(dim=1)
        return own


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Put batch normalisation layers into evaluation mode for the length of the block."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
