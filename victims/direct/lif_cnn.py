"""Directly trained convolutional SNNs: SpikingJelly neurons, direct coding, STBP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
from robustspike.victims.layout import Widths
from robustspike.victims.layout import blocks
from robustspike.victims.layout import flat_features

NeuronKind = Literal["lif", "plif", "if"]
Objective = Literal["mean_logits", "tet"]


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
        made = neuron.ParametricLIFNode(init_tau=float(tau), decay_input=decay_input, **common)
    elif kind == "lif":
        made = neuron.LIFNode(tau=float(tau), decay_input=decay_input, **common)
    else:
        raise ConfigError(f"victim: neuron must be 'lif', 'plif' or 'if', got '{kind}'.")
    node: nn.Module = made
    return node


def spiking_network(
    shape: tuple[int, ...], classes: int, widths: Widths, node: Callable[[], nn.Module], *, name: str
) -> nn.Sequential:
    """Build conv-BN-neuron for each width, a pool after each block, then linear, weights not drawn.

    Args:
        shape: (channels, height, width) of one step's input.
        node: makes one spiking layer.
        name: the victim, for messages.

    Shape: time first, [T, N, *shape] -> [T, N, classes].
    """
    from spikingjelly.activation_based import layer

    features = flat_features(shape, widths, name=name)
    layers: list[nn.Module] = []
    channels = shape[0]
    for block in blocks(widths):
        for width in block:
            layers += [
                layer.Conv2d(channels, width, 3, padding=1, bias=False, step_mode="m"),
                layer.BatchNorm2d(width, step_mode="m"),
                node(),
            ]
            channels = width
        layers.append(layer.AvgPool2d(2, step_mode="m"))
    layers += [layer.Flatten(step_mode="m"), layer.Linear(features, classes, step_mode="m")]
    return nn.Sequential(*layers)


def tet_loss(steps: Tensor, y: Tensor, *, weight: float, target: float = 1.0) -> Tensor:
    """Return the temporally efficient training loss.

    The mean over the steps of each step's own cross-entropy, and a pull of every logit to `target`.

    Args:
        steps: logits of every time step [T, N, K].
        y: labels [N].
        weight: lambda, the share of the pull; 1 - lambda goes to the cross-entropies.
        target: phi; the threshold of the neurons.
    Source: Deng et al., ICLR 2022, arXiv:2202.11946, eqs. 9-11. Differs: none.
    """
    entropy = nn.functional.cross_entropy(steps.flatten(0, 1), y.repeat(len(steps)))
    return (1 - weight) * entropy + weight * (steps - target).square().mean()


@dataclass(frozen=True, kw_only=True)
class LifCnn(VictimRecipe):
    """conv-BN-neuron for each width, a pool after each block, then linear; direct coding; mean logits.

    Args:
        steps: time steps T.
        widths: channels of the convolutions; a tuple among them is a block of several before one pool.
        neuron: "lif", "plif" or "if".
        tau: membrane time constant in steps (initial value for "plif").
        v_reset: potential after a hard reset; None for a soft reset.
        detach_reset: whether the gradient is cut at the reset in training.
        decay_input: whether the input current is divided by tau.
        objective: "mean_logits", cross-entropy of the time-averaged logits, or "tet".
        tet_weight: lambda of "tet"; the paper's value on CIFAR.
    """

    dataset: str = "digits"
    steps: int = 4
    widths: Widths = (16, 32)
    neuron: NeuronKind = "lif"
    tau: float = 2.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    decay_input: bool = True
    objective: Objective = "mean_logits"
    tet_weight: float = 0.05
    schedule: Schedule = Schedule()

    family: ClassVar[str] = "direct"
    source: ClassVar[str] = (
        "STBP, Wu et al. 2018, arXiv:1706.02609; BatchNorm over time and batch (tdBN, Zheng et al. 2021, "
        "arXiv:2011.05280); PLIF: Fang et al., ICCV 2021, arXiv:2007.05785; TET: Deng et al., ICLR 2022, "
        "arXiv:2202.11946. Differs: cross-entropy on time-averaged logits unless TET; ATan surrogate; "
        "AdamW one-cycle."
    )

    def __post_init__(self) -> None:
        if self.objective not in ("mean_logits", "tet") or not 0 <= self.tet_weight <= 1:
            raise ConfigError(
                f"victim '{self.name}': objective must be 'mean_logits' or 'tet' and tet_weight in [0, 1], "
                f"got '{self.objective}' and {self.tet_weight}."
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

    def body(self, channels: int) -> nn.Sequential:
        """Build the time-first network [T, N, channels, H, W] -> [T, N, K] without drawing its weights."""
        data = self.data()
        return spiking_network(
            (channels, *data.shape[1:]), data.classes, self.widths, self.node, name=self.name
        )

    def build(self, rng: torch.Generator) -> nn.Module:
        body = self.body(self.data().shape[0])
        initialise(body, rng)
        return DirectCoding(body, self.steps)

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.objective == "mean_logits":
            return super().loss(module, x, y)
        sequence = getattr(module, "sequence", None)
        if sequence is None:
            raise ConfigError(
                f"victim '{self.name}': TET needs the logits of every step, but the network "
                f"({type(module).__name__}) has no `sequence(x)`. Use objective='mean_logits' here."
            )
        steps = sequence(x)
        return tet_loss(steps, y, weight=self.tet_weight), steps.mean(dim=0)


LIF_CNN_DIGITS = LifCnn(name="lif_cnn.digits")
LIF_CNN_T8_DIGITS = dataclasses.replace(
    LIF_CNN_DIGITS, name="lif_cnn_t8.digits", steps=8, schedule=Schedule(epochs=25)
)
LIF_CNN_TET_DIGITS = dataclasses.replace(LIF_CNN_DIGITS, name="lif_cnn_tet.digits", objective="tet")
LIF_CNN_SOFT_DIGITS = dataclasses.replace(LIF_CNN_DIGITS, name="lif_cnn_soft.digits", v_reset=None)
LIF_CNN_ATTACHED_DIGITS = dataclasses.replace(
    LIF_CNN_DIGITS, name="lif_cnn_attached.digits", detach_reset=False
)
PLIF_CNN_DIGITS = dataclasses.replace(LIF_CNN_DIGITS, name="plif_cnn.digits", neuron="plif")
IF_CNN_DIGITS = dataclasses.replace(LIF_CNN_DIGITS, name="if_cnn.digits", neuron="if")
LIF_CNN_MNIST = LifCnn(
    name="lif_cnn.mnist", dataset="mnist", widths=(8, 16), schedule=Schedule(epochs=2, batch=128)
)
