"""NT: l1 gradient-norm regularization of a score, for quality models and classifiers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import nullcontext
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
from robustspike.defenses import slopes
from robustspike.defenses.slopes import Score
from robustspike.defenses.slopes import score_of
from robustspike.defenses.slopes import slope

Target = Literal["auto", "score", "prob", "pair_prob", "margin", "loss"]
_SLOPE_OF: dict[Target, slopes.Target] = {
    "auto": "margin",
    "score": "logit",
    "prob": "softmax_prob",
    "pair_prob": "pair_prob",
    "margin": "margin",
    "loss": "loss",
}
TARGETS: tuple[Target, ...] = ("auto", "score", "prob", "pair_prob", "margin", "loss")


@dataclass(frozen=True)
class NormRegularization(DefenseBase):
    """Penalise how fast the score changes along the sign of its own input gradient.

    D = (f(x + h v) - f(x)) / h with v = sign(grad f(x)) held constant; D tends to ||grad f||_1 as h goes
    to 0, and needs no second derivative: on a spiking network v comes from the surrogate gradient while
    the difference is the true one. By Taylor and Hoelder, eps ||grad f||_1 is how far an L-inf
    perturbation of size eps moves the score to first order.

    Args:
        weight: factor of the penalty mean |D|^p / p; 0 gives plain training bit for bit. None: 0.02 for a
            classifier, 2e-4 for a quality model (on the validation photograph, seed 0, rank correlation and
            mean |score change| / h at h = 1/255: CNN .951 and 4278 plain, .945 and 2184 with NT; spiking .943
            and 2403, .942 and 1507).
        p: 1 (the norm, as in text and theory) or 2 (half the square, as released).
        h: length of the difference in pixel units. None: 1e-3 for a quality model (0.01 would regularise
            a secant), 0.01 for a classifier.
        target: f. "auto": the score of a quality model, the margin of a classifier. "score": the quality
            score over its range, or the true class's logit; "prob", "pair_prob": the true class's
            probability among all classes, or against the strongest wrong one; "margin": true minus
            strongest wrong logit; "loss": the cross-entropy. The strongest wrong class is that of x.
        share: part of every (shuffled) batch on which the penalty is taken; less is cheaper and noisier.
        statistics: which ones batch normalisation uses in the penalty. "joint": those of one batch that
            holds clean and perturbed inputs, so that both are normalised alike and the gradient passes
            through; none is remembered. "running": the remembered ones; they lag behind the weights, and
            the penalty can be had for nothing: pre-activations drift out of their range, D falls to zero,
            and only the last, slow steps undo it (CNN: validation rank correlation -.07 and -.01 after 5 of
            10 epochs with seeds 0 and 1; .925 and 3406 at the end with seed 0). "batch": each input under its
            own batch's, as in the task loss, which hides the shift of a score from the penalty. "auto": joint
            for a quality model, batch for a classifier, where the penalty is on a margin and running
            statistics cost clean accuracy.

    Cost: per step 1 + 2 share forwards and 1 + 3 share backwards; with "joint" 1 + 3 share and 1 + 4 share.
    """

    weight: float | None = None
    p: Literal[1, 2] = 1
    h: float | None = None
    target: Target = "auto"
    share: float = 1.0
    statistics: Literal["auto", "joint", "running", "batch"] = "auto"
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="nt",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Liu et al., CVPR 2024, arXiv:2403.11397. Differs: p = 1 instead of the released p = 2; h and "
            "weight in pixel units and for scores in [0, 1]; batch normalisation sees clean and "
            "perturbed inputs of a quality model in one batch; on a classifier the score is the margin (the "
            "paper has regressors only)."
        ),
    )

    def __post_init__(self) -> None:
        if (self.weight or 0) < 0 or (self.h is not None and not self.h > 0) or self.p not in (1, 2):
            raise ConfigError(
                f"nt: weight must be 0 or more, h above 0, p 1 or 2; got {self.weight}, {self.h}, {self.p}."
            )
        if not 0 < self.share <= 1:
            raise ConfigError(f"nt: share must be above 0 and at most 1, got {self.share}.")
        if self.target not in TARGETS:
            raise ConfigError(f"nt: target must be one of {', '.join(TARGETS)}, got '{self.target}'.")
        if self.statistics not in ("auto", "joint", "running", "batch"):
            raise ConfigError(
                f"nt: statistics must be 'auto', 'joint', 'running' or 'batch', got '{self.statistics}'."
            )

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        if spec.task is Task.QUALITY:
            module.score_range = spec.score_range or (0.0, 1.0)  # type: ignore[assignment]
        return module

    def terms(self, step: Step) -> Terms:
        own = super().terms(step)
        if self.weight == 0:
            return own
        return {**own, "nt": self.penalty(step)}

    def penalty(self, step: Step) -> Tensor:
        """Return weight mean |D|^p / p over the batch of a training step."""
        x = step.x[: math.ceil(self.share * len(step.x))].detach().clone().requires_grad_(True)
        scores = hasattr(step.module, "score_range")
        h = self.h or (1e-3 if scores else 0.01)
        statistics = ("joint" if scores else "batch") if self.statistics == "auto" else self.statistics
        if statistics == "joint":
            with unmoved_statistics(step.module):
                steep = self.joint_slope(step, x, h)
        else:
            with running_statistics(step.module) if statistics == "running" else nullcontext():
                logits = step.logits(x)
                steep = slope(step, x, logits, self.score(step, logits), h=h)
        weight = (2e-4 if scores else 0.02) if self.weight is None else self.weight
        return weight * (steep.abs().mean() if self.p == 1 else steep.square().mean() / 2)

    def joint_slope(self, step: Step, x: Tensor, h: float) -> Tensor:
        """Return D with clean and perturbed inputs in one batch, so that both are normalised alike: [n]."""
        logits = step.logits(x)
        score = self.score(step, logits)
        toward = step.input_gradient(score(logits), x).sign()
        here, there = step.logits(torch.cat([x, x + h * toward]).detach()).chunk(2)
        return (score(there) - score(here)) / h

    def score(self, step: Step, logits: Tensor) -> Score:
        """Return f as a function of answers, given those at the clean point."""
        if logits.shape[1] == 1:
            low, high = step.module.score_range  # type: ignore[misc]
            return lambda z: z.squeeze(1) / (high - low)
        y = step.y[: len(logits)]
        return score_of(logits, y, _SLOPE_OF[self.target])


def _normalisations(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    found = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [layer for layer in found if layer.training]


@contextmanager
def unmoved_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation use its batches without learning from them for the length of the block."""
    kept = [(layer, layer.momentum, layer.num_batches_tracked) for layer in _normalisations(module)]
    for layer, _, count in kept:
        layer.momentum = 0.0
        layer.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for layer, momentum, count in kept:
            layer.momentum, layer.num_batches_tracked = momentum, count


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Put batch normalisation layers into evaluation mode for the length of the block."""
    layers = _normalisations(module)
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
