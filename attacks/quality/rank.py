"""SMA: destroy the ranking of a set of images rather than move each score as far as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import per_image
from robustspike.attacks.quality.iterated import practice_images
from robustspike.attacks.quality.universal import slope_at
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class RankReversal:
    """Drive every score to the mirrored quantile: the best image to the worst score, and so on.

    The targets come from the victim's clean scores on other images, so that a sample's target does not
    depend on its batch mates: a score at the u-quantile of those goes to the (1-u)-quantile.

    Args:
        steps: gradient steps.
        step: first step size as a share of eps, times steps; halved for a sample each time it crosses its
            target.
        dataset, images: where the quantiles come from.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards, and `images` practice passes shared among the samples.
    """

    steps: int = 10
    step: float = 2.5
    dataset: str = "photopatch_iqa"
    images: int = 256
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.sma",
        geometries=("linf",),
        tasks=QUALITY,
        goals=(Goal.SHIFT,),
        source=(
            "Yang et al. 2024, arXiv:2404.13277 (two stages: target scores for the set, then I-FGSM "
            "towards them). "
            "Differs: targets by exact reversal of ranks instead of descent on a soft rank correlation."
        ),
        cost="11 forwards + 10 backwards, and 256 practice passes shared among the samples",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or self.images < 2 or not self.step > 0:
            raise ConfigError(
                "quality.sma: steps must be at least 1, images at least 2 and step above 0, got "
                f"{self.steps}, {self.images} and {self.step}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        answer = slope_at(oracle, practice_images(oracle, self.dataset, self.images).to(x0), self.estimator)
        if answer is None:
            return x0.clone()
        known = answer[0].sort().values
        x, best = x0.clone(), x0.clone()
        nearest = torch.full((len(x0),), torch.inf, dtype=x0.dtype, device=x0.device)
        target, side = torch.zeros(2, len(x0), dtype=x0.dtype, device=x0.device)
        size = torch.full_like(target, oracle.radius * self.step / self.steps)
        for iteration in range(self.steps + 1):
            last = iteration == self.steps
            rows = oracle.active(forwards=1) if last else oracle.differentiable(self.estimator)
            if not len(rows):
                break
            if last:
                scores = oracle.logits(x[rows], rows).squeeze(1)
            else:
                out = oracle.loss_and_grad(x[rows], rows, "score", estimator=self.estimator)
                scores = out.loss
            if iteration == 0:
                target[rows] = mirrored(known, scores)
            gap = target[rows] - scores
            closer = gap.abs() < nearest[rows]
            best[rows[closer]], nearest[rows[closer]] = x[rows[closer]], gap[closer].abs()
            if last:
                break
            crossed = rows[side[rows] * gap < 0]
            size[crossed] /= 2
            side[rows] = gap.sign()
            move = per_image(size[rows] * gap.sign(), x0) * torch.nan_to_num(out.grad).sign()
            x[rows] = oracle.project(x[rows] + move, rows)
        return best


def mirrored(known: Tensor, scores: Tensor) -> Tensor:
    """Return the score at the opposite quantile of a sorted sample: [n].

    A score at or beyond the ends goes to the opposite end.
    """
    place = torch.searchsorted(known, scores.contiguous()).clamp(max=len(known) - 1)
    return known[len(known) - 1 - place]
