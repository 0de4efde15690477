"""The layers of a network in the order of its forward pass, where that is a chain, found by tracing it."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx
from torch import nn

_FLATTEN = ""
"""Stands for a flattening that is a function among the names of layers."""

_FOUND: WeakKeyDictionary[nn.Module, dict[bool, tuple[str, ...] | None]] = WeakKeyDictionary()
"""The chains of networks that were traced before, by whether their frames come time first."""


_NOT_TRACED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What code raises when it is handed something that has no numbers."""


class _Tracer(fx.Tracer):
    """Takes torch's and SpikingJelly's layers as they are, and looks into everything else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith(("spikingjelly.", "torch.nn.modules."))
        return ours and type(m) is not nn.Sequential


def chain(module: nn.Module, *, time_first: bool = False) -> nn.Sequential | None:
    """Return the layers that a network sends event frames through one after another, time first.

    Args:
        module: takes frames [N, T, C, H, W] ([T, N, C, H, W] if `time_first`) and answers the mean over time
            of what its last layer says, or, time first only, that of every step [T, N, K].

    Returns: the network's own layers; None where it does anything else (a sum of two paths, a product, an
        output of another form), or cannot be traced. The network is left as it was.
    Cost: one run of its code without numbers, the first time.
    """
    known = _FOUND.setdefault(module, {})
    if time_first not in known:
        known[time_first] = _traced(module, time_first)
    names = known[time_first]
    if names is None:
        return None
    return nn.Sequential(*(module.get_submodule(name) if name else _flatten() for name in names))


def _traced(module: nn.Module, time_first: bool) -> tuple[str, ...] | None:
    """Return the names of the layers of a chain in their order."""
    kept = {child: dict(child.__dict__) for child in module.modules()}
    try:
        nodes = list(_Tracer().trace(module).nodes)
    except _NOT_TRACED:
        return None
    finally:
        for child, held in kept.items():
            child.__dict__.clear()
            child.__dict__.update(held)
    names: list[str] = []
    averaged = False
    for before, node in itertools.pairwise(nodes):
        alone = node.all_input_nodes == [before] and len(before.users) == 1 and node.args[:1] == (before,)
        if not alone or (averaged and node.op != "output"):
            return None
        what = _function(node)
        if node.op == "output":
            return tuple(names) if averaged or time_first else None
        if node.op == "call_module":
            if node.target in names:  # what a neuron holds after its first sequence goes on in the second
                return None
            names.append(str(node.target))
        elif what == "swap" and not names:
            time_first = not time_first
        elif what == "flatten" and time_first:
            names.append(_FLATTEN)
        elif what == "mean" and time_first:
            averaged = True
        elif what != "copy":
            return None
    return None


def _function(node: fx.Node) -> str:
    """Name what a function or method of a tensor does, if it is one that a chain may hold, else ""."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    values: list[Any] = [*node.args[1:], *node.kwargs.values()]
    flat = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    if (name in ("transpose", "swapaxes", "movedim") and flat in ([0, 1], [1, 0])) or (
        name == "permute" and flat == [1, 0, 2, 3, 4]
    ):
        return "swap"
    if name == "flatten" and flat in ([2], [2, -1]):
        return "flatten"
    if name == "mean" and flat == [0]:
        return "mean"
    return "copy" if name in ("contiguous", "clone") and not flat else ""


def _flatten() -> nn.Module:
    from spikingjelly.activation_based import layer

    made: nn.Module = layer.Flatten(step_mode="m")
    return made
