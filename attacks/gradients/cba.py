"""CBA: the gradient of the rate network that the victim's weights define."""

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
from robustspike.bench.api import Neuron
from robustspike.bench.api import SequenceRule
from robustspike.bench.api import replace_gradient


def quantised_clip(current: Tensor, levels: int) -> Tensor:
    """Round clip(current, 0, 1) to multiples of 1/levels; the gradient is that of the clip."""
    clipped = current.clamp(0, 1)
    rounded = torch.floor(levels * clipped.detach() + 0.5) / levels
    return replace_gradient(clipped, rounded, lambda grad: grad)


@dataclass(frozen=True)
class Cba(GradientEstimator):
    """Conversion-based approximation: attack the ANN with the same weights, evaluate the SNN.

    Every spiking layer becomes q(mean input current) at every step, the current in barriers
    (threshold minus rest); the loss's gradient is taken there. The returned logits and losses are
    those of the true spiking pass.

    Args:
        levels: steps of the staircase q; it has levels + 1 values.

    Cost: 2 forwards + 1 backward (the second forward is the ANN's, run with the victim's T copies).
    """

    levels: int = 8
    name: ClassVar[str] = "cba"
    forwards: ClassVar[int] = 2
    multi_step_only: ClassVar[bool] = True
    needs_dynamics: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Baseline of Bu et al., CVPR 2023, and Hao et al., ICLR 2024 (8 levels whatever T is). Differs: any "
        "threshold and input gain; normalisation is not skipped for Poisson inputs."
    )

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ConfigError(f"cba: levels must be at least 1, got {self.levels}.")

    def rule(self, neuron: Neuron, memory: Memory) -> SequenceRule:
        unit = neuron.gain / neuron.barrier

        def layer(forward: Callable[[Tensor], Tensor], x_seq: Tensor) -> Tensor:
            del forward  # the ANN has no spikes, and the true pass is made separately
            rate = quantised_clip(x_seq.mean(dim=0) * unit, self.levels)
            return rate.expand_as(x_seq)

        return layer

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
        with torch.no_grad():
            logits = call(x.detach())
        converted = super().loss_and_grad(module, call, x, loss, neurons=neurons, memories=memories)
        return LossGrad(loss(logits), converted.grad, logits)
