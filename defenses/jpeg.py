"""JPEG compression of the input, before the victim sees it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Task
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec


class _Compress(torch.autograd.Function):
    """JPEG forward; the gradient passes as if nothing had been done (straight through)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, quality: int) -> Tensor:
        del ctx
        return compressed(x, quality)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grads[0], None


def compressed(x: Tensor, quality: int) -> Tensor:
    """Return images after 8-bit rounding and JPEG (Pillow's encoder): the shape and type of x."""
    from PIL import Image

    pixels = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    grey = x.shape[1] == 1
    out = np.empty_like(pixels)
    for i, picture in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(picture[:, :, 0] if grey else picture).save(buffer, format="JPEG", quality=quality)
        with Image.open(io.BytesIO(buffer.getvalue())) as opened:
            out[i] = np.asarray(opened).reshape(picture.shape)
    return torch.from_numpy(out).permute(0, 3, 1, 2).to(x) / 255


class JpegFilter(nn.Module):
    """Compress, then ask the inner network."""

    def __init__(self, inner: nn.Module, quality: int) -> None:
        super().__init__()
        self.inner = inner
        self.quality = quality

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = _Compress.apply(x, self.quality)  # type: ignore[no-untyped-call]
        out: Tensor = self.inner(seen)
        return out


@dataclass(frozen=True)
class Jpeg(DefenseBase):
    """Compress every input before a quality model scores it.

    Args:
        quality: JPEG quality, 1 to 95.
    """

    quality: int = 70
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="jpeg",
        trains=False,
        hides_gradient=True,
        adaptive=("straight_through",),
        source=(
            "Liu et al., TCSVT 2025 (JPEG before NR-IQA models, quality 70). Differs: the victim is not "
            "trained again; white-box attacks get the straight-through gradient."
        ),
    )

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ConfigError(f"jpeg: quality must be 1 to 95, got {self.quality}.")

    def fits(self, recipe: VictimRecipe) -> str | None:
        if recipe.spec().task is not Task.QUALITY:
            return "it is for quality models"
        return None

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        del spec
        return JpegFilter(module, self.quality)
