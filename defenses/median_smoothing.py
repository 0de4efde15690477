"""Median smoothing before a quality model: the model whose scores `[[certify]] name = "median"` bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Task
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec


class MedianOverNoise(nn.Module):
    """Answer with the median of the inner network's scores over noisy copies of an image."""

    draws_noise = True

    def __init__(self, inner: nn.Module, *, sigma: float, draws: int, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.inner = inner
        self.sigma, self.draws, self.bounds = sigma, draws, bounds
        self.noise: RowStreams | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.noise is None:
            raise ContractError("median_smoothing: hand the network noise streams for every pass.")
        noise = self.noise.normal((self.draws, *x.shape[1:]), dtype=x.dtype)
        copies = (x.unsqueeze(1) + self.sigma * noise).clamp(*self.bounds)
        scores: Tensor = self.inner(copies.flatten(0, 1))  # one batch, from one cleared state
        return scores.view(len(x), self.draws).median(dim=1, keepdim=True).values


@dataclass(frozen=True)
class MedianSmoothed(DefenseBase):
    """The median of the score over Gaussian noise; what of it can be proven, the certifier `median` says.

    Args:
        sigma: standard deviation of the noise in pixel units.
        draws: noisy copies of an image per pass, an odd number. A pass is counted once and costs as many.
    """

    sigma: float = 0.1
    draws: int = 15
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="median_smoothing",
        trains=False,
        stochastic=True,
        adaptive=("eot",),
        source=(
            "Chiang et al., NeurIPS 2020, arXiv:2007.03730, as a defense of quality models in Gushchin et "
            "al., ICML 2025. Differs: 15 draws a pass instead of thousands; no denoiser; the victim is not "
            "trained on noise; attacks go through it (the gradient of a median is that of one of its draws, "
            "averaged over passes)."
        ),
    )

    def __post_init__(self) -> None:
        if not self.sigma > 0 or self.draws < 1 or self.draws % 2 == 0:
            raise ConfigError(
                f"median_smoothing: sigma must be above 0 and draws odd, got {self.sigma} and {self.draws}."
            )

    def fits(self, recipe: VictimRecipe) -> str | None:
        return None if recipe.spec().task is Task.QUALITY else "it is for quality models"

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        return MedianOverNoise(module, sigma=self.sigma, draws=self.draws, bounds=spec.bounds)
