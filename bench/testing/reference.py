"""Small victims whose best attack is known in closed form."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.data.quality.photopatch_iqa import PhotopatchIqa
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import generator
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.module import wrap

CLASSES = 3
STATIC_SHAPE = (1, 4, 4)
SPIKES_SHAPE = (4, 2, 4, 4)
IMAGE_SHAPE = PhotopatchIqa.shape
"""Inputs of the quality reference: those of the embedded image quality data, on which attackers learn."""


class Silent(nn.Module):
    """Spiking neurons that see the input and count for nothing: gradient estimators apply, to no effect."""

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate

        self.node = neuron.IFNode(surrogate_function=surrogate.ATan(), step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.node(x.flatten(1).unsqueeze(0))
        return 0 * spikes.sum(dim=(0, 2)).unsqueeze(1)


class Linear(nn.Module):
    """Logits = W x + b with dyadic weights: exact in float64 for dyadic inputs, whatever the batch."""

    def __init__(self, shape: tuple[int, ...], *, seed: int = 0) -> None:
        super().__init__()
        size = int(torch.Size(shape).numel())
        rng = generator("reference", seed)
        self.weight = nn.Parameter((torch.randn(CLASSES, size, generator=rng) * 16).round() / 16)
        self.bias = nn.Parameter(torch.zeros(CLASSES))
        self.silent = Silent()

    def forward(self, x: Tensor) -> Tensor:
        # A sum over a fixed axis: the order of additions does not depend on the batch size.
        return (x.flatten(1)[:, None, :] * self.weight).sum(dim=2) + self.bias + self.silent(x)


class Constant(nn.Module):
    """The same logits for every input, with a gradient that is zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = Silent()

    def forward(self, x: Tensor) -> Tensor:
        zero = (x * 0).flatten(1).sum(dim=1, keepdim=True) + self.silent(x)
        return torch.cat([zero + 1, zero, zero], dim=1)


class LinearScore(nn.Module):
    """A quality score: 50 + sum(w (x - 1/2)) with dyadic weights, or always 50 with a gradient of zero."""

    def __init__(self, *, constant: bool = False) -> None:
        super().__init__()
        weight = torch.randint(-8, 9, (1, *IMAGE_SHAPE), generator=generator("reference score"))
        self.weight = nn.Parameter((0 if constant else 1) * weight.float() / 64)
        self.silent = Silent()

    def forward(self, x: Tensor) -> Tensor:
        return 50 + ((x - 0.5) * self.weight).flatten(1).sum(dim=1, keepdim=True) + self.silent(x)


class Beside(nn.Module):
    """A network with spiking neurons beside it that weigh nothing: for attacks that need some."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.neurons = neuron.LIFNode(
            step_mode="m"
        )  # before the network's own: its last layer stays the last
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.neurons(x.flatten(1).unsqueeze(0))
        out: Tensor = self.inner(x) + 0 * spikes[0].sum(dim=1, keepdim=True)
        return out


def shape_of(domain: Domain, task: Task = Task.CLASSIFY) -> tuple[int, ...]:
    """Return the input shape of the reference victims of a domain and a task."""
    if task is Task.QUALITY:
        return IMAGE_SHAPE
    return STATIC_SHAPE if domain is Domain.STATIC else SPIKES_SHAPE


def reference(
    domain: Domain,
    *,
    task: Task = Task.CLASSIFY,
    dtype: torch.dtype = torch.float32,
    constant: bool = False,
    spiking: bool = False,
) -> ModuleVictim:
    """Return the linear (or constant) reference victim, if need be with spiking neurons beside it."""
    module: nn.Module
    if task is Task.QUALITY:
        module = LinearScore(constant=constant)
    else:
        module = Constant() if constant else Linear(shape_of(domain))
    if spiking:
        module = Beside(module)
    module = module.to(dtype)
    if task is Task.QUALITY:
        name = "reference.quality"
        return wrap(module, name=name, shape=IMAGE_SHAPE, classes=1, task=task, score_range=(0.0, 100.0))
    name = "reference.constant" if constant else "reference.linear"
    return wrap(module, name=name, shape=shape_of(domain), classes=CLASSES, domain=domain)


def samples(
    domain: Domain, n: int = 12, *, task: Task = Task.CLASSIFY, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return n fixed inputs: multiples of 1/16 in [0,1], or binary frames; half as many for quality."""
    if task is Task.QUALITY:
        images = RowStreams.derive(range(n // 2), "reference images").integers(17, IMAGE_SHAPE)
        return images.to(dtype) / 16
    streams = RowStreams.derive(range(n), "reference inputs")
    if domain is Domain.STATIC:
        return streams.integers(17, shape_of(domain)).to(dtype) / 16
    return (streams.uniform(shape_of(domain)) > 0.7).to(dtype)


def linear_minimum(victim: ModuleVictim, x: Tensor, y: Tensor) -> Tensor:
    """Return the smallest L-inf budget that can fool the linear victim, ignoring bounds: [N]."""
    assert isinstance(victim.module, Linear)
    weight = victim.module.weight
    logits = victim.logits(x)
    best = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for other in range(CLASSES):
        gap = logits.gather(1, y[:, None]).squeeze(1) - logits[:, other]
        reach = (weight[other] - weight[y]).abs().sum(dim=1)
        best = torch.where(y == other, best, torch.minimum(best, gap / reach.clamp(min=1e-12)))
    return best
