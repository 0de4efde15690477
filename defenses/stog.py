"""StoG: stochastic gates after every spiking layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.crafting import Start
from robustspike.defenses.structure import active_neurons
from robustspike.defenses.structure import needs_spiking_training
from robustspike.defenses.structure import put_after_neuron

LOWEST = 0.1
"""Smallest gate probability."""

EDGE = 1e-3
"""How far from 0 and 1 a probability is kept where its logit is taken."""


class _Gate(torch.autograd.Function):
    """1[u < P] forward; the concrete relaxation's derivative with respect to P backward."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, p: Tensor, u: Tensor, temperature: float) -> Tensor:
        inner = p.clamp(EDGE, 1 - EDGE)
        soft = torch.sigmoid((torch.logit(inner) - torch.logit(u.clamp(EDGE, 1 - EDGE))) / temperature)
        ctx.save_for_backward(soft * (1 - soft) / (temperature * inner * (1 - inner)))
        return (u < p).to(p.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * slope, None, None


class Gate(nn.Module):
    """Multiply every spike by a Bernoulli gate, drawn anew for each sample and step.

    Args:
        shape: one step's activity without the batch axis; every neuron has its own probability.
        temperature: of the concrete relaxation.
        initial: probability at the start.
    """

    draws_noise = True

    def __init__(self, shape: tuple[int, ...], temperature: float, initial: float = 1.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full(shape, initial))
        self.temperature = temperature
        self.learns = True
        self.noise: RowStreams | None = None

    @property
    def probability(self) -> Tensor:
        """The gates' opening probabilities, in [0.1, 1]."""
        p = self.p if self.learns else self.p.detach()
        return p.clamp(LOWEST, 1.0)

    def forward(self, x_seq: Tensor) -> Tensor:
        if self.noise is None:
            raise ContractError("stog: the gates draw noise; hand the network noise streams for every pass.")
        u = self.noise.uniform((len(x_seq), *x_seq.shape[2:]), dtype=x_seq.dtype).transpose(0, 1)
        gate: Tensor = _Gate.apply(self.probability.expand_as(x_seq), u, self.temperature)  # type: ignore[no-untyped-call]
        return x_seq * gate


@dataclass(frozen=True)
class StochasticGating(Adversarial):
    """FGSM training of a network whose spikes pass random gates, in training and at test time.

    Args:
        gamma: weight of the prior, (gamma / 2) sum p^2, which closes gates.
        learning: share of the epochs in which the gates learn; afterwards they are frozen.
        temperature: of the concrete relaxation.
        initial: opening probability at the start; at 1 the untrained network is not random.

    Cost: as FGSM training, and one random mask per layer and step.
    """

    steps: int = 1
    step: float = 1.0
    start: Start = "clean"
    gamma: float = 1e-3
    learning: float = 0.5
    temperature: float = 0.5
    initial: float = 0.9
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="stog",
        trains=True,
        stochastic=True,
        adaptive=("eot", "wide_surrogate"),
        source=(
            "Ding et al., AAAI 2024, 38(1):492-502. Differs: the derivative to P has the correct positive "
            "sign (the release's is negative); one optimiser for weights and gates; gates start at 0.9 "
            "(theirs at 1) and gamma is 1e-3 (theirs 5e-6), because the schedule here is far shorter."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 0 or not 0 <= self.learning <= 1 or not self.temperature > 0:
            raise ConfigError(
                f"stog: gamma must be 0 or more, learning in [0, 1], temperature above 0; got {self.gamma}, "
                f"{self.learning} and {self.temperature}."
            )
        if not LOWEST <= self.initial <= 1:
            raise ConfigError(f"stog: initial must be in [{LOWEST}, 1], got {self.initial}.")

    def fits(self, recipe: VictimRecipe) -> str | None:
        return super().fits(recipe) or needs_spiking_training(recipe)

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        for neuron, shape in active_neurons(module, spec):
            put_after_neuron(neuron.module, Gate(shape, self.temperature, self.initial), "gate")
        return module

    def terms(self, step: Step) -> Terms:
        for gate in step.module.modules():
            if isinstance(gate, Gate):
                gate.learns = not step.epochs or step.epoch < self.learning * step.epochs
        return super().terms(step)

    def penalties(self, step: Step, x: Tensor, logits: Tensor) -> Terms:
        gates = [m for m in step.module.modules() if isinstance(m, Gate) and m.learns]
        if not gates or not self.gamma:
            return {}
        prior = torch.stack([gate.p.square().sum() for gate in gates]).sum()
        return {"gates": 0.5 * self.gamma * prior}
