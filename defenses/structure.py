"""What a defense may change in a spiking network: its layers, found and replaced; its membranes, read."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ContractError
from robustspike.bench.api import Neuron
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import find_neurons
from robustspike.bench.api import fingerprint_inputs
from robustspike.bench.api import generator
from robustspike.bench.api import reset
from robustspike.bench.api import supplied_with


def active_neurons(module: nn.Module, spec: VictimSpec) -> list[tuple[Neuron, tuple[int, ...]]]:
    """List the spiking layers that a network uses, in the order of use, with the shape of one step.

    Found by running the network on one made-up input: a converted network, trained as an ANN, holds
    neurons that its training never calls. Only layers that process sequences [T, N, ...] are listed.
    """
    called: dict[int, tuple[int, ...]] = {}
    neurons = find_neurons(module)
    with ExitStack() as stack:
        for neuron in neurons:

            def note(_: nn.Module, args: tuple[Tensor, ...], index: int = neuron.index) -> None:
                called.setdefault(index, tuple(args[0].shape[2:]))

            if neuron.is_multi_step:
                stack.callback(neuron.module.register_forward_pre_hook(note).remove)
        was_training = module.training
        x = fingerprint_inputs(spec, 1)
        with torch.no_grad(), supplied_with(module, RowStreams.derive([0], "probe")):
            reset(module)
            module.eval()(x)
            reset(module)
        module.train(was_training)
    return [(neurons[index], shape) for index, shape in called.items()]


@dataclass(frozen=True)
class _Profile:
    spiking_layers: int
    has_time_first_body: bool
    has_replaceable_neurons: bool


@lru_cache(maxsize=256)
def _profile(recipe: VictimRecipe) -> _Profile:
    module = recipe.build(generator("init", recipe.name, 0))
    network = recipe.trainable(module)
    active = active_neurons(network, recipe.spec())
    return _Profile(
        spiking_layers=len(active),
        has_time_first_body=time_first_body(module) is not None,
        has_replaceable_neurons=all(replaceable(network, neuron) for neuron, _ in active),
    )


def needs_spiking_training(recipe: VictimRecipe) -> str | None:
    """Say why a rule on spiking layers does not apply to a victim's training, else None."""
    if not _profile(recipe).spiking_layers:
        return (
            "it acts on spiking layers, and this victim's trained network has none (an ANN, or own neurons)"
        )
    return None


def needs_replaceable_neurons(recipe: VictimRecipe) -> str | None:
    """Say why a rule with neurons of its own does not apply to a victim, else None."""
    if not _profile(recipe).has_replaceable_neurons:
        return "it replaces spiking layers, and this victim's are part of blocks that work on them directly"
    return needs_spiking_training(recipe)


def needs_time_first_body(recipe: VictimRecipe) -> str | None:
    """Say why a coding layer cannot be put before a victim's network, else None."""
    if not _profile(recipe).has_time_first_body:
        return "it codes the input step by step, and this victim's network does not take a sequence of images"
    return None


def time_first_body(module: nn.Module) -> nn.Module | None:
    """Return the part of a directly coded network that takes the sequence [T, N, C, H, W], else None."""
    body = getattr(module, "body", None)
    return body if isinstance(body, nn.Module) and isinstance(getattr(module, "steps", None), int) else None


def put_first(module: nn.Module, layer: nn.Module) -> nn.Module:
    """Put a layer [T, N, ...] -> [T, N, ...] before the time-first body of a network; returns the network."""
    body = time_first_body(module)
    assert body is not None  # `fits` has refused other networks
    module.body = nn.Sequential(layer, body)
    return module


Make = Callable[[Neuron, tuple[int, ...]], nn.Module]
"""Makes a layer for a neuron, given the shape of one step of its activity."""


def put_before_neuron(node: nn.Module, layer: nn.Module, name: str) -> nn.Module:
    """Let a layer transform a node's input, as its submodule `name`; returns the node, the same object."""

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (module.get_submodule(name)(args[0]), *args[1:])

    node.add_module(name, layer)
    node.register_forward_pre_hook(before)
    return node


def put_after_neuron(node: nn.Module, layer: nn.Module, name: str) -> nn.Module:
    """Let a layer transform a node's spikes, as its submodule `name`; returns the node, the same object."""

    def after(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        del args
        changed: Tensor = module.get_submodule(name)(out)
        return changed

    node.add_module(name, layer)
    node.register_forward_hook(after)
    return node


def replace_neurons(module: nn.Module, spec: VictimSpec, make: Make) -> nn.Module:
    """Replace every used spiking layer of a plain sequence of layers, in place; returns the network."""
    for neuron, shape in active_neurons(module, spec):
        parent = module.get_submodule(neuron.name.rpartition(".")[0])
        setattr(parent, neuron.name.rpartition(".")[2], make(neuron, shape))
    return module


def replaceable(module: nn.Module, neuron: Neuron) -> bool:
    """Whether nothing but a plain sequence holds a spiking layer, so that another may take its place."""
    parent = module.get_submodule(neuron.name.rpartition(".")[0])
    return isinstance(parent, nn.Sequential) and hasattr(neuron.module, "v_reset")


class _Recorder(nn.Module):
    """A firing rule that writes down the distance to the threshold of every step."""

    def __init__(self, own: nn.Module, steps: list[Tensor]) -> None:
        super().__init__()
        self.own = own
        self.steps = steps

    def forward(self, u: Tensor) -> Tensor:
        self.steps.append(u)
        out: Tensor = self.own(u)
        return out


@contextmanager
def recorded_membranes(module: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Record u - v_threshold, before reset and with its graph, of every spiking layer and step.

    Yields one list per spiking layer (order of registration) with one tensor [N, ...] per step.
    """
    neurons = find_neurons(module)
    records: list[list[Tensor]] = [[] for _ in neurons]
    with ExitStack() as stack:
        for neuron, steps in zip(neurons, records, strict=True):
            own: Any = neuron.module.surrogate_function
            stack.enter_context(neuron.spiking_by(_Recorder(own, steps)))
        yield records


class SteppedNeuron(nn.Module):
    """Base of neurons of one's own: u = charge(v, I, t), spike where u reaches threshold(t), hard reset.

    Takes over surrogate, threshold, reset mode and detachment of the SpikingJelly node it replaces.
    It keeps no state between calls.
    """

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        node: Any = neuron.module
        self.surrogate_function: nn.Module = node.surrogate_function
        self.v_threshold = neuron.threshold
        self.v_reset: float | None = node.v_reset
        self.detach_reset = bool(node.detach_reset)
        self.input_gain = neuron.gain
        self.step_mode = "m"

    def charge(self, v: Tensor, current: Tensor, t: int) -> Tensor:
        """Return the potential before firing."""
        raise TypeError(f"{type(self).__name__} does not define charge().")

    def distance(self, u: Tensor, t: int) -> Tensor:
        """Return the distance of the potential to the threshold of this step."""
        del t
        return u - self.v_threshold

    def forward(self, x_seq: Tensor) -> Tensor:
        v = torch.zeros_like(x_seq[0])
        spikes = []
        for t, current in enumerate(x_seq):
            u = self.charge(v, current, t)
            spike: Tensor = self.surrogate_function(self.distance(u, t))
            spikes.append(spike)
            gone = spike.detach() if self.detach_reset else spike
            rest = self.v_reset
            v = u - gone * self.v_threshold if rest is None else (1 - gone) * u + gone * rest
        return torch.stack(spikes)


class SequenceNoise(nn.Module):
    """Add fresh normal noise to every element of a sequence [T, N, ...]."""

    draws_noise = True

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.noise: RowStreams | None = None

    def forward(self, x_seq: Tensor) -> Tensor:
        if self.noise is None:
            raise ContractError("noisy layer: hand the network noise streams for every pass.")
        drawn = self.noise.normal((len(x_seq), *x_seq.shape[2:]), dtype=x_seq.dtype)
        return x_seq + self.sigma * drawn.transpose(0, 1)
