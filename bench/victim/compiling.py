"""Networks through torch.compile, for what attacks ask; no verdict is ever given by one.

A compiled network rounds otherwise than the network itself, and a spike turns a rounding into a bit. So
what is measured with it carries a label of its own, and what an attack brings back is answered by the
network itself.
Compiling takes half a minute a shape and more, so batches are filled up to a few fixed sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustspike.bench.errors import ConfigError
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import SpikeRule
from robustspike.bench.victim.module import ModuleVictim

BUCKETS = (8, 32, 128)
"""Sizes that batches are filled up to; beyond them multiples of the last."""

_SHAPES = 64
"""Shapes and modes of one network that are compiled before torch.compile gives up on it."""


def bucket(n: int) -> int:
    """Return the size that a batch of n samples is filled up to."""
    return next((size for size in BUCKETS if n <= size), -(-n // BUCKETS[-1]) * BUCKETS[-1])


def check_usable(device: str) -> None:
    """Refuse --compile where torch.compile does not work.

    Cost: a function of one operation is compiled, some seconds.
    Raises: ConfigError: says what is missing.
    """
    try:
        small: Callable[[Tensor], Tensor] = torch.compile(lambda x: x * 2 + 1)
        right = small(torch.ones(3, device=device)).tolist() == [3.0] * 3
        why = "it computed something else"
    except Exception as error:  # noqa: BLE001  (compilers fail in many ways)
        right, why = False, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if not right:
        raise ConfigError(
            f"--compile: torch.compile does not work here on {device} ({why}). It needs a C++ compiler (g++, "
            "clang or $CXX) on a CPU and Triton on CUDA; leave --compile out."
        )


def refusal(victim: ModuleVictim) -> str | None:
    """Say why a victim cannot be attacked through torch.compile, or None where it can."""
    if victim.spec.stochastic:
        return "it draws noise from streams of its own, which torch.compile cannot follow"
    if victim.members:
        return "it is several networks"
    if any(type(neuron) is not Neuron for neuron in victim.neurons):
        return "its spikes are made outside of modules, so that estimators and torch.compile would collide"
    return None


class CompiledVictim(ModuleVictim):
    """A victim that answers by its compiled network, and by the plain one while an estimator is installed.

    It shares the victim's network and what is known of it.
    """

    def __init__(self, victim: ModuleVictim) -> None:
        neurons, torch._dynamo.config.recompile_limit = victim.neurons, _SHAPES
        self.__dict__.update(victim.__dict__, neurons=neurons, refusals={})
        self._victim = victim
        self._compiled = torch.compile(self.module, dynamic=False)

    @property
    def sample_bytes(self) -> dict[bool, int]:  # type: ignore[override]
        """Those of the network itself: what torch.compile first meets being measured, it never compiles."""
        return self._victim.sample_bytes

    def _network(self, x: Tensor) -> object:
        if not len(x) or any(_exchanged(neuron) for neuron in self.neurons):
            return super()._network(x)
        filled = torch.cat([x, x[:1].expand(bucket(len(x)) - len(x), *x.shape[1:])])
        out = self._compiled(filled)
        return out[: len(x)] if isinstance(out, Tensor) else out


def _exchanged(neuron: Neuron) -> bool:
    """Say whether an estimator has put its own rule into a layer."""
    rule = getattr(neuron.module, "surrogate_function", None)
    return isinstance(rule, SpikeRule) or "forward" in neuron.module.__dict__


def compiled(victim: ModuleVictim) -> ModuleVictim:
    """Return the compiled face of a victim, made once and kept with it. Raises: ConfigError: it has none."""
    if (reason := refusal(victim)) is not None:
        raise ConfigError(f"victim '{victim.spec.name}' cannot be compiled: {reason}.")
    if victim.compiled is None:
        victim.compiled = CompiledVictim(victim)
    return victim.compiled
