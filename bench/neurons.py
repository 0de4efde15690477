"""Spiking neurons inside a module: finding them, resetting them, replacing their backward pass.

A spiking neuron is any module with a `surrogate_function` submodule and a `v_threshold`: SpikingJelly's
nodes are, and a neuron of one's own becomes one by calling `self.surrogate_function(h - v_threshold)`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.rng import RowStreams

# SpikingJelly probes for Triton when it is imported; on a CPU the resulting log lines are noise.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)

SequenceRule = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Backward rule of a whole layer: (forward, x_seq [T, N, ...]) -> spikes with its own gradient."""


class _SpikeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, u: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * slope, None


class SpikeRule(nn.Module):
    """A firing rule: Heaviside forward (firing at u >= 0), a chosen slope backward.

    Subclasses give `slope(u)`, called once per step with the detached distance u = h - v_threshold
    [N, ...], and only while a gradient is being recorded.
    """

    def slope(self, u: Tensor) -> Tensor:
        """Return ds/du for each neuron: the shape of u."""
        raise TypeError(f"{type(self).__name__} does not define slope(u).")

    def forward(self, u: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and u.requires_grad):
            return (u >= 0).to(u.dtype)
        with torch.no_grad():
            slope = self.slope(u.detach())
        spikes: Tensor = _SpikeFunction.apply(u, slope)  # type: ignore[no-untyped-call]
        return spikes


class FunctionRule(SpikeRule):
    """A fixed surrogate: the slope is a function of u alone."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def slope(self, u: Tensor) -> Tensor:
        return self.function(u)


@dataclass(frozen=True)
class Neuron:
    """One spiking layer of a module.

    Args:
        name: its dotted path.
        index: its position in the order of `modules()`, which is forward order for sequential nets.
        module: the node itself.
    """

    name: str
    index: int
    module: nn.Module = field(repr=False)

    @property
    def threshold(self) -> float:
        """Firing threshold in units of the membrane potential."""
        return float(self.module.v_threshold)

    @property
    def leak(self) -> float:
        """Factor by which the potential is multiplied from one step to the next; 1 for IF."""
        weight = getattr(self.module, "w", None)
        if isinstance(weight, nn.Parameter) and weight.numel() == 1:  # PLIF: 1/tau = sigmoid(w)
            return 1.0 - float(torch.sigmoid(weight.detach()))
        tau = getattr(self.module, "tau", None)
        return 1.0 if tau is None else 1.0 - 1.0 / float(tau)

    @property
    def gain(self) -> float:
        """Factor that multiplies the input current: 1/tau where the input decays, else 1."""
        return 1.0 - self.leak if getattr(self.module, "decay_input", False) else 1.0

    @property
    def is_multi_step(self) -> bool:
        """Whether one call processes a whole sequence [T, N, ...]."""
        return getattr(self.module, "step_mode", "s") == "m"

    @contextmanager
    def spiking_by(self, rule: nn.Module) -> Iterator[None]:
        """Use a firing rule instead of the neuron's own for the length of the block."""
        own = self.module.surrogate_function
        self.module.surrogate_function = rule
        try:
            yield
        finally:
            self.module.surrogate_function = own

    @contextmanager
    def sequence_by(self, rule: SequenceRule) -> Iterator[None]:
        """Hand whole sequences to a layer rule for the length of the block."""
        own = self.module.forward
        self.module.__dict__["forward"] = lambda x_seq: rule(own, x_seq)
        try:
            yield
        finally:
            del self.module.__dict__["forward"]


def find_neurons(module: nn.Module) -> tuple[Neuron, ...]:
    """List the spiking neurons of a module, each once, in the order of registration."""
    found = []
    for name, child in module.named_modules():
        if hasattr(child, "surrogate_function") and hasattr(child, "v_threshold"):
            found.append(Neuron(name=name, index=len(found), module=child))
    return tuple(found)


def reset(module: nn.Module) -> None:
    """Clear the state of every submodule that has a `reset()` without arguments."""
    for child in module.modules():
        method = getattr(child, "reset", None)
        if callable(method):
            method()


@contextmanager
def supplied_with(module: nn.Module, noise: RowStreams | None) -> Iterator[None]:
    """Hand noise streams to every submodule that declares `draws_noise`, for the length of the block."""
    noisy = [child for child in module.modules() if getattr(child, "draws_noise", False)]
    for child in noisy:
        child.noise = noise  # type: ignore[assignment]
    try:
        yield
    finally:
        for child in noisy:
            child.noise = None  # type: ignore[assignment]
