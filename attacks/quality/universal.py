"""Perturbations learned on other images: one pattern for all images, or a network that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from robustspike.attacks.quality.iterated import GOALS
from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import directions
from robustspike.attacks.quality.iterated import per_image
from robustspike.attacks.quality.iterated import practice_images
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import generator
from robustspike.bench.api import initialise
from robustspike.bench.api import registry


def score_of(logits: Tensor, y: Tensor) -> Tensor:
    """Return the score, as an attack loss."""
    del y
    return logits.squeeze(1)


def slope_at(oracle: Oracle, x: Tensor, estimator: str) -> tuple[Tensor, Tensor] | None:
    """Return scores and their gradients over the range at the attacker's own images, or None: too dear."""
    rule: GradientEstimator = registry("estimators").get(estimator)
    price = oracle.practice_price(len(x))
    able = oracle.active(forwards=price * rule.forwards + 1, backwards=price * rule.backwards)
    everyone = oracle.active(forwards=0)
    if not len(everyone) or len(able) < len(everyone):
        return None
    out = oracle.practice(x, score_of, estimator=rule)
    low, high = oracle.spec.score_range or (0.0, 1.0)
    return out.loss, torch.nan_to_num(out.grad) / (high - low)


def wanted(oracle: Oracle) -> tuple[float, ...]:
    """Return the directions to learn: one, or both where each image chooses its own."""
    return {Goal.RAISE: (1.0,), Goal.LOWER: (-1.0,)}.get(oracle.threat.goal, (1.0, -1.0))


def apply(oracle: Oracle, x0: Tensor, patterns: dict[float, Tensor]) -> Tensor:
    """Add to each image the perturbation of its direction, and ask for the score.

    patterns: direction -> perturbation of one image, or of each.
    """
    x = x0.clone()
    rows = oracle.active(forwards=2)
    if not len(rows):
        return x
    aim = directions(oracle, oracle.logits(x0[rows], rows).squeeze(1))
    for direction, pattern in patterns.items():
        at = rows[aim == direction]
        x[at] = oracle.project(x0[at] + (pattern[at] if len(pattern) > 1 else pattern), at)
    oracle.logits(x[rows], rows)
    return x


def batches(x: Tensor, size: int, epochs: int) -> Iterator[Tensor]:
    """Yield shuffled batches, the same ones every time."""
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator("quality practice", epoch))
        yield from (x[part.to(x.device)] for part in order.split(size))


@dataclass(frozen=True)
class UapOptimised:
    """One pattern for all images, learned by Adam on other images.

    Args:
        dataset: data set whose training split the attacker learns on.
        images, epochs, batch: how many of its images, how often, and at once.
        lr: step of the learning as a share of eps.
        estimator: registry name of the gradient estimator.

    Cost: images * epochs passes shared among the attacked samples (twice that if both directions are
        learned), and 2 forwards.
    """

    dataset: str = "photopatch_iqa"
    images: int = 256
    epochs: int = 3
    batch: int = 32
    lr: float = 0.15
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.uap",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Shumitskaya et al., BMVC 2022, in the 'optimised' form of CVIU 2024. Differs: eps replaces the "
            "amplitude; a pattern of the victim's input size; one for each direction; 256 images, 3 epochs."
        ),
        cost="2 forwards, and 768 practice passes a direction shared among the samples",
    )

    def __post_init__(self) -> None:
        if min(self.images, self.epochs, self.batch) < 1 or not self.lr > 0:
            raise ConfigError(
                f"{self.spec.name}: images, epochs and batch must be at least 1 and lr above 0, got "
                f"{self.images}, {self.epochs}, {self.batch} and {self.lr}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        if not oracle.radius:
            return apply(oracle, x0, {})
        practice = practice_images(oracle, self.dataset, self.images).to(x0)
        return apply(oracle, x0, {d: self.learn(oracle, practice, d) for d in wanted(oracle)})

    def learn(self, oracle: Oracle, practice: Tensor, direction: float) -> Tensor:
        """Return the pattern [1, C, H, W] for one direction."""
        eps = oracle.radius
        pattern = torch.zeros_like(practice[:1])
        first, second = torch.zeros_like(pattern), torch.zeros_like(pattern)
        for count, x in enumerate(batches(practice, self.batch, self.epochs), start=1):
            answer = slope_at(oracle, (x + pattern).clamp(0, 1), self.estimator)
            if answer is None:
                break
            gradient = direction * answer[1].mean(dim=0, keepdim=True)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient.square()
            mean, spread = first / (1 - 0.9**count), (second / (1 - 0.999**count)).sqrt()
            pattern = (pattern + self.lr * eps * mean / (spread + 1e-12)).clamp(-eps, eps)
        return pattern


@dataclass(frozen=True)
class UapCumulative(UapOptimised):
    """One pattern for all images, by plain accumulation of gradients.

    Args:
        lr: factor of the mean gradient of score / range (published: 1).
    """

    lr: float = 1.0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.uap_cumulative",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Shumitskaya et al., CVIU 240:103913, 2024, 'cumulative' form. Differs: as quality.uap; the "
            "bound "
            "is eps."
        ),
        cost="2 forwards, and 768 practice passes a direction shared among the samples",
    )

    def learn(self, oracle: Oracle, practice: Tensor, direction: float) -> Tensor:
        eps = oracle.radius
        pattern = torch.zeros_like(practice[:1])
        for x in batches(practice, self.batch, self.epochs):
            answer = slope_at(oracle, (x + pattern).clamp(0, 1), self.estimator)
            if answer is None:
                break
            step = self.lr * direction * answer[1].mean(dim=0, keepdim=True)
            pattern = (pattern + step).clamp(-eps, eps)
        return pattern


class UNet(nn.Module):
    """A small U-Net with instance normalisation: image and direction in, tanh perturbation out.

    Shape: [N, C, H, W], [N] -> [N, C, H, W] in (-1, 1); any size (inner sizes are rounded up).
    Its parameters are not initialised: the constructor draws no random numbers.
    """

    def __init__(self, channels: int, *, width: int, levels: int) -> None:
        super().__init__()
        sizes = [width * min(2**i, 4) for i in range(levels)]
        self.down = nn.ModuleList(
            skip_init(nn.Conv2d, a, b, 3, stride=2, padding=1)
            for a, b in zip([channels + 1, *sizes[:-1]], sizes, strict=True)
        )
        skips = [channels + 1, *sizes[:-1]][::-1]
        inner = [sizes[-1], *sizes[:-1][::-1]]
        outer = [*sizes[:-1][::-1], width]
        self.up = nn.ModuleList(
            skip_init(nn.Conv2d, a + s, b, 3, padding=1) for a, s, b in zip(inner, skips, outer, strict=True)
        )
        self.out = skip_init(nn.Conv2d, width, channels, 1)

    def forward(self, x: Tensor, direction: Tensor) -> Tensor:
        plane = direction.to(x).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        h, kept = torch.cat([x, plane], dim=1), []
        for layer in self.down:
            kept.append(h)
            h = functional.leaky_relu(functional.instance_norm(layer(h)), 0.2)
        for layer in self.up:
            skip = kept.pop()
            h = functional.interpolate(h, size=skip.shape[2:])
            h = functional.relu(functional.instance_norm(layer(torch.cat([h, skip], dim=1))))
        return torch.tanh(self.out(h))


@dataclass(frozen=True)
class Facpa:
    """A generator is trained against the victim on other images; then each image costs one pass of it.

    Args:
        dataset: data set whose training split the attacker learns on.
        images, epochs, batch: how many of its images, how often, and at once.
        lr: Adam's learning rate.
        width, levels: channels of the first level and number of levels of the U-Net.
        universal: feed it one fixed random image instead, so that it makes one pattern for all images.
        estimator: registry name of the gradient estimator.

    Cost: images * epochs passes shared among the attacked samples, and 2 forwards.
    """

    dataset: str = "photopatch_iqa"
    images: int = 512
    epochs: int = 2
    batch: int = 16
    lr: float = 2e-3
    width: int = 16
    levels: int = 4
    universal: bool = False
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.facpa",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Shumitskaya et al., ICLR Tiny Papers 2023. Differs: 4 levels of width 16 instead of 8 of "
            "64; eps "
            "replaces 10/255; the direction is an input plane; 512 images, 2 epochs, learning rate 0.002."
        ),
        cost="2 forwards, and 1024 practice passes shared among the samples",
    )

    def __post_init__(self) -> None:
        if min(self.images, self.epochs, self.batch, self.width, self.levels) < 1 or not self.lr > 0:
            raise ConfigError(
                f"{self.spec.name}: images, epochs, batch, width and levels must be at least 1 and lr "
                f"above 0."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        if not oracle.radius:
            return apply(oracle, x0, {})
        channels = x0.shape[1]
        net = UNet(channels, width=self.width, levels=self.levels).to(x0)
        start = generator(self.spec.name, "init")
        initialise(net, start)
        fixed = torch.rand(1, *x0.shape[1:], generator=start).to(x0)
        self.learn(oracle, net, practice_images(oracle, self.dataset, self.images).to(x0), fixed)
        made = {}
        with torch.no_grad():
            for direction in wanted(oracle):
                source = fixed if self.universal else x0
                made[direction] = oracle.radius * net(source, torch.full((len(source),), direction))
        return apply(oracle, x0, made)

    def learn(self, oracle: Oracle, net: UNet, practice: Tensor, fixed: Tensor) -> None:
        """Train the generator; the victim's gradient reaches it through the chain rule."""
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr)
        aims = torch.tensor(wanted(oracle), dtype=practice.dtype, device=practice.device)
        for count, x in enumerate(batches(practice, self.batch, self.epochs)):
            direction = aims[(torch.arange(len(x), device=x.device) + count) % len(aims)]
            source = fixed.expand(len(x), -1, -1, -1) if self.universal else x
            with torch.enable_grad():
                shown = (x + oracle.radius * net(source, direction)).clamp(0, 1)
            answer = slope_at(oracle, shown, self.estimator)
            if answer is None:
                break
            optimiser.zero_grad()
            shown.backward(-answer[1] * per_image(direction, x) / len(x))
            optimiser.step()


@dataclass(frozen=True)
class UapGenerative(Facpa):
    """One pattern for all images, made by a network from a fixed random image."""

    universal: bool = True
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.uap_generative",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Shumitskaya et al., CVIU 240:103913, 2024, 'generative' form. Differs: the network and training "
            "of quality.facpa."
        ),
        cost="2 forwards, and 1024 practice passes shared among the samples",
    )
