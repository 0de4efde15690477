"""BPTR: straight-through gradients gated by whether, or scaled by how much, a neuron fired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron
from robustspike.bench.api import SequenceRule
from robustspike.bench.api import replace_gradient

Variant = Literal["gate", "slope"]


def secant_slope(mean: Tensor, rate: Tensor) -> Tensor:
    """Return one slope for each sample, the mean of rate / input where the input is positive.

    Shape: mean and rate [N, ...]; returns [N, ...], zero where the mean input is not positive.
    """
    positive = mean > 0
    ratio = torch.where(positive, rate / torch.where(positive, mean, 1.0), 0.0).flatten(1)
    slope = ratio.sum(dim=1) / (positive.flatten(1).sum(dim=1) + 0.001)
    return positive * slope.view(-1, *[1] * (mean.dim() - 1))


@dataclass(frozen=True)
class Bptr(GradientEstimator):
    """Backward pass through rate: no links through time, one factor for each neuron.

    Args:
        variant: "gate": the identity (in units of the barrier and the input gain) for neurons that
            fired at least once, else 0. "slope" (HART's release, "bptr3"): the layer's mean ratio of
            rate to input current, for neurons whose mean input is positive.

    Cost: 1 forward + 1 backward; no graph through time is kept.
    """

    variant: Variant = "gate"
    name: ClassVar[str] = "bptr"
    multi_step_only: ClassVar[bool] = True
    needs_dynamics: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Ding et al., NeurIPS 2022 (SNN-RAT). Differs: any threshold and input gain (published for 1 and "
        "1); the mean slope of variant 'slope' is taken for each sample, not over the batch."
    )

    def __post_init__(self) -> None:
        if self.variant not in ("gate", "slope"):
            raise ConfigError(f"bptr: variant must be 'gate' or 'slope', got '{self.variant}'.")

    def rule(self, neuron: Neuron, memory: Memory) -> SequenceRule:
        unit = neuron.gain / neuron.barrier

        def layer(forward: Callable[[Tensor], Tensor], x_seq: Tensor) -> Tensor:
            with torch.no_grad():
                spikes = forward(x_seq)
                rate = spikes.mean(dim=0)
                if self.variant == "gate":
                    factor = (rate > 0).to(x_seq.dtype) * unit
                else:
                    factor = secant_slope(x_seq.mean(dim=0), rate)
            return replace_gradient(x_seq, spikes, lambda grad: grad * factor)

        return layer
