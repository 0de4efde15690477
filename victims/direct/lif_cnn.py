"""Directly trained convolutional SNNs: SpikingJelly neurons, direct coding, STBP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise

NeuronKind = Literal["lif", "plif", "if"]


class DirectCoding(nn.Module):
    """Repeat a static image T times, run a time-first body, average the logits over time.

    Shape: [N, C, H, W] -> [N, K]; `sequence` gives the logits of every step [T, N, K].
    """

    def __init__(self, body: nn.Module, steps: int) -> None:
        super().__init__()
        self.body = body
        self.steps = steps

    def sequence(self, x: Tensor) -> Tensor:
        """Return the logits of every time step: [T, N, K]."""
        out: Tensor = self.body(x.unsqueeze(0).expand(self.steps, *x.shape))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x).mean(dim=0)


def make_neuron(
    kind: NeuronKind, *, tau: float, v_reset: float | None, detach_reset: bool, decay_input: bool
) -> nn.Module:
    """Make one SpikingJelly node with an ATan(2) surrogate of its own, processing whole sequences."""
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate

    common = {
        "v_reset": v_reset,
        "detach_reset": detach_reset,
        "surrogate_function": surrogate.ATan(),
        "step_mode": "m",
    }
    if kind == "if":
        made = neuron.IFNode(**common)
    elif kind == "plif":
        made = neuron.ParametricLIFNode(init_tau=tau, decay_input=decay_input, **common)
    elif kind == "lif":
        made = neuron.LIFNode(tau=tau, decay_input=decay_input, **common)
    else:
        raise ConfigError(f"victim: neuron must be 'lif', 'plif' or 'if', got '{kind}'.")
    node: nn.Module = made
    return node


@dataclass(frozen=True, kw_only=True)
class LifCnn(VictimRecipe):
    """conv-BN-neuron-pool, conv-BN-neuron-pool, linear; direct coding; mean-logit read-out.

    Args:
        steps: time steps T.
        widths: channels of the two convolutions.
        neuron: "lif", "plif" or "if".
        tau: membrane time constant in steps (initial value for "plif").
        v_reset: potential after a hard reset; None for a soft reset.
        detach_reset: whether the gradient is cut at the reset in training.
        decay_input: whether the input current is divided by tau.
    """

    dataset: str = "digits"
    steps: int = 4
    widths: tuple[int, int] = (16, 32)
    neuron: NeuronKind = "lif"
    tau: float = 2.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    decay_input: bool = True
    schedule: Schedule = Schedule()

    family: ClassVar[str] = "direct"
    source: ClassVar[str] = (
        "STBP, Wu et al. 2018, arXiv:1706.02609; BatchNorm over time and batch (tdBN, Zheng et al. 2021, "
        "arXiv:2011.05280). Differs: cross-entropy on time-averaged logits, ATan surrogate."
    )

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes, steps=self.steps)

    def node(self) -> nn.Module:
        """Make one spiking layer."""
        return make_neuron(
            self.neuron,
            tau=self.tau,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            decay_input=self.decay_input,
        )

    def build(self, rng: torch.Generator) -> nn.Module:
        from spikingjelly.activation_based import layer

        data = self.data()
        channels, height, width = data.shape
        first, second = self.widths
        body = nn.Sequential(
            layer.Conv2d(channels, first, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(first, step_mode="m"),
            self.node(),
            layer.AvgPool2d(2, step_mode="m"),
            layer.Conv2d(first, second, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(second, step_mode="m"),
            self.node(),
            layer.AvgPool2d(2, step_mode="m"),
            layer.Flatten(step_mode="m"),
            layer.Linear(second * (height // 4) * (width // 4), data.classes, step_mode="m"),
        )
        initialise(body, rng)
        return DirectCoding(body, self.steps)


LIF_CNN_DIGITS = LifCnn(name="lif_cnn.digits")
