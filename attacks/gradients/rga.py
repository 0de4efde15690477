"""RGA: the slope of a piecewise linear rate curve at the time-averaged input current."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron
from robustspike.bench.api import SequenceRule
from robustspike.bench.api import replace_gradient


def rate_slope(current: Tensor, *, leak: float, gamma: float, saturation: float) -> Tensor:
    """Return the slope of the rate curve at a mean current, both in units of the barrier.

    The curve runs from (0, 0) through the knee (1 - leak, gamma (1 - leak)), the current below which
    a leaky neuron never reaches its threshold, to (saturation, 1); it is flat elsewhere. The knee
    itself belongs to the upper piece.
    """
    knee = 1 - leak
    upper = (1 - gamma * knee) / (saturation - knee)
    slope = torch.full_like(current, upper).masked_fill_(current < knee, gamma)
    return slope.masked_fill_((current < 0) | (current > saturation), 0.0)


@dataclass(frozen=True)
class Rga(GradientEstimator):
    """Rate gradient approximation: dL/dI_t = dL/ds_t h(mean of I), without links through time.

    Args:
        gamma: slope below the rheobase, in spikes per step and barrier (threshold minus rest).
        saturation: mean current, in barriers, at which the curve reaches one spike a step; 2 as
            published for hard resets, 1 is exact for integrate-and-fire with soft reset.

    Cost: 1 forward + 1 backward; no graph through time is kept.
    """

    gamma: float = 0.2
    saturation: float = 2.0
    name: ClassVar[str] = "rga"
    multi_step_only: ClassVar[bool] = True
    needs_dynamics: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Bu et al., CVPR 2023 (Rate Gradient Approximation Attack). Differs: any threshold, leak and "
        "input gain (published for threshold 1, gain 1); one slope at the knee (the release adds both); "
        "fires at the threshold as the victim does (the release above it)."
    )

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1 or not self.saturation >= 1:
            raise ConfigError(
                f"rga: gamma must be in [0, 1] and saturation at least 1, got {self.gamma} and "
                f"{self.saturation}."
            )

    def rule(self, neuron: Neuron, memory: Memory) -> SequenceRule:
        unit = neuron.gain / neuron.barrier

        def layer(forward: Callable[[Tensor], Tensor], x_seq: Tensor) -> Tensor:
            with torch.no_grad():
                spikes = forward(x_seq)
                current = x_seq.mean(dim=0) * unit
                slope = unit * rate_slope(
                    current, leak=neuron.leak, gamma=self.gamma, saturation=self.saturation
                )
            return replace_gradient(x_seq, spikes, lambda grad: grad * slope)

        return layer
