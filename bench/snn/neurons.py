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
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams

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


class _Trace:
    """The distances u of the steps taken so far, and their slopes once asked for."""

    def __init__(self) -> None:
        self.u: list[Tensor] = []
        self.slopes: Tensor | None = None


class _DeferredSpike(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, u: Tensor, rule: DeferredRule, trace: _Trace
    ) -> Tensor:
        ctx.rule, ctx.trace, ctx.step = rule, trace, len(trace.u)  # type: ignore[attr-defined]
        trace.u.append(u.detach())
        trace.slopes = None
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        trace = ctx.trace  # type: ignore[attr-defined]
        if trace.slopes is None:
            with torch.no_grad():
                trace.slopes = ctx.rule.slopes(torch.stack(trace.u))  # type: ignore[attr-defined]
        return grads[0] * trace.slopes[ctx.step], None, None  # type: ignore[attr-defined]


class DeferredRule(SpikeRule):
    """A firing rule whose slopes of all steps are computed at once, when the backward pass begins.

    The forward pass does not depend on the slopes, so it need not wait for them: one call on stacked
    tensors replaces T small ones, and a pass without a backward computes nothing.
    Subclasses give `slopes(u)` with u [T, N, ...]; steps whose shape differs start a new stack.
    """

    def __init__(self) -> None:
        super().__init__()
        self._trace = _Trace()

    def slopes(self, u: Tensor) -> Tensor:
        """Return ds/du for every step and neuron: the shape of u [T, N, ...]."""
        raise TypeError(f"{type(self).__name__} does not define slopes(u).")

    def forward(self, u: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and u.requires_grad):
            return (u >= 0).to(u.dtype)
        if self._trace.u and self._trace.u[0].shape != u.shape:
            self._trace = _Trace()
        spikes: Tensor = _DeferredSpike.apply(u, self, self._trace)  # type: ignore[no-untyped-call]
        return spikes


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        value: Tensor,
        backward: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.replacement = backward  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.replacement(grads[0]), None, None  # type: ignore[attr-defined]


def replace_gradient(x: Tensor, value: Tensor, backward: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `value` unchanged, with a gradient of one's own with respect to x.

    Args:
        x: what the value depends on.
        value: computed without a graph; returned bit for bit.
        backward: dL/dvalue -> dL/dx, of the shape of x.
    """
    out: Tensor = _Replaced.apply(x, value, backward)  # type: ignore[no-untyped-call]
    return out


@dataclass(frozen=True)
class Neuron:
    """One spiking layer of a module.

    Args:
        name: its dotted path.
        index: its position in the order of `modules()`, which is forward order for sequential nets.
        module: the node itself.
        refusal: why no estimator can give the derivative of its spikes; None where they can.
    """

    name: str
    index: int
    module: nn.Module = field(repr=False)
    refusal: str | None = field(default=None, repr=False)

    @property
    def threshold(self) -> float:
        """Firing threshold in units of the membrane potential."""
        threshold: Any = self.module.v_threshold
        if isinstance(threshold, Tensor) and threshold.numel() != 1:
            raise ContractError(
                f"neuron '{self.name}': expected one threshold for the layer, got {threshold.numel()}. "
                "Use an estimator that needs only the distance to the threshold (a surrogate, pdsg, assg)."
            )
        return float(threshold)

    @property
    def rest(self) -> float:
        """Potential towards which the neuron leaks, and to which a hard reset sets it."""
        reset = getattr(self.module, "v_reset", None)
        return 0.0 if reset is None else float(reset)

    @property
    def barrier(self) -> float:
        """Distance from rest to threshold: the unit of potentials and currents of this neuron."""
        barrier = self.threshold - self.rest
        if not barrier > 0:
            raise ContractError(
                f"neuron '{self.name}': expected a threshold above the reset potential, got "
                f"{self.threshold} and {self.rest}. Rules in units of their difference do not apply."
            )
        return barrier

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

    @property
    def no_dynamics(self) -> str | None:
        """Why rules that need threshold, leak and rates do not apply; None: they may."""
        return None

    @property
    def no_sequence(self) -> str | None:
        """Why rules for whole sequences do not apply, or None where they do."""
        if self.is_multi_step:
            return None
        return f"neuron '{self.name}' processes one step a call, and the estimator needs whole sequences"

    @property
    def no_resetting(self) -> str | None:
        """Why the gradient through the reset cannot be switched, or None where it can."""
        if getattr(self.module, "detach_reset", None) is not None:
            return None
        return (
            f"neuron '{self.name}' has no attribute `detach_reset`, so the gradient through its reset cannot "
            "be switched"
        )

    @contextmanager
    def spiking_by(self, rule: nn.Module) -> Iterator[None]:
        """Use a firing rule instead of the neuron's own for the length of the block."""
        own = self.module.surrogate_function
        self.module.surrogate_function = rule
        try:
            yield
        finally:
            if not isinstance(own, nn.Module):  # a plain function cannot replace a submodule
                del self.module.surrogate_function
            self.module.surrogate_function = own

    @contextmanager
    def resetting(self, detach: bool) -> Iterator[None]:
        """Cut (or keep) the gradient through the reset for the length of the block."""
        own = getattr(self.module, "detach_reset", None)
        if own is None:
            raise ContractError(
                f"neuron '{self.name}': has no attribute `detach_reset`, so the gradient through its reset "
                "cannot be switched. Leave the estimator's detach_reset unset."
            )
        self.module.detach_reset = detach  # type: ignore[assignment]
        try:
            yield
        finally:
            self.module.detach_reset = own

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
    found: list[Neuron] = []
    for name, child in module.named_modules():
        if hasattr(child, "surrogate_function") and hasattr(child, "v_threshold"):
            found.append(Neuron(name=name, index=len(found), module=child))
    return tuple(found)


_STANDARD = frozenset(nn.Module().__dict__)
"""What every module has of its own; none of it is a network's state."""


class State:
    """The state of a module tree: plain attributes and buffers, to be put back after a call.

    Parameters are not state. Tensors, and containers of them, are copied, so that a network that
    changes its state in place is put back too.
    """

    def __init__(self, module: nn.Module) -> None:
        self._saved = [
            (
                child,
                {key: _copied(value) for key, value in child.__dict__.items() if key not in _STANDARD},
                {key: _copied(value) for key, value in child._buffers.items()},
            )
            for child in module.modules()
        ]

    def restore(self) -> None:
        """Put everything back as it was, and remove what was added."""
        for child, attributes, buffers in self._saved:
            for key in [k for k in child.__dict__ if k not in _STANDARD and k not in attributes]:
                del child.__dict__[key]
            child.__dict__.update(attributes)
            child._buffers.clear()
            child._buffers.update(buffers)


def _copied(value: Any) -> Any:
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


def reset(module: nn.Module) -> None:
    """Clear the state of every submodule that has a `reset()` without arguments."""
    for child in resettable(module):
        child.reset()  # type: ignore[operator]


def resettable(module: nn.Module) -> list[nn.Module]:
    """List the submodules that have a `reset()`: walking a network takes longer than clearing it."""
    return [child for child in module.modules() if callable(getattr(child, "reset", None))]


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
