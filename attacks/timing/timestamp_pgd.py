"""Timestamp PGD: every spike has a real-valued time that follows the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.timing.retime_lines import Lines
from robustspike.attacks.timing.retime_lines import budget_of
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class TimestampPgd:
    """Signed steps on spike times, kept within eps of the origin; the victim sees whole time steps.

    A spike at real time t stands half in each neighbouring step by a triangular kernel, so the
    derivative in time is the difference of the input gradient between the step after and the step
    before. The frames are the legal ones nearest to the kernel frames (two spikes never share a cell).
    For victims that read still images through a latency or first-spike code, a pixel is a time: there
    timestamp PGD is `pgd.linf`, with eps = steps / (T - 1).

    Args:
        steps: gradient steps.
        step: step size as a share of eps.
        random_start: whether to start at uniform times within eps.
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.
        restarts: random starts, each on the samples still standing; more than one needs `random_start`.

    Cost: per start steps forwards + steps backwards, and 1 forward for the last frames.
    """

    steps: int = 20
    step: float = 0.25
    random_start: bool = True
    estimator: str = "native"
    loss: str = "ce"
    restarts: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="timestamp.pgd",
        geometries=("retime_linf",),
        domains=(Domain.SPIKES,),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=(
            "Madry et al. 2018, arXiv:1706.06083, on spike times with the triangular kernel of event "
            "spike tensors (Gehrig et al. 2019, arXiv:1904.08245). Differs: own combination; every forward "
            "pass is on hard, legal frames."
        ),
        cost="21 forwards + 20 backwards",
    )

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1 or not self.step > 0:
            raise ConfigError(
                "timestamp.pgd: steps and restarts must be at least 1 and step above 0, got "
                f"{self.steps}, {self.restarts}, {self.step}."
            )
        if self.restarts > 1 and not self.random_start:
            raise ConfigError(
                f"timestamp.pgd: {self.restarts} restarts without random_start would repeat one search; set "
                "random_start or restarts=1."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = self._attempt(oracle, x0, rng)
        for _ in range(1, self.restarts):
            if not len(oracle.active()):
                break
            oracle.forget()
            x = self._attempt(oracle, x0, rng)
        best, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), best, x)

    def _attempt(self, oracle: Oracle, x0: Tensor, rng: RowStreams) -> Tensor:
        """Search from one start; return the last frames."""
        lines = Lines(x0)
        steps = x0.shape[1]
        eps = min(budget_of(oracle), steps - 1.0)
        origin = torch.arange(steps, dtype=x0.dtype, device=x0.device).expand(lines.origin.shape)
        low, high = (origin - eps).clamp(min=0), (origin + eps).clamp(max=steps - 1)
        time = origin.clone()
        if self.random_start:
            u = lines.gradients(rng.uniform(x0.shape[1:], dtype=x0.dtype), torch.arange(len(x0)))
            time = torch.minimum(torch.maximum(origin + (2 * u - 1) * eps, low), high)
        x = x0.clone()
        for turn in range(self.steps + 1):
            last = turn == self.steps
            rows = oracle.active(forwards=1, backwards=0 if last else 1)
            if not len(rows):
                break
            at = lines.of(rows)
            soft = kernel_frames(time[at], lines.origin[at])
            x[rows] = oracle.project(lines.spread(soft, at, rows), rows)
            if last:
                oracle.labels(x[rows], rows)
                break
            out = oracle.loss_and_grad(x[rows], rows, self.loss, estimator=self.estimator)
            slope = time_slope(lines.gradients(out.grad, rows), time[at])
            moved = time[at] + self.step * eps * slope.sign()
            time[at] = torch.minimum(torch.maximum(moved, low[at]), high[at])
        return x


def kernel_frames(time: Tensor, spikes: Tensor) -> Tensor:
    """Spread spikes over the steps around their times: [m, T] times, [m, T] bool -> [m, T]."""
    steps = torch.arange(time.shape[1], dtype=time.dtype, device=time.device)
    weight = (1 - (time[:, :, None] - steps).abs()).clamp(min=0)
    return (weight * spikes[:, :, None]).sum(dim=1)


def time_slope(gradient: Tensor, time: Tensor) -> Tensor:
    """Return the direction in which every spike's time raises gradient * kernel.

    Shape: [m, T] twice -> [m, T].
    Between two steps it is the exact derivative; at a whole step, where the kernel has a kink, it is
    the difference across both neighbours.
    """
    last = gradient.shape[1] - 1
    before = (time.ceil() - 1).clamp(min=0).long()
    after = (time.floor() + 1).clamp(max=last).long()
    return gradient.gather(1, after) - gradient.gather(1, before)
