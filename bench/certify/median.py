"""Certificates for scores: bounds on the median under Gaussian noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import scipy  # scipy.stats is loaded when it is first asked
import torch
from torch import Tensor
from torch.nn import functional

from robustspike.bench.certify.scores import CertifiedScores
from robustspike.bench.contract.specs import CertifierSpec
from robustspike.bench.contract.specs import Task
from robustspike.bench.errors import ConfigError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.victim.module import ModuleVictim


@dataclass(frozen=True)
class MedianSmoothing:
    """Bound the median of a score under Gaussian noise, whatever moves the input by at most a radius in l2.

    The median at any input within the radius lies between two percentiles at the input itself,
    Phi(-radius / sigma) and Phi(radius / sigma). They are bounded by order statistics of the draws, whose
    ranks are chosen by the binomial distribution so that both are on the safe side with the stated
    confidence.

    What is certified is the smoothed model, the median over noise: an answer of its own that costs `draws`
    passes, and not the plain score of one pass.

    Args:
        sigma: standard deviation of the noise in pixel units. Larger noise certifies narrower bounds and
            answers worse.
        draws: passes per sample.
        denoise: side of a median filter over the noisy image before the model; 1 for none. Certified all the
            same, since the filter is a part of the model then.
        error: probability that one of the two bounds of a sample is wrong.
    """

    sigma: float = 0.1
    draws: int = 500
    denoise: int = 1
    error: float = 0.001
    spec: ClassVar[CertifierSpec] = CertifierSpec(
        name="median",
        norm="l2",
        tasks=(Task.QUALITY,),
        source=(
            "Chiang et al., NeurIPS 2020, arXiv:2007.03730 (median smoothing, of bounding boxes), applied to "
            "scores as in Gushchin et al., ICML 2025. Differs: a plain median filter in the place of their "
            "trained denoisers; noisy images are cut to the domain; the error is shared by both bounds."
        ),
        cost="draws forwards per sample",
    )

    def __post_init__(self) -> None:
        if not self.sigma > 0 or self.draws < 1 or not 0 < self.error < 1:
            raise ConfigError(
                "median: sigma must be above 0, draws at least 1 and error inside (0, 1), got "
                f"{self.sigma}, {self.draws}, {self.error}."
            )
        if self.denoise < 1 or self.denoise % 2 == 0:
            raise ConfigError(f"median: denoise must be an odd side, 1 for no filter, got {self.denoise}.")

    @property
    def confidence(self) -> float:
        """Probability that both bounds of a sample hold."""
        return 1 - self.error

    def fits(self, victim: ModuleVictim) -> str | None:
        if victim.spec.task is not Task.QUALITY:
            return "it answers no score"
        if self.denoise > 1 and len(victim.spec.shape) != 3:
            return f"a median filter needs images, and its inputs are {list(victim.spec.shape)}"
        return None

    def rank(self, radius: float) -> int:
        """Return which of the sorted draws, counted from either end, bounds the answer; 0: none does."""
        share = float(scipy.stats.norm.cdf(-radius / self.sigma))
        return int(scipy.stats.binom.ppf(self.error / 2, self.draws, share))

    @torch.no_grad()
    def certify(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, *, radii: Sequence[float], streams: RowStreams
    ) -> CertifiedScores:
        """Bound the answers within the largest of the radii."""
        del y
        radius = max(radii)
        answers = []
        for draw in range(self.draws):
            noise = streams.fork("noise", draw).normal(x.shape[1:], dtype=x.dtype)
            noisy = denoised((x + self.sigma * noise).clamp(*victim.spec.bounds), self.denoise)
            inner = streams.fork("victim", draw) if victim.spec.stochastic else None
            answers.append(victim.logits(noisy, noise=inner).squeeze(1).double().cpu())
        ordered = torch.stack(answers).sort(dim=0).values
        rank = self.rank(radius)
        low, high = torch.full((2, len(x)), math.inf, dtype=torch.float64)
        low = -low
        if rank:
            low, high = ordered[rank - 1], ordered[self.draws - rank]
        middle = (ordered[(self.draws - 1) // 2] + ordered[self.draws // 2]) / 2
        return CertifiedScores("median", "l2", radius, middle, low, high, self.draws, self.confidence)


def denoised(x: Tensor, side: int) -> Tensor:
    """Return images [N, C, H, W] of medians over windows of a side; the border is repeated."""
    if side == 1:
        return x
    edge, (height, width) = side // 2, x.shape[2:]
    padded = functional.pad(x, (edge, edge, edge, edge), mode="replicate")
    places = itertools.product(range(side), range(side))
    left = [padded[:, :, i : i + height, j : j + width] for i, j in places]
    for _ in range(side * side // 2 + 1):  # the smallest goes; far faster than sorting each window
        smallest = left.pop()
        for place, other in enumerate(left):
            smallest, left[place] = torch.minimum(smallest, other), torch.maximum(smallest, other)
    return smallest
