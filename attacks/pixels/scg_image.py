"""SCG on images: spike changes behind the victim's own encoder, averaged back to pixels."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar
from typing import TypeGuard

import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.pixels.climbing import settle
from robustspike.attacks.spikes.scg import Flipper
from robustspike.attacks.spikes.scg import Norm
from robustspike.attacks.spikes.scg import squared_error
from robustspike.attacks.spikes.scg import ternary
from robustspike.attacks.spikes.scg import turnover
from robustspike.bench.api import LOSSES
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import BpttEstimator
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Loss
from robustspike.bench.api import LossGrad
from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry


class TernaryMean(GradientEstimator):
    """Hands out mean over t of delta_t instead of the gradient: the ternary changes of the spike train.

    The spike train is what the victim's stochastic encoder emits in this pass: the first submodule that
    draws noise and answers the image with spikes [T, n, ...]. The gradient is taken at the spikes, so the
    encoder needs none of its own. A victim without such an encoder (other noise stays as it is) gets
    spikes drawn here, with its input's gradient at each of them.

    Args:
        base: the estimator of the backward pass through the neurons.
        rng: random numbers of the converter, one stream per attacked sample.
        restarts: runs from the clean input, with draws of their own, on the samples still standing.
        steps: spikes drawn per pixel where the victim has no stochastic encoder.
        scale, gamma, norm, flipper: see `Scg`.
    """

    name: ClassVar[str] = "ternary_mean"
    source: ClassVar[str] = "Liang et al. 2020, arXiv:2001.01587 (image inputs). Differs: see ScgImage."

    def __init__(
        self,
        base: GradientEstimator,
        rng: RowStreams,
        *,
        steps: int,
        scale: float,
        gamma: float,
        norm: Norm,
        flipper: Flipper,
    ) -> None:
        self.base, self.rng, self.steps = base, rng, steps
        self.scale, self.gamma, self.norm, self.flipper = scale, gamma, norm, flipper
        self.firings = 0

    @property
    def checked_as(self) -> GradientEstimator:
        return self.base  # a check must not draw from the attack's streams

    def rule(self, neuron: Neuron, memory: Memory) -> object:  # type: ignore[override]
        return self.base.rule(neuron, memory)

    def loss_and_grad(
        self,
        module: nn.Module,
        call: Callable[[Tensor], Tensor],
        x: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        neurons: Sequence[Neuron],
        memories: Sequence[Memory],
    ) -> LossGrad:
        rows = memories[0].rows if memories else torch.arange(len(x), device=x.device)
        caught: list[Tensor] = []

        def tap(_: nn.Module, __: object, output: object) -> Tensor | None:
            if caught or not _is_train(output, x):
                return None
            caught.append(output.detach().round().requires_grad_(True))
            return caught[0]

        noisy = [m for m in module.modules() if getattr(m, "draws_noise", False)]
        with ExitStack() as stack:
            for coder in noisy:
                stack.callback(coder.register_forward_hook(tap).remove)
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.base.installed(neurons, memories))
            leaf = x.detach().requires_grad_(True)
            logits = call(leaf)
            values = loss(logits)
            (grad,) = torch.autograd.grad(values.sum(), caught[0] if caught else leaf)
        if caught:
            spikes = caught[0].detach()
        else:
            draw = self.rng.uniform((self.steps, *x.shape[1:]), rows=rows, dtype=x.dtype).transpose(0, 1)
            spikes = (draw < x).to(x)
        change = self._changes(grad.expand_as(spikes), spikes, rows)
        return LossGrad(values.detach(), change, logits.detach())

    def _changes(self, grad: Tensor, spikes: Tensor, rows: Tensor) -> Tensor:
        """Turn gradients at spikes [T, n, ...] into the mean change of every pixel [n, ...]."""
        steps = len(spikes)
        draw = self.rng.uniform((steps, *spikes.shape[2:]), rows=rows, dtype=spikes.dtype).transpose(0, 1)
        g, s, u = (part.flatten(0, 1) for part in (grad, spikes, draw))
        dead = (g.flatten(1) == 0).all(dim=1).view(-1, *[1] * (g.dim() - 1))
        self.firings += int(dead.sum())
        change = torch.where(
            dead,
            turnover(s, u, gamma=self.gamma, flipper=self.flipper),
            ternary(g, s, u, norm=self.norm, scale=self.scale),
        )
        return change.view_as(spikes).mean(dim=0)


def _is_train(output: object, x: Tensor) -> TypeGuard[Tensor]:
    """Say whether a module's output is a spike train [T, n, ...] of a batch x [n, ...]."""
    if not isinstance(output, Tensor) or output.dim() != x.dim() + 1 or output.shape[1:] != x.shape:
        return False
    spikes = output.round().clamp(0, 1)  # a straight-through x + (s - x) is a spike up to rounding
    return bool(((output - spikes).abs() <= 1e-4).all())


@dataclass(frozen=True)
class ScgImage:
    """Move every pixel by the mean ternary change of its spikes.

    Args:
        iterations: steps.
        rate: step size eta in units of the pixel range; 1 is the published one.
        steps: spikes drawn per pixel where the victim has no stochastic encoder.
        scale, gamma, flipper, loss, norm, estimator: see `Scg`.

    Cost: per run iterations forwards + backwards, and 1 forward.
    """

    iterations: int = 50
    rate: float = 1.0
    restarts: int = 1
    steps: int = 8
    scale: float = 1.0
    gamma: float = 0.05
    flipper: Flipper = "bernoulli"
    loss: str = "ce"
    norm: Norm = "max"
    estimator: str = "native"
    own_losses: ClassVar[tuple[str, ...]] = ("mse",)
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="scg.image",
        geometries=("linf", "l2"),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=(
            "Liang et al. 2020, arXiv:2001.01587 (image inputs, spikes averaged over time). Differs: a step "
            "that leaves the threat model is projected, not fatal; the loss is cross-entropy by default; "
            "a hit is returned, else the iterate with the largest loss."
        ),
        cost="51 forwards + 50 backwards",
    )

    def __post_init__(self) -> None:
        if (
            min(self.iterations, self.steps, self.restarts) < 1
            or not self.rate > 0
            or not 0 <= self.gamma <= 1
        ):
            raise ConfigError(
                "scg.image: expected iterations, steps, restarts >= 1, rate > 0 and gamma in [0, 1], got "
                f"{self.iterations}, {self.steps}, {self.restarts}, {self.rate} and {self.gamma}."
            )
        if self.loss not in ("mse", *LOSSES):
            raise ConfigError(f"scg.image: expected loss 'mse', 'ce' or 'margin', got '{self.loss}'.")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        loss: Loss | str = squared_error if self.loss == "mse" else self.loss
        low, high = oracle.threat.bounds
        base: GradientEstimator = registry("estimators").get(self.estimator)
        if not isinstance(base, BpttEstimator):
            raise ConfigError(
                f"scg.image: estimator '{self.estimator}' differentiates another path than the spikes; "
                "expected one that replaces slopes only, such as 'native' or 'pdsg'."
            )
        rule = TernaryMean(
            base,
            rng,
            steps=self.steps,
            scale=self.scale,
            gamma=self.gamma,
            norm=self.norm,
            flipper=self.flipper,
        )
        best = x0.clone()
        top = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
        for _ in range(self.restarts):
            x = x0.clone()
            for _ in range(self.iterations):
                rows = oracle.active(forwards=1, backwards=1)
                if not len(rows):
                    break
                out = oracle.loss_and_grad(x[rows], rows, loss, estimator=rule)
                better = rows[out.loss > top[rows]]
                best[better] = x[better]
                top[rows] = torch.maximum(top[rows], out.loss)
                x[rows] = oracle.project(x[rows] + self.rate * (high - low) * out.grad, rows)
            rows = oracle.active(forwards=1)
            if len(rows):
                oracle.logits(x[rows], rows)
        oracle.tally("trigger_firings", rule.firings)  # of time steps
        return settle(oracle, best)
