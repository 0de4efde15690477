"""Transfer from an ensemble: gradients of several quality models, each smoothed by Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.ensembles.transfer import expanded
from robustspike.attacks.ensembles.transfer import fitting_sources
from robustspike.attacks.ensembles.transfer import usable_sources
from robustspike.attacks.quality.blocks import farthest
from robustspike.attacks.quality.blocks import towards
from robustspike.attacks.quality.iterated import GOALS
from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import per_image
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimSpec


@dataclass(frozen=True)
class Sega:
    """Signed steps along the sum of the sources' smoothed gradients; the victim answers for the last image.

    Args:
        sources: names of the attacker's models, or shell-style patterns of them. Those without weights, with
            inputs of another size than the victim's, and the victim itself, are passed over.
        steps: signed steps.
        step: step size as a share of eps, times steps.
        draws: noisy copies of the image per source and step.
        sigma: deviation of their noise in pixel units.

    Cost: 2 forwards of the victim; steps * draws gradients of each source are the attacker's own.
    """

    sources: tuple[str, ...] = ("cnn_iqa.*", "snn_iqa.*")
    steps: int = 10
    step: float = 2.5
    draws: int = 4
    sigma: float = 4 / 255
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.sega",
        geometries=("linf", "rmse"),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source=(
            "Liu et al. 2025, arXiv:2509.18546 (SEGA), its idea: the gradient of an unknown model is near "
            "a sum of Gaussian-smoothed gradients of known ones. Differs: settings of our own, sources weigh "
            "alike (each gradient over its mean absolute value), several steps, no filter of the "
            "perturbation, and the direction comes from the victim's own clean score."
        ),
        cost="2 forwards",
    )

    def __post_init__(self) -> None:
        if min(self.steps, self.draws) < 1 or not self.step > 0 or self.sigma < 0 or not self.sources:
            raise ConfigError(
                f"{self.spec.name}: steps and draws must be at least 1, step above 0, sigma 0 or more and "
                f"sources not empty, got {self.steps}, {self.draws}, {self.step}, {self.sigma} and "
                f"{self.sources}."
            )

    def uses(self) -> dict[str, tuple[str, ...]]:
        return {"victims": expanded(self.sources)}

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse victims for which no source is known."""
        return None if fitting_sources(spec, self.sources) else "no source takes images of its size"

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        del y
        rows, aim = towards(oracle, x0)
        if not len(rows):
            return x0.clone()
        locals_ = [
            oracle.local(source, rows, rng=rng.fork("source", source.spec.name, rows=rows))
            for source in usable_sources(oracle, self.sources)
        ]
        if not locals_:
            raise ConfigError(
                f"{self.spec.name}: no source of {', '.join(self.sources)} but the victim itself takes "
                f"images {list(oracle.spec.shape)}. Name a model of another kind in `sources`."
            )
        x, size = x0[rows].clone(), oracle.radius * self.step / self.steps
        noise = rng.fork("noise", rows=rows)
        for _ in range(self.steps):
            total = torch.zeros_like(x)
            for _ in range(self.draws):
                moved = (x + self.sigma * noise.normal(x.shape[1:], dtype=x.dtype)).clamp(0, 1)
                total = total + sum(slope(local, moved) for local in locals_)
            x = oracle.project(x + size * (per_image(aim[rows], x) * total).sign(), rows)
        able = torch.isin(rows, oracle.active(forwards=1))
        if bool(able.any()):
            oracle.logits(x[able], rows[able])
        return farthest(oracle, x0)


def slope(local: Oracle, x: Tensor) -> Tensor:
    """Return a source's gradient, each image's over its mean absolute value."""
    everyone = torch.arange(len(x), device=x.device)
    gradient = torch.nan_to_num(local.loss_and_grad(x, everyone, "score").grad)
    size = gradient.abs().flatten(1).mean(dim=1)
    return gradient / per_image(size.clamp(min=1e-20), x)
