"""Purification: an image is changed a little before a quality model sees it, so that an attack may be lost.

None of them trains anything. All but two have a useful gradient of their own, so that white-box attacks go
through them; colour quantisation passes it straight through, and noise is averaged over draws (EOT).

Each strength is the one of three that I-FGSM moved least at 2/255 on the validation photograph, of those that
cost at most 0.05 of its clean rank correlation (`tests/benchmarks/purification.toml`); a median filter costs
0.25 at any size, and sharpening helps at none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Task
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec

_SOURCE = (
    "Guardians of Image Quality, ICML 2025, arXiv:2408.01541 (purification before NR-IQA models). Differs: "
    "the victim is not trained again, the image keeps its size, and attacks go through the change; strength "
    "chosen on the validation photograph."
)


class Purified(nn.Module):
    """Change the input, then ask the inner network."""

    def __init__(self, inner: nn.Module, change: nn.Module) -> None:
        super().__init__()
        self.change = change
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.change(x))
        return out


class Purification(DefenseBase):
    """Base of the family: a layer before a quality model."""

    def fits(self, recipe: VictimRecipe) -> str | None:
        return None if recipe.spec().task is Task.QUALITY else "it is for quality models"

    def layer(self) -> nn.Module:
        """Return the layer: images [N, C, H, W] to images of the same shape."""
        raise TypeError(f"{type(self).__name__} does not define layer().")

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        del spec
        return Purified(module, self.layer())

    def refuse_unless(self, fine: bool, wanted: str) -> None:
        """Raise ConfigError where a parameter is out of its range."""
        if not fine:
            raise ConfigError(f"{self.spec.name}: {wanted}; got {self}.")


class Mirror(nn.Module):
    """Left becomes right."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)


@dataclass(frozen=True)
class PurifyFlip(Purification):
    """Mirror every image."""

    spec: ClassVar[DefenseSpec] = DefenseSpec(name="purify_flip", trains=False, source=_SOURCE)

    def layer(self) -> nn.Module:
        return Mirror()


class Zoom(nn.Module):
    """Keep the middle, or shrink the whole; then back to the size that came in, bilinear."""

    def __init__(self, share: float, *, crop: bool) -> None:
        super().__init__()
        self.share = share
        self.crop = crop

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        small = max(1, round(self.share * height)), max(1, round(self.share * width))
        if self.crop:
            top, left = (height - small[0]) // 2, (width - small[1]) // 2
            middle = x[..., top : top + small[0], left : left + small[1]]
        else:
            middle = functional.interpolate(x, small, mode="bilinear", align_corners=False, antialias=True)
        return functional.interpolate(middle, (height, width), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class PurifyCrop(Purification):
    """Cut the middle out and enlarge it to the old size.

    Args:
        share: of each side that is kept.
    """

    share: float = 0.8
    spec: ClassVar[DefenseSpec] = DefenseSpec(name="purify_crop", trains=False, source=_SOURCE)

    def __post_init__(self) -> None:
        self.refuse_unless(0 < self.share <= 1, "share must be in (0, 1]")

    def layer(self) -> nn.Module:
        return Zoom(self.share, crop=True)


@dataclass(frozen=True)
class PurifyResize(Purification):
    """Shrink the image (with antialiasing) and enlarge it to the old size.

    Args:
        share: of each side that the small image has.
    """

    share: float = 0.5
    spec: ClassVar[DefenseSpec] = DefenseSpec(name="purify_resize", trains=False, source=_SOURCE)

    def __post_init__(self) -> None:
        self.refuse_unless(0 < self.share <= 1, "share must be in (0, 1]")

    def layer(self) -> nn.Module:
        return Zoom(self.share, crop=False)


class Turn(nn.Module):
    """Rotate about the middle, bilinear; what comes in from outside is reflected."""

    def __init__(self, degrees: float) -> None:
        super().__init__()
        self.angle = math.radians(degrees)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        rows = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
        turn = torch.tensor(rows, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
        grid = functional.affine_grid(turn, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class PurifyRotate(Purification):
    """Rotate every image by the same angle.

    Args:
        degrees: the angle, -180 to 180.
    """

    degrees: float = 5.0
    spec: ClassVar[DefenseSpec] = DefenseSpec(name="purify_rotate", trains=False, source=_SOURCE)

    def __post_init__(self) -> None:
        self.refuse_unless(abs(self.degrees) <= 180, "degrees must be -180 to 180")

    def layer(self) -> nn.Module:
        return Turn(self.degrees)


class Blur(nn.Module):
    """Gaussian filter with reflected borders; with `sharpen`, x plus so much of what the filter removes."""

    def __init__(self, sigma: float, *, sharpen: float | None = None) -> None:
        super().__init__()
        reach = max(1, math.ceil(3 * sigma))
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
        self.register_buffer("taps", taps / taps.sum(), persistent=False)
        self.sharpen = sharpen

    def forward(self, x: Tensor) -> Tensor:
        taps: Tensor = self.get_buffer("taps").to(x.dtype)
        reach = len(taps) // 2
        planes = functional.pad(x.flatten(0, 1).unsqueeze(1), (reach,) * 4, mode="reflect")
        planes = functional.conv2d(functional.conv2d(planes, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))
        blurred = planes.view_as(x)
        return blurred if self.sharpen is None else x + self.sharpen * (x - blurred)


@dataclass(frozen=True)
class PurifyBlur(Purification):
    """Gaussian blur.

    Args:
        sigma: standard deviation in pixels.
    """

    sigma: float = 1.0
    spec: ClassVar[DefenseSpec] = DefenseSpec(name="purify_blur", trains=False, source=_SOURCE)

    def __post_init__(self) -> None:
        self.refuse_unless(0 < self.sigma <= 5, "sigma must be in (0, 5]")

    def layer(self) -> nn.Module:
        return Blur(self.sigma)


@dataclass(frozen=True)
class PurifyUnsharp(Purification):
    """Unsharp masking: the image plus a part of what a Gaussian blur takes away, not clamped.

    Args:
        sigma: standard deviation of the blur in pixels.
        amount: the part.
    """

    sigma: float = 1.0
    amount: float = 0.25
    spec: ClassVar[DefenseSpec] = DefenseSpec(name="purify_unsharp", trains=False, source=_SOURCE)

    def __post_init__(self) -> None:
        fine = 0 < self.sigma <= 5 and self.amount >= 0
        self.refuse_unless(fine, "sigma must be in (0, 5] and amount 0 or more")

    def layer(self) -> nn.Module:
        return Blur(self.sigma, sharpen=self.amount)


class Median(nn.Module):
    """Median of a square window with reflected borders; the gradient goes to the pixel that was taken."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        reach = self.side // 2
        padded = functional.pad(x, (reach,) * 4, mode="reflect")
        windows = padded.unfold(2, self.side, 1).unfold(3, self.side, 1)
        return windows.flatten(-2).median(dim=-1).values


@dataclass(frozen=True)
class PurifyMedian(Purification):
    """Median filter.

    Args:
        side: of its window in pixels, odd.
    """

    side: int = 3
    spec: ClassVar[DefenseSpec] = DefenseSpec(name="purify_median", trains=False, source=_SOURCE)

    def __post_init__(self) -> None:
        self.refuse_unless(self.side in (1, 3, 5, 7), "side must be 1, 3, 5 or 7")

    def layer(self) -> nn.Module:
        return Median(self.side)


class Quantise(nn.Module):
    """Round to `levels` values in [0, 1]; the gradient passes as if nothing had been done."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        rounded = (x * (self.levels - 1)).round() / (self.levels - 1)
        return x + (rounded - x).detach() if torch.is_grad_enabled() else rounded


@dataclass(frozen=True)
class PurifyQuantise(Purification):
    """Colour quantisation (bit-depth reduction), channel by channel.

    Args:
        levels: values of a channel, 2 to 256.
    """

    levels: int = 16
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="purify_quantise",
        trains=False,
        hides_gradient=True,
        adaptive=("straight_through",),
        source=f"Xu et al., NDSS 2018, arXiv:1704.01155 (feature squeezing). {_SOURCE}",
    )

    def __post_init__(self) -> None:
        self.refuse_unless(2 <= self.levels <= 256, "levels must be 2 to 256")

    def layer(self) -> nn.Module:
        return Quantise(self.levels)


class AddNoise(nn.Module):
    """Add normal numbers, new ones in every pass."""

    draws_noise = True

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.noise: RowStreams | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.noise is None:
            raise ContractError("purify_noise: hand the network noise streams for every pass.")
        return x + self.sigma * self.noise.normal(x.shape[1:], dtype=x.dtype)


@dataclass(frozen=True)
class PurifyNoise(Purification):
    """Add Gaussian noise to every image, not clamped.

    Args:
        sigma: standard deviation in pixel units.
    """

    sigma: float = 8 / 255
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="purify_noise", trains=False, stochastic=True, adaptive=("eot",), source=_SOURCE
    )

    def __post_init__(self) -> None:
        self.refuse_unless(0 < self.sigma <= 1, "sigma must be in (0, 1]")

    def layer(self) -> nn.Module:
        return AddNoise(self.sigma)
