"""Victims from networks that were not written for the harness: SpikingJelly, snnTorch, plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from typing import Literal
from typing import get_args

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.snn.neurons import State
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.module import ModuleVictim

Time = Literal["inside", "repeat", "loop"]


class AdaptedNet(nn.Module):
    """A foreign network as a pure function from pixels to logits; see `adapt` for the arguments."""

    def __init__(
        self,
        network: nn.Module,
        *,
        steps: int,
        time: Time,
        readout: Callable[[Any], Tensor] | None,
        clear: Callable[[nn.Module], Any] | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.time = time
        self.readout = readout
        self.clear = clear
        self.mean = mean
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        if self.mean:
            shape = (-1,) + (1,) * (x.dim() - 2)
            x = (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)
        self._clear()
        state = State(self.network)
        try:
            return self._decoded(self._run(x), len(x))
        finally:
            state.restore()

    def _clear(self) -> None:
        if self.clear is not None:
            self.clear(self.network)
            return
        for child in self.network.modules():
            method = getattr(child, "reset_mem", None) or getattr(child, "reset", None)
            if callable(method):
                method()

    def _run(self, x: Tensor) -> Any:
        if self.time == "repeat":
            return self.network(x.unsqueeze(0).expand(self.steps, *x.shape))
        if self.time == "loop":
            outs = [self.network(x) for _ in range(self.steps)]
            return torch.stack([out[0] if isinstance(out, tuple) else out for out in outs])
        return self.network(x)

    def _decoded(self, out: Any, n: int) -> Tensor:
        if self.readout is not None:
            return self.readout(out)
        if isinstance(out, tuple | list) and out and isinstance(out[0], Tensor):
            out = out[0]
        if isinstance(out, Tensor) and out.dim() == 3 and out.shape[1] == n:
            return out.mean(dim=0)
        if isinstance(out, Tensor) and out.dim() == 2 and len(out) == n:
            return out
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ContractError(
            f"adapt: expected logits [{n}, classes], or outputs of every step [T, {n}, classes], possibly "
            f"first in a tuple; got {shape}. Pass readout=..., a function from the output to logits."
        )


class _OwnSurrogate(nn.Module):
    """The firing rule an snnTorch neuron came with."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, u: Tensor) -> Tensor:
        spikes: Tensor = self.function(u).to(u.dtype)
        return spikes


def _adopt_snntorch(neuron: Any) -> None:
    """Let estimators find an snnTorch neuron and replace its firing rule.

    snnTorch fires strictly above the threshold, rules at or above it: they are handed the next smaller
    number, which makes the two agree in every bit. The neuron's own reset keeps its own rule.
    """
    neuron.surrogate_function = _OwnSurrogate(neuron.spike_grad)
    threshold = neuron.threshold
    neuron.v_threshold = float(threshold) if threshold.numel() == 1 else threshold.detach()
    beta = getattr(neuron, "beta", None)
    if isinstance(beta, Tensor) and beta.numel() == 1:
        leak = min(max(float(beta), 0.0), 1.0)
        neuron.tau = math.inf if leak == 1.0 else 1 / (1 - leak)

    def fire(mem: Tensor) -> Tensor:
        u = mem - neuron.threshold
        rule = neuron.surrogate_function
        if not isinstance(rule, _OwnSurrogate):
            u = (u - u.detach()) + torch.nextafter(u.detach(), torch.full_like(u, -math.inf))
        spikes: Tensor = rule(u) * neuron.graded_spikes_factor
        return spikes

    neuron.__dict__["fire"] = fire


def _is_snntorch(module: nn.Module) -> bool:
    names = ("spike_grad", "threshold", "fire", "mem_reset", "graded_spikes_factor")
    return all(hasattr(module, name) for name in names) and not hasattr(module, "surrogate_function")


def adapt(
    network: nn.Module,
    *,
    name: str,
    shape: tuple[int, ...],
    classes: int,
    steps: int = 0,
    time: Time = "inside",
    readout: Callable[[Any], Tensor] | None = None,
    clear: Callable[[nn.Module], Any] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    domain: Domain = Domain.STATIC,
) -> ModuleVictim:
    """Make a checked victim of a trained network that follows its own conventions.

    State is found, not declared: before a call every submodule's `reset()` or `reset_mem()` is called;
    after it, every attribute and buffer is put back as it was. The spiking neurons that were found are
    `victim.neurons`; SpikingJelly's and snnTorch's are recognised, and so is any module with a
    `surrogate_function` and a `v_threshold`.

    Args:
        network: the network; put into evaluation mode, and not copied.
        name: name for tables.
        shape: one input in [0, 1] without the batch axis.
        classes: number of logits.
        steps: time steps T; 0 for a network without time.
        time: "inside": the network takes [N, *shape] and handles time itself. "repeat": it takes
            [T, N, *shape] (SpikingJelly's multi-step mode). "loop": it is called T times with
            [N, *shape] (single-step mode).
        readout: output -> logits [N, K]. By default a tuple's first element; outputs [T, N, K] are
            averaged over T.
        clear: called with the network before every call, in place of the resets that were found.
        mean, std: normalisation per channel that the network was trained with; it is applied here,
            so that budgets stay in pixels.
        domain: kind of inputs.

    Raises:
        ConfigError: parameters that do not fit together.
        ContractError: the network is no pure function, has no gradient, or mixes samples.
    """
    if time not in get_args(Time) or (time != "inside" and steps < 1):
        raise ConfigError(
            f"adapt '{name}': time must be 'inside', 'repeat' or 'loop', the last two with steps of 1 or "
            f"more; got '{time}' and {steps}."
        )
    if len(mean) != len(std) or any(value <= 0 for value in std):
        raise ConfigError(f"adapt '{name}': mean and std need one value per channel, std above 0.")
    for child in network.modules():
        if _is_snntorch(child):
            _adopt_snntorch(child)
    module = AdaptedNet(network, steps=steps, time=time, readout=readout, clear=clear, mean=mean, std=std)
    spec = VictimSpec(name=name, shape=shape, classes=classes, steps=steps, domain=domain)
    victim = ModuleVictim(module, spec)
    check_victim(victim)
    return victim
