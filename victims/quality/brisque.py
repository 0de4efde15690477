"""A classical quality model: scene statistics and a small regression on them. It has no gradient."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.victims.quality.regressors import SCORE_RANGE
from robustspike.victims.quality.regressors import ScoreRecipe

FEATURES = 36

_GREY = (0.299, 0.587, 0.114)
_TINY = 1e-12
"""Added to variances: the products of a flat image are zero everywhere."""


class SceneStatistics(nn.Module):
    """The 36 features of BRISQUE: x [N, C, H, W] in [0, 1] to [N, 36] float32, without a gradient.

    At two scales: shape and variance of a generalised Gaussian fitted to the locally normalised luminance,
    and shape, mean and both variances of an asymmetric one fitted to the products of neighbours in four
    directions.
    """

    shapes: Tensor
    ratios: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=torch.float64) / (7 / 6)).square())
        shapes = torch.arange(200, 10001, dtype=torch.float64) / 1000
        self.register_buffer("taps", taps / taps.sum(), persistent=False)
        self.register_buffer("shapes", shapes, persistent=False)
        self.register_buffer("ratios", _ratio(shapes), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        weights = x.new_tensor(_GREY if x.shape[1] == 3 else [1 / x.shape[1]] * x.shape[1])
        grey = 255 * (x * weights.view(1, -1, 1, 1)).sum(dim=1, keepdim=True).double()
        found = [*self._at(grey), *self._at(functional.avg_pool2d(grey, 2))]
        return torch.stack(found, dim=1).float()

    def _at(self, grey: Tensor) -> list[Tensor]:
        mean = self._smooth(grey)
        spread = (self._smooth(grey.square()) - mean.square()).clamp(min=0).sqrt()
        z = ((grey - mean) / (spread + 1)).squeeze(1)
        variance = z.square().mean(dim=(1, 2)) + _TINY
        found = [self._shape(z.abs().mean(dim=(1, 2)).square() / variance), variance]
        for a, b in (
            (z[:, :, 1:], z[:, :, :-1]),
            (z[:, 1:], z[:, :-1]),
            (z[:, 1:, 1:], z[:, :-1, :-1]),
            (z[:, 1:, :-1], z[:, :-1, 1:]),
        ):
            found += self._asymmetric((a * b).flatten(1))
        return found

    def _smooth(self, grey: Tensor) -> Tensor:
        taps = self.get_buffer("taps").to(grey)
        padded = functional.pad(grey, (3, 3, 3, 3), mode="replicate")
        return functional.conv2d(functional.conv2d(padded, taps.view(1, 1, 1, 7)), taps.view(1, 1, 7, 1))

    def _asymmetric(self, z: Tensor) -> list[Tensor]:
        """Fit an asymmetric generalised Gaussian: shape, mean, left and right variance, [N] each."""
        square = z.square()
        below, above = (z < 0).to(z), (z > 0).to(z)
        left = (square * below).sum(dim=1) / below.sum(dim=1).clamp(min=1) + _TINY
        right = (square * above).sum(dim=1) / above.sum(dim=1).clamp(min=1) + _TINY
        g = (left / right).sqrt()
        ratio = z.abs().mean(dim=1).square() / (square.mean(dim=1) + _TINY)
        shape = self._shape(ratio * (g**3 + 1) * (g + 1) / (g.square() + 1).square())
        log = torch.lgamma
        lean = (log(2 / shape) - log(1 / shape) + (log(1 / shape) - log(3 / shape)) / 2).exp()
        return [shape, (right.sqrt() - left.sqrt()) * lean, left, right]

    def _shape(self, ratio: Tensor) -> Tensor:
        """Return the shape of the generalised Gaussian whose (mean |x|)^2 / mean x^2 is nearest."""
        place = torch.searchsorted(self.ratios, ratio.contiguous()).clamp(1, len(self.ratios) - 1)
        nearer = (ratio - self.ratios[place - 1]) < (self.ratios[place] - ratio)
        return self.shapes[torch.where(nearer, place - 1, place)]


def _ratio(shape: Tensor) -> Tensor:
    log = torch.lgamma
    return (2 * log(2 / shape) - log(1 / shape) - log(3 / shape)).exp()


class Brisque(nn.Module):
    """Scene statistics, standardised, and a network of one hidden layer: [N, C, H, W] to [N, 1] in 0..100."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.statistics = SceneStatistics()
        self.standard = nn.BatchNorm1d(FEATURES, affine=False)
        self.head = nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        return SCORE_RANGE[1] * torch.sigmoid(self.head(self.standard(self.statistics(x))))


@dataclass(frozen=True, kw_only=True)
class BrisqueLike(ScoreRecipe):
    """BRISQUE's features with a regression of our own; a black box, attacked through its scores alone.

    Args:
        hidden: units of the regression.
    """

    hidden: int = 64
    schedule: Schedule = Schedule(epochs=20, batch=32, lr=4e-3, keep="last")

    source: ClassVar[str] = (
        "Mittal, Moorthy & Bovik, IEEE TIP 2012 (BRISQUE): its 36 features. Differs: trained on the embedded "
        "photographs' pseudo-MOS, not on people's of LIVE; a network of one hidden layer, not support "
        "vectors; the second scale is a mean of 2x2 pixels; products do not wrap round the border. Its "
        "scores cannot be compared with those of a published BRISQUE."
    )

    def spec(self) -> VictimSpec:
        return dataclasses.replace(super().spec(), black_box=True)

    def build(self, rng: torch.Generator) -> nn.Module:
        net = Brisque(self.hidden)
        initialise(net, rng)
        return net


BRISQUE_PHOTOPATCH = BrisqueLike(name="brisque_like.photopatch")
BRISQUE_PHOTOS = BrisqueLike(name="brisque_like.photos", dataset="photos", shares="brisque_like.photopatch")
