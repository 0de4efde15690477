"""Convolutional SNNs on event frames, and a control that only sees how many spikes there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.victims.direct.lif_cnn import NeuronKind
from robustspike.victims.direct.lif_cnn import make_neuron
from robustspike.victims.direct.lif_cnn import spiking_network
from robustspike.victims.layout import Widths


class EventFrames(nn.Module):
    """Feed one frame per time step to a time-first body, average the logits over time.

    Shape: [N, T, C, H, W] -> [N, K]; `sequence` gives the logits of every step [T, N, K].
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    @property
    def time_mean_body(self) -> nn.Module | None:
        """The layers whose mean answer over time this is, so that single flips are answered fast."""
        return self.body

    def sequence(self, x: Tensor) -> Tensor:
        """Return the logits of every time step: [T, N, K]."""
        out: Tensor = self.body(x.transpose(0, 1))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x).mean(dim=0)


class RateOnly(EventFrames):
    """Show the spike rate of every line as a constant current for T steps; order in time is lost.

    On binary frames the sum over time is a whole number and therefore exact in any order: frames that
    differ only by when spikes happen give the same logits bit for bit.
    """

    @property
    def time_mean_body(self) -> nn.Module | None:
        return None

    def sequence(self, x: Tensor) -> Tensor:
        rate = x.sum(dim=1) / x.shape[1]
        out: Tensor = self.body(rate.unsqueeze(0).expand(x.shape[1], *rate.shape))
        return out


def noisy(x: Tensor, most: tuple[float, float, float], rng: torch.Generator) -> Tensor:
    """Add sensor noise to binary frames [N, T, 2, H, W]: false and lost spikes, and hot pixels.

    Args:
        most: the largest chances of the three; every sample draws its own, even below them.
    """
    chances = torch.rand((3, len(x), 1, 1, 1, 1), generator=rng) * torch.tensor(most).view(3, 1, 1, 1, 1, 1)
    fired, lost = (torch.rand(x.shape, generator=rng) < chance for chance in chances[:2])
    hot = torch.rand((len(x), 1, 1, *x.shape[3:]), generator=rng) < chances[2]
    hot = hot & torch.tensor([False, True]).view(1, 1, 2, 1, 1)
    spikes = (x > 0) & ~lost.to(x.device) | (fired | hot).to(x.device)
    return spikes.to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class EventCnn(VictimRecipe):
    """`LifCnn` on event frames: one frame per step, mean-logit read-out.

    Args:
        widths: channels of the convolutions; a tuple among them is a block of several before one pool.
        neuron: "lif", "plif" or "if".
        tau: membrane time constant in steps (initial value for "plif").
        v_reset: potential after a hard reset; None for a soft reset.
        detach_reset: whether the gradient is cut at the reset in training.
        decay_input: whether the input current is divided by tau.
        rate_only: whether the network sees spike rates only (the control for attacks on timing).
        noise: sensor noise in training: the largest chances that a cell fires without a cause, that a spike
            is lost, and that a pixel is hot (ON in every frame); every sample draws its own below them.
    """

    dataset: str = "digits_events"
    widths: Widths = (16, 32)
    neuron: NeuronKind = "lif"
    tau: float = 2.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    decay_input: bool = True
    rate_only: bool = False
    noise: tuple[float, float, float] = (0.0, 0.0, 0.0)
    schedule: Schedule = Schedule(epochs=15, lr=6e-3)

    family: ClassVar[str] = "events"
    source: ClassVar[str] = (
        "STBP, Wu et al. 2018, arXiv:1706.02609; PLIF, Fang et al. 2021, arXiv:2007.05785. Differs: a "
        "small network, cross-entropy on time-averaged logits, BatchNorm over time and batch, ATan surrogate."
    )

    def __post_init__(self) -> None:
        if not all(0 <= chance < 1 for chance in self.noise):
            raise ConfigError(
                f"victim '{self.name}': noise must be three chances in [0, 1), got {self.noise}."
            )

    def augment(self, x: Tensor, rng: torch.Generator) -> Tensor:
        x = super().augment(x, rng)
        return noisy(x, self.noise, rng) if any(self.noise) else x

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(
            name=self.name,
            shape=data.shape,
            classes=data.classes,
            domain=data.domain,
            bounds=data.bounds,
            steps=data.shape[0],
        )

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
        data = self.data()
        body = spiking_network(data.shape[1:], data.classes, self.widths, self.node, name=self.name)
        initialise(body, rng)
        return RateOnly(body) if self.rate_only else EventFrames(body)


LIF_CNN = EventCnn(name="lif_cnn.digits_events")
LIF_CNN_T8 = EventCnn(
    name="lif_cnn.digits_events_t8", dataset="digits_events_t8", schedule=Schedule(epochs=25, lr=6e-3)
)
LIF_CNN_COUNTS = EventCnn(
    name="lif_cnn.digits_counts", dataset="digits_counts", schedule=Schedule(epochs=10, lr=6e-3)
)
PLIF_CNN = EventCnn(name="plif_cnn.digits_events", neuron="plif")
RATE_ONLY = EventCnn(name="rate_only.digits_events", rate_only=True)
NOISY = EventCnn(
    name="lif_cnn_noisy.digits_events", noise=(0.08, 0.2, 0.02), schedule=Schedule(epochs=30, lr=6e-3)
)
LIF_CNN_NMNIST = EventCnn(name="lif_cnn.nmnist", dataset="nmnist", schedule=Schedule(epochs=25))
NOISY_NMNIST = EventCnn(
    name="lif_cnn_noisy.nmnist", dataset="nmnist", noise=(0.08, 0.2, 0.02), schedule=Schedule(epochs=40)
)
LIF_CNN_CIFAR10 = EventCnn(
    name="lif_cnn.cifar10_events",
    dataset="cifar10_events",
    widths=(16, 32, 64),
    schedule=Schedule(epochs=6, batch=128, lr=6e-3, flips=True, shifts=2),
)
