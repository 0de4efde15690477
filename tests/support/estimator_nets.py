"""Small spiking networks that the estimator tests run on."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor
from torch import nn

from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import generator
from robustspike.bench.api import initialise
from robustspike.bench.api import wrap

STEPS = 4
CLASSES = 3


class OwnNeuron(nn.Module):
    """A leaky neuron that is not SpikingJelly's; its surrogate is a plain function."""

    def __init__(self, step_mode: str) -> None:
        super().__init__()
        self.v_threshold, self.v_reset, self.tau, self.decay_input = 0.75, None, 4.0, False
        self.detach_reset = False
        self.step_mode = step_mode
        self.surrogate_function = _steep
        self.v: Any = 0.0

    def reset(self) -> None:
        self.v = 0.0

    def step(self, x: Tensor) -> Tensor:
        h = self.v - self.v / self.tau + x
        s = self.surrogate_function(h - self.v_threshold)
        self.v = h - (s.detach() if self.detach_reset else s) * self.v_threshold
        return s

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x) if self.step_mode == "s" else torch.stack([self.step(part) for part in x])


def _steep(u: Tensor) -> Tensor:
    out: Tensor = surrogate.ATan(alpha=3.0)(u)
    return out


NODES: dict[str, dict[str, Any]] = {
    "lif-hard-decay": {"v_reset": 0.0, "decay_input": True},
    "lif-hard": {"v_reset": 0.0, "decay_input": False},
    "lif-soft-decay": {"v_reset": None, "decay_input": True},
    "lif-soft": {"v_reset": None, "decay_input": False},
    "lif-rest": {"v_reset": -0.25, "decay_input": True, "v_threshold": 0.5, "detach_reset": True},
    "plif-hard-decay": {"v_reset": 0.0, "decay_input": True},
    "plif-soft": {"v_reset": None, "decay_input": False, "detach_reset": True},
    "if-hard": {"v_reset": 0.0},
    "if-soft": {"v_reset": None, "detach_reset": True},
    "own": {},
}


def make_node(kind: str, step_mode: str = "m") -> nn.Module:
    """Make one neuron of a kind in `NODES`."""
    options = {"surrogate_function": surrogate.ATan(), "step_mode": step_mode, **NODES[kind]}
    if kind == "own":
        return OwnNeuron(step_mode)
    if kind.startswith("if"):
        made: nn.Module = neuron.IFNode(**options)
    elif kind.startswith("plif"):
        made = neuron.ParametricLIFNode(init_tau=2.5, **options)
    else:
        made = neuron.LIFNode(tau=2.0, **options)
    return made


class ToyNet(nn.Module):
    """conv - neuron - linear - neuron - linear; mean read-out.

    Takes images [N, 1, 4, 4] (direct coding) or frames [N, T, 1, 4, 4].
    """

    def __init__(self, kind: str, *, step_mode: str = "m", start: float = 0.0, events: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.first = make_node(kind, step_mode)
        self.hidden = nn.Linear(48, 12)
        self.second = make_node(kind, step_mode)
        self.out = nn.Linear(12, CLASSES)
        self.step_mode, self.start, self.events = step_mode, start, events
        initialise(self, generator("toy", 3))
        with torch.no_grad():
            self.conv.weight.mul_(5.0)
            self.conv.bias.add_(0.5)
            self.hidden.weight.mul_(6.0)
            self.hidden.bias.add_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        if self.start:
            self.first.v = self.second.v = self.start
        frames = x.transpose(0, 1) if self.events else x.unsqueeze(0).expand(STEPS, *x.shape)
        if self.step_mode == "m":
            s = self.first(self.conv(frames.flatten(0, 1)).unflatten(0, (STEPS, -1)))
            s = self.second(self.hidden(s.flatten(2)))
            out: Tensor = self.out(s).mean(dim=0)
            return out
        steps = [self.out(self.second(self.hidden(self.first(self.conv(f)).flatten(1)))) for f in frames]
        return torch.stack(steps).mean(dim=0)

    def twin(self, x: Tensor) -> Tensor:
        frames = x.mean(dim=1) if self.events else x
        out: Tensor = self.out(self.hidden(self.conv(frames).relu().flatten(1)).relu())
        return out


def victim(kind: str, *, double: bool = False, **options: Any) -> ModuleVictim:
    """Make a victim of one `ToyNet`."""
    net = ToyNet(kind, **options)
    events = bool(options.get("events"))
    return wrap(
        net.double() if double else net,
        name=f"toy-{kind}",
        shape=(STEPS, 1, 4, 4) if events else (1, 4, 4),
        classes=CLASSES,
        steps=STEPS,
        domain=Domain.EVENTS if events else Domain.STATIC,
    )


def inputs(n: int = 5, *, double: bool = False, events: bool = False) -> tuple[Tensor, Tensor]:
    """Return fixed inputs and labels."""
    rng = generator("toy inputs", events)
    shape = (n, STEPS, 1, 4, 4) if events else (n, 1, 4, 4)
    x = torch.rand(shape, generator=rng, dtype=torch.float64 if double else torch.float32)
    return x, torch.randint(CLASSES, (n,), generator=rng)
