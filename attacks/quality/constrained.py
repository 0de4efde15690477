"""Attacks that trade score for visibility: perceptual, masked by texture, MAD, one invisible iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from robustspike.attacks.quality.iterated import GOALS
from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import climb
from robustspike.attacks.quality.iterated import directions
from robustspike.attacks.quality.iterated import per_image
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import gmsd
from robustspike.bench.api import haarpsi
from robustspike.bench.api import learned
from robustspike.bench.api import luma
from robustspike.bench.api import ssim

Distance = Literal["linf", "ssim", "haarpsi", "gmsd", "lpips", "dists"]


def visible(kind: Distance, x0: Tensor, x: Tensor) -> Tensor:
    """Return how far x is from x0 to the eye: 0 for equal images, [N]."""
    if kind == "linf":
        return (x - x0).abs().flatten(1).amax(dim=1)
    if kind == "ssim":
        return 1 - ssim(luma(x0), luma(x))
    if kind == "haarpsi":
        return 1 - haarpsi(x0, x)
    if kind == "gmsd":
        return gmsd(x0, x)
    return learned(kind, x0, x)


@dataclass(frozen=True)
class Perceptual:
    """Maximise -D(x, x0) + lambda (q - q0)^2 for several lambda; keep the largest legal score change.

    Args:
        distance: D: "linf", "ssim" (of the brightness), "haarpsi", "gmsd"; "lpips" and "dists" need
            their optional packages.
        steps: iterations per lambda (the paper: 200).
        step: change of a pixel per step, root mean square.
        lambdas: weights of the score change, each tried from the start (the paper: 32 values).
        least_ssim: an image counts only if its SSIM to the clean one, rounded to 8 bits, is at least this.
        estimator: registry name of the gradient estimator.

    Cost: lambdas * steps forwards and backwards, and lambdas forwards.
    """

    distance: Distance = "ssim"
    steps: int = 20
    step: float = 1e-3
    lambdas: tuple[float, ...] = (0.1, 1.0, 10.0, 1000.0)
    least_ssim: float = 0.99
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.perceptual",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        stochastic=True,
        source=(
            "Zhang et al., NeurIPS 2022 (the paper's objective, not the released one). Differs: SSIM and the "
            "threat model's L-inf instead of human viewers decide what is imperceptible; q is the score "
            "scaled to 0..10; L2 steps have a fixed root mean square; fewer lambdas and iterations."
        ),
        cost="84 forwards + 80 backwards",
    )

    def __post_init__(self) -> None:
        if self.distance not in ("linf", "ssim", "haarpsi", "gmsd", "lpips", "dists"):
            raise ConfigError(
                f"quality.perceptual: distance must be 'linf', 'ssim', 'haarpsi', 'gmsd', 'lpips' or "
                f"'dists', "
                f"got '{self.distance}'."
            )
        if self.steps < 1 or not self.step > 0 or not self.lambdas:
            raise ConfigError(
                "quality.perceptual: steps must be at least 1, step above 0, and lambdas not empty, got "
                f"{self.steps}, {self.step} and {self.lambdas}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        best, most = x0.clone(), torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        clean = torch.full_like(most, torch.nan)
        rows = oracle.active(forwards=1)
        if not len(rows) or not oracle.radius:
            return best
        clean[rows] = oracle.logits(x0[rows], rows).squeeze(1)
        for weight in self.lambdas:
            x = x0 + (rng.integers(3, x0.shape[1:]) - 1).to(x0) / 255
            x = oracle.project(x, torch.arange(len(x0), device=x0.device))
            for last in [False] * self.steps + [True]:
                rows = oracle.active(forwards=1) if last else oracle.differentiable(self.estimator)
                rows = rows[torch.isfinite(clean[rows])]
                if not len(rows):
                    break
                if last:
                    scores = oracle.logits(x[rows], rows).squeeze(1)
                else:
                    out = oracle.loss_and_grad(x[rows], rows, "score", estimator=self.estimator)
                    scores = out.loss
                self._keep(oracle, x0, x, rows, scores - clean[rows], best, most)
                if not last:
                    gain = self._gradient(oracle, x0[rows], x[rows], out.grad, scores - clean[rows], weight)
                    x[rows] = oracle.project(x[rows] + self.step * gain, rows)
        return best

    def _gradient(
        self, oracle: Oracle, x0: Tensor, x: Tensor, slope: Tensor, change: Tensor, weight: float
    ) -> Tensor:
        """Return the unit step of the objective: sign for "linf", else root mean square 1."""
        low, high = oracle.spec.score_range or (0.0, 1.0)
        scale = 10 / (high - low)
        pull = 2 * weight * scale**2 * change
        if oracle.threat.goal is not Goal.SHIFT:
            pull = directions(oracle, change) * pull.abs().clamp(min=1e-3 * weight * scale)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (fidelity,) = torch.autograd.grad(visible(self.distance, x0, leaf).sum(), leaf)
        gradient = torch.nan_to_num(per_image(pull, x) * slope - fidelity)
        if self.distance == "linf":
            return gradient.sign()
        norm = gradient.flatten(1).square().mean(dim=1).sqrt()
        return gradient / per_image(norm.clamp(min=1e-20), x)

    def _keep(
        self,
        oracle: Oracle,
        x0: Tensor,
        x: Tensor,
        rows: Tensor,
        change: Tensor,
        best: Tensor,
        most: Tensor,
    ) -> None:
        worth = change.abs() if oracle.threat.goal is Goal.SHIFT else directions(oracle, change) * change
        shown = (x[rows] * 255).round() / 255
        similar = ssim(x0[rows], shown) if min(x0.shape[2:]) >= 11 else torch.ones_like(worth)
        better = (worth > most[rows]) & (similar >= self.least_ssim)
        at = rows[better]
        best[at], most[at] = x[at], worth[better]


def activity(x: Tensor) -> Tensor:
    """Return the spatial-activity map of images in [0, 1]: [N, 1, H, W], largest value 1."""
    ramp = torch.tensor(
        [[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]], dtype=x.dtype, device=x.device
    )
    kernels = torch.stack([ramp, ramp.T]).unsqueeze(1) / 8
    grey = luma(x) if x.shape[1] == 3 else x.mean(dim=1, keepdim=True)
    squared = functional.conv2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).square()
    energy = squared.sum(dim=1, keepdim=True)
    inner = torch.zeros_like(energy)
    inner[:, :, 1:-1, 1:-1] = energy[:, :, 1:-1, 1:-1]
    top = inner.flatten(1).amax(dim=1).view(-1, 1, 1, 1)
    inner = torch.where(top > 0, inner / top.clamp(min=1e-30), 1.0)
    wide = functional.max_pool2d(inner, (3, 5), stride=1, padding=(1, 2))
    tall = functional.max_pool2d(inner, (5, 3), stride=1, padding=(2, 1))
    return torch.maximum(wide, tall)  # a 5x5 footprint without its corners


@dataclass(frozen=True)
class Korhonen:
    """Adam on the score, confined to textured parts of the image.

    Args:
        lr: learning rate in grey levels of 255.
        steps, least: largest and smallest number of iterations; a sample stops after 2 iterations in a
            row without a new best.
        mask_mode: "step" multiplies Adam's update by the map; "gradient" the gradient, as published,
            which Adam's own normalisation undoes except where the map is zero.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards at most.
    """

    lr: float = 2.0
    steps: int = 30
    least: int = 20
    mask_mode: Literal["step", "gradient"] = "step"
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.korhonen",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Korhonen & You, QoEVMA 2022. Differs: mask_mode='step' by default; an L-inf cap; at most 30 "
            "iterations instead of 100; run on the victim itself."
        ),
        cost="31 forwards + 30 backwards",
    )

    def __post_init__(self) -> None:
        if self.mask_mode not in ("step", "gradient") or self.steps < 1 or not self.lr > 0:
            raise ConfigError(
                "quality.korhonen: mask_mode must be 'step' or 'gradient', steps at least 1 and lr "
                "above 0, got "
                f"'{self.mask_mode}', {self.steps} and {self.lr}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        mask = activity(x0)
        first, second = torch.zeros_like(x0), torch.zeros_like(x0)
        n, device = len(x0), x0.device
        top = torch.full((n,), -torch.inf, dtype=x0.dtype, device=device)
        stale = torch.zeros(n, dtype=torch.int64, device=device)
        aim = torch.zeros(n, dtype=x0.dtype, device=device)
        x, best = x0.clone(), x0.clone()
        for iteration in range(self.steps + 1):
            last = iteration == self.steps
            rows = oracle.active(forwards=1) if last else oracle.differentiable(self.estimator)
            rows = rows[(stale[rows] < 2) | (iteration < self.least)]
            if not len(rows):
                break
            if last:
                scores = oracle.logits(x[rows], rows).squeeze(1)
            else:
                out = oracle.loss_and_grad(x[rows], rows, "score", estimator=self.estimator)
                scores = out.loss
            if iteration == 0:
                aim[rows] = directions(oracle, scores)
            worth = aim[rows] * scores
            better = worth > top[rows]
            best[rows[better]], top[rows[better]] = x[rows[better]], worth[better]
            stale[rows] = torch.where(better, 0, stale[rows] + 1)
            if last:
                break
            gradient = torch.nan_to_num(out.grad) * per_image(aim[rows], x0)
            if self.mask_mode == "gradient":
                gradient = gradient * mask[rows]
            first[rows] = 0.9 * first[rows] + 0.1 * gradient
            second[rows] = 0.999 * second[rows] + 0.001 * gradient.square()
            mean = first[rows] / (1 - 0.9 ** (iteration + 1))
            spread = (second[rows] / (1 - 0.999 ** (iteration + 1))).sqrt()
            update = self.lr / 255 * mean / (spread + 1e-8)
            if self.mask_mode == "step":
                update = update * mask[rows]
            x[rows] = oracle.project(x[rows] + update, rows)
        return best


@dataclass(frozen=True)
class Mad:
    """Signed steps along the gradient of the score, made orthogonal to the gradient of the RMSE.

    Args:
        steps: iterations.
        step: step size as a share of eps, times steps.
        rmse: root mean square error above which a step goes back towards the clean image.
        estimator: registry name of the gradient estimator.

    Cost: steps + 1 forwards + steps backwards.
    """

    steps: int = 8
    step: float = 2.5
    rmse: float = 10 / 255
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.mad",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Wang & Simoncelli 2008 (maximum differentiation), as 'MADC' in Antsiferova et al., AAAI 2024. "
            "Differs: step 2.5 eps / steps; an L-inf cap; the best iterate is returned."
        ),
        cost="9 forwards + 8 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step > 0 or not self.rmse > 0:
            raise ConfigError(
                "quality.mad: steps must be at least 1, step and rmse above 0, got "
                f"{self.steps}, {self.step} and {self.rmse}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        size = oracle.radius * self.step / self.steps

        def update(x: Tensor, gradient: Tensor, rows: Tensor) -> Tensor:
            offset = x - x0[rows]
            power = offset.square().flatten(1).sum(dim=1)
            along = (gradient * offset).flatten(1).sum(dim=1) / power.clamp(min=1e-20)
            free = gradient - per_image(torch.where(power > 0, along, 0.0), x) * offset
            moved = x + size * free.sign()
            error = (moved - x0[rows]).square().flatten(1).mean(dim=1).sqrt()
            shrink = (self.rmse / error.clamp(min=1e-20)).clamp(max=1.0)
            return x0[rows] + per_image(shrink, x) * (moved - x0[rows])

        return climb(oracle, x0, steps=self.steps, estimator=self.estimator, update=update)


@dataclass(frozen=True)
class Ioi:
    """One signed step, kept only in high frequencies and where the image is busy.

    Args:
        amplitude: size of the signed step before filtering, in pixel units.
        keep: share of the clean image's Fourier coefficients (largest first) that stay untouched.
        estimator: registry name of the gradient estimator.

    Cost: 2 forwards + 1 backward.
    """

    amplitude: float = 0.1
    keep: float = 0.07
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.ioi",
        geometries=("linf",),
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "Shumitskaya et al., ICML 2024. Differs: the perturbation is scaled down to eps where it is "
            "larger; "
            "no temporal module."
        ),
        cost="2 forwards + 1 backward",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = x0.clone()
        rows = oracle.differentiable(self.estimator)
        if not len(rows) or not oracle.radius:
            return x
        out = oracle.loss_and_grad(x0[rows], rows, "score", estimator=self.estimator)
        aim = per_image(directions(oracle, out.loss), x0)
        base = x0[rows]
        stepped = (base + self.amplitude * (torch.nan_to_num(out.grad) * aim).sign()).clamp(0, 1)
        delta = busyness(base) * self._high(stepped - base, base)
        size = delta.abs().flatten(1).amax(dim=1)
        delta = delta * per_image((oracle.radius / size.clamp(min=1e-20)).clamp(max=1.0), x0)
        x[rows] = oracle.project(base + delta, rows)
        rows = oracle.active(forwards=1)
        if len(rows):
            oracle.logits(x[rows], rows)
        return x

    def _high(self, change: Tensor, base: Tensor) -> Tensor:
        """Return the part of a change outside the strongest coefficients of the clean image."""
        strength = torch.fft.fft2(base).abs().flatten(2)
        count = max(1, round(self.keep * strength.shape[2]))
        edge = strength.topk(count, dim=2).values[:, :, -1:]
        outside = (strength < edge).view_as(base)
        return torch.fft.ifft2(torch.fft.fft2(change) * outside).real


def busyness(x: Tensor) -> Tensor:
    """Return sqrt(local deviation / local mean) over 3x3 windows, largest value 1: the shape of x."""
    mean = functional.avg_pool2d(x, 3, stride=1)
    spread = (functional.avg_pool2d(x.square(), 3, stride=1) - mean.square()).clamp(min=0).sqrt()
    ratio = functional.pad(spread / mean.clamp(min=1e-6), (1, 1, 1, 1))
    ratio = ratio / ratio.flatten(2).amax(dim=2)[..., None, None].clamp(min=1e-20)
    return torch.where(ratio < 0.01, 0.0, ratio).sqrt()
