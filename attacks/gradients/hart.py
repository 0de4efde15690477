"""HART: time-averaged gradients, weighted by how near to firing each neuron was at each step."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import LossGrad
from robustspike.bench.api import Memory
from robustspike.bench.api import Native
from robustspike.bench.api import Neuron
from robustspike.bench.api import SequenceRule
from robustspike.bench.api import SpikeRule
from robustspike.bench.api import replace_gradient

HART_GAMMAS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Widths to take the per-sample worst case over. The release sweeps 48 widths, 0.10 to 2.45, on the
test data and keeps the best."""


class _Recorder(SpikeRule):
    """Fires as the neuron does and keeps the distances to the threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.u: list[Tensor] = []

    def forward(self, u: Tensor) -> Tensor:
        self.u.append(u)
        return (u >= 0).to(u.dtype)


@dataclass(frozen=True)
class Hart(GradientEstimator):
    """Hybrid rate and temporal gradient: dL/dI_t = mean over s of dL/ds_s g(u_s), for every t.

    g is a triangle of half-width gamma around the threshold; links through time are cut.

    Args:
        gamma: half-width in barriers (threshold minus rest). Wide: a constant slope, rate information
            only; narrow: only steps near the threshold count. `HART_GAMMAS` is the grid to sweep.

    Cost: 1 forward + 1 backward; T potentials a neuron are kept, no graph through time.
    """

    gamma: float = 1.0
    name: ClassVar[str] = "hart"
    multi_step_only: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Hao et al., ICLR 2024 (openreview xv8iGxENyI), rule as in the released code. Differs: any "
        "threshold and input gain; fresh noise at every pass where the victim draws noise."
    )

    def __post_init__(self) -> None:
        _check_gamma(self.name, self.gamma)

    def rule(self, neuron: Neuron, memory: Memory) -> SequenceRule:
        barrier, gain = neuron.barrier, neuron.gain

        def layer(forward: Callable[[Tensor], Tensor], x_seq: Tensor) -> Tensor:
            recorder = _Recorder()
            with torch.no_grad(), neuron.spiking_by(recorder):
                spikes = forward(x_seq)
                distance = torch.stack(recorder.u).abs_().div_(barrier)
                slope = (self.gamma - distance).clamp_(min=0).mul_(gain / (barrier * self.gamma**2))
            return replace_gradient(
                x_seq, spikes, lambda grad: (grad * slope).mean(dim=0, keepdim=True).expand_as(grad)
            )

        return layer


@dataclass(frozen=True)
class HartMix(GradientEstimator):
    """The mean of HART's gradient and the gradient of the victim's own surrogate.

    Args:
        gamma: half-width of HART's triangle in barriers.

    Cost: 2 forwards + 2 backwards.
    """

    gamma: float = 1.0
    name: ClassVar[str] = "hart_mix"
    forwards: ClassVar[int] = 2
    backwards: ClassVar[int] = 2
    multi_step_only: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Hao et al., ICLR 2024, the MIX attacks of the released code: gradients are averaged 1:1. "
        "Differs: as `hart`; a stochastic victim draws fresh noise for each of the two passes."
    )

    def __post_init__(self) -> None:
        _check_gamma(self.name, self.gamma)

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
        parts = [
            estimator.loss_and_grad(module, call, x, loss, neurons=neurons, memories=memories)
            for estimator in (Native(), Hart(self.gamma))
        ]
        return parts[0]._replace(grad=(parts[0].grad + parts[1].grad) / 2)


def _check_gamma(name: str, gamma: float) -> None:
    if not 0 < gamma < float("inf"):
        raise ConfigError(f"{name}: gamma must be a finite number above 0, got {gamma}.")
