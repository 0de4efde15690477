"""Attacks that change an image through few or bound parameters: low bands kept, pixels shifted, colours bent.

Each has parameters of its own per image, from which the attacked image is rendered; Adam climbs on them, with
the gradient of the score at the rendered, projected image pulled back through the rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robustspike.attacks.pixels.climbing import eot
from robustspike.attacks.quality.iterated import GOALS
from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import directions
from robustspike.attacks.quality.iterated import finish
from robustspike.attacks.quality.iterated import per_image
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimSpec

BALLS = ("linf", "rmse")
"""Geometries that a rendered image is projected into; `rmse` weakens a change and keeps its shape."""


@dataclass(frozen=True)
class Rendered:
    """Climb on parameters of a rendering. Subclasses say what is rendered, and what it costs the eye.

    Args:
        steps: Adam steps.
        weight: weight of the penalty beside the change of the score in units of its range.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards.
    """

    steps: int = 10
    weight: float = 0.1
    estimator: str = "native"
    spec: ClassVar[AttackSpec]

    def __post_init__(self) -> None:
        if self.steps < 1 or self.weight < 0:
            raise ConfigError(
                f"{self.spec.name}: steps must be at least 1 and weight 0 or more, got {self.steps} and "
                f"{self.weight}."
            )

    def start(self, x0: Tensor) -> Tensor:
        """Return the parameters [N, ...] under which an image stays as it is."""
        raise TypeError(f"{type(self).__name__} does not define start().")

    def render(self, x0: Tensor, parameters: Tensor) -> Tensor:
        """Return the attacked images, differentiable in the parameters."""
        raise TypeError(f"{type(self).__name__} does not define render().")

    def penalty(self, x0: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        """Return what is to stay small: [N]."""
        raise TypeError(f"{type(self).__name__} does not define penalty().")

    def rate(self, oracle: Oracle) -> float:
        """Return Adam's learning rate: how far a parameter goes in a step."""
        raise TypeError(f"{type(self).__name__} does not define rate().")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        del y, rng
        draws, rate = eot(oracle, 0), self.rate(oracle)
        low, high = oracle.spec.score_range or (0.0, 1.0)
        parameters = self.start(x0)
        first, second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        x, aim = x0.clone(), torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        for step in range(1, self.steps + 1):
            rows = oracle.differentiable(self.estimator, draws=draws)
            if not len(rows):
                break
            out = oracle.loss_and_grad(x[rows], rows, "score", estimator=self.estimator, draws=draws)
            if step == 1:
                aim[rows] = directions(oracle, out.loss)
            slope = torch.nan_to_num(out.grad) * per_image(aim[rows], x0) / (high - low)
            with torch.enable_grad():
                leaf = parameters[rows].requires_grad_(True)
                shown = self.render(x0[rows], leaf)
                gain = (slope * shown).sum() - self.weight * self.penalty(x0[rows], shown, leaf).sum()
                (gradient,) = torch.autograd.grad(gain, leaf)
            first[rows] = 0.9 * first[rows] + 0.1 * gradient
            second[rows] = 0.999 * second[rows] + 0.001 * gradient.square()
            mean, spread = first[rows] / (1 - 0.9**step), (second[rows] / (1 - 0.999**step)).sqrt()
            parameters[rows] += rate * mean / (spread + 1e-8)
            with torch.no_grad():
                x[rows] = oracle.project(self.render(x0[rows], parameters[rows]), rows)
        return finish(oracle, x, x0)


@dataclass(frozen=True)
class Ssah(Rendered):
    """Adam on the pixels, paid for by what changes in the low band of the Haar wavelet.

    Args:
        steps: Adam steps.
        weight: weight of the low band's smooth L1 distance (a sum over pixels) beside the score.
        step: Adam's learning rate as a share of eps, times steps.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards.
    """

    step: float = 2.5
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.ssah",
        geometries=BALLS,
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Luo et al., CVPR 2022, arXiv:2203.05151 (SSA with a low-frequency constraint), with the score "
            "instead of feature similarity as in Gushchin et al., ICML 2025 (Adam, 10 steps, weight 0.1). "
            "Differs: pixels themselves instead of tanh variables; learning rate 2.5 eps / steps; the image "
            "is projected into the budget after every step; the best iterate is returned."
        ),
        cost="11 forwards + 10 backwards",
    )

    def start(self, x0: Tensor) -> Tensor:
        return torch.zeros_like(x0)

    def render(self, x0: Tensor, parameters: Tensor) -> Tensor:
        return x0 + parameters

    def penalty(self, x0: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        del parameters
        low = functional.smooth_l1_loss(low_band(x), low_band(x0), reduction="none")
        return low.flatten(1).sum(dim=1)

    def rate(self, oracle: Oracle) -> float:
        return oracle.radius * self.step / self.steps


def low_band(x: Tensor) -> Tensor:
    """Return images rebuilt from the low band of one Haar step alone, which is the mean of 2x2 blocks.

    A last odd row or column is a block of its own.
    """
    coarse = functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    return coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, :, : x.shape[2], : x.shape[3]]


@dataclass(frozen=True)
class StAdv(Rendered):
    """Shift every pixel by a smooth flow instead of changing its value.

    Args:
        steps: Adam steps.
        weight: weight of the flow's total variation, the mean over pixels (tau in the paper).
        step: Adam's learning rate in pixels.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards.
    """

    weight: float = 0.05
    step: float = 0.1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.stadv",
        geometries=BALLS,
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Xiao et al., ICLR 2018, arXiv:1801.02612, on the score. Differs: Adam instead of L-BFGS; the "
            "total variation is a mean over pixels and not a sum, beside the score in units of its range; "
            "the image is projected into the budget, which the paper has none of; pixels beyond the border "
            "repeat it; the best iterate is returned."
        ),
        cost="11 forwards + 10 backwards",
    )

    def start(self, x0: Tensor) -> Tensor:
        return x0.new_zeros(len(x0), 2, *x0.shape[2:])

    def render(self, x0: Tensor, parameters: Tensor) -> Tensor:
        return warped(x0, parameters)

    def penalty(self, x0: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        del x0, x
        return roughness(parameters)

    def rate(self, oracle: Oracle) -> float:
        return self.step if oracle.radius else 0.0


def warped(x: Tensor, flow: Tensor) -> Tensor:
    """Return images whose pixels come from elsewhere, bilinearly.

    Args:
        x: images [N, C, H, W].
        flow: where each pixel comes from, right and down, in pixels [N, 2, H, W].
    """
    height, width = x.shape[2:]
    down, right = torch.meshgrid(
        torch.arange(height, dtype=x.dtype, device=x.device),
        torch.arange(width, dtype=x.dtype, device=x.device),
        indexing="ij",
    )
    columns = (right + flow[:, 0]) * (2 / max(1, width - 1)) - 1
    lines = (down + flow[:, 1]) * (2 / max(1, height - 1)) - 1
    places = torch.stack([columns, lines], dim=3)
    return functional.grid_sample(x, places, padding_mode="border", align_corners=True)


def roughness(flow: Tensor) -> Tensor:
    """Return the mean over pixels of |flow - flow of the neighbour|, right and below together: [N]."""
    right, below = flow[:, :, :, 1:] - flow[:, :, :, :-1], flow[:, :, 1:] - flow[:, :, :-1]
    parts = [(part.square().sum(dim=1) + 1e-8).sqrt().flatten(1).mean(dim=1) for part in (right, below)]
    return parts[0] + parts[1]


@dataclass(frozen=True)
class ReColor(Rendered):
    """Bend the colours of an image by one smooth map from colours to colours, the same at every pixel.

    Args:
        steps: Adam steps.
        weight: weight of the map's roughness, the mean squared difference between neighbours.
        step: Adam's learning rate as a share of eps, times steps.
        grid: places of the map along each colour channel; between them it is linear.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards.
    """

    weight: float = 1.0
    step: float = 2.5
    grid: int = 8
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.recolor",
        geometries=BALLS,
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Laidlaw & Feizi, NeurIPS 2019, arXiv:1906.00001 (ReColorAdv), on the score; it stands for the "
            "colour attacks of Gushchin et al., ICML 2025, whose cAdv needs a trained colouring network. "
            "Differs: the map is over RGB and 8 places a channel, not CIELUV; Adam on the score in units "
            "of its range; the image is projected into the budget, which bounds the map; the best iterate is "
            "returned."
        ),
        cost="11 forwards + 10 backwards",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid < 2 or not self.step > 0:
            raise ConfigError(
                f"{self.spec.name}: grid must be at least 2 and step above 0, got "
                f"{self.grid} and {self.step}."
            )

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse images without three colours."""
        return None if spec.shape[0] == 3 else f"it bends RGB colours, and inputs are {list(spec.shape)}"

    def start(self, x0: Tensor) -> Tensor:
        return x0.new_zeros(len(x0), 3, self.grid, self.grid, self.grid)

    def render(self, x0: Tensor, parameters: Tensor) -> Tensor:
        places = 2 * x0.movedim(1, 3).unsqueeze(1) - 1  # a colour is a place in the cube of colours
        moved = functional.grid_sample(parameters, places, padding_mode="border", align_corners=True)
        return x0 + moved.squeeze(2)

    def penalty(self, x0: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        del x0, x
        steps = [parameters.diff(dim=axis).square().flatten(1).mean(dim=1) for axis in (2, 3, 4)]
        return steps[0] + steps[1] + steps[2]

    def rate(self, oracle: Oracle) -> float:
        return oracle.radius * self.step / self.steps
