"""Networks in the Neuromorphic Intermediate Representation (NIR), as torch modules.

Source: J. E. Pedersen et al., "Neuromorphic intermediate representation: A unified instruction set for
interoperable brain-inspired computing", Nature Communications 15:8122, 2024. A file says the equations of its
neurons in continuous time, not how they are stepped or reset. Here: forward Euler with steps of `dt`; IF
neurons fire as often a step as the threshold fits into the potential, which is reset by subtraction and kept
above minus the threshold (Sinabs, whose networks the published files are); LIF and CubaLIF neurons fire once,
and go to `v_reset` where the file gives one, else the threshold is subtracted. Differs: delays and recurrence
are refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError


class _Fire(torch.autograd.Function):
    """Spikes of a step; straight-through between zero and the threshold's neighbourhood."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: Tensor, several: bool) -> Tensor:
        ctx.save_for_backward(v, threshold)
        count = torch.div(v, threshold, rounding_mode="floor").clamp(min=0)
        return count if several else count.clamp(max=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        v, threshold = ctx.saved_tensors
        return grads[0] * (v > 0).to(v) / threshold, None, None


class Integrate(nn.Module):
    """A layer of IF, LIF or CubaLIF neurons, one step a call.

    Args:
        values: r, v_threshold and, where the neuron has them, tau, v_leak, v_reset, tau_mem, tau_syn, w_in.
        dt: seconds a step.
    """

    def __init__(self, values: Mapping[str, Any], dt: float) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.dt = dt
        self.several = "tau" not in values and "tau_mem" not in values
        self.v: Tensor | None = None
        self.i: Tensor | None = None

    def reset(self) -> None:
        """Forget the potentials."""
        self.v = self.i = None

    def forward(self, x: Tensor) -> Tensor:
        held = dict(self.named_buffers())
        v = torch.zeros_like(x) if self.v is None else self.v
        if "tau_syn" in held:
            i = torch.zeros_like(x) if self.i is None else self.i
            x = self.i = i + self.dt / held["tau_syn"] * (held["w_in"] * x - i)
        tau = held.get("tau", held.get("tau_mem"))
        drive = held["r"] * x
        v = v + (drive if tau is None else self.dt / tau * (held["v_leak"] - v + drive))
        threshold = held["v_threshold"].expand_as(v)
        spikes: Tensor = _Fire.apply(v, threshold, self.several)  # type: ignore[no-untyped-call]
        if "v_reset" in held and not self.several:
            self.v = torch.where(spikes > 0, held["v_reset"].expand_as(v), v)
        else:
            v = v - spikes * threshold
            self.v = torch.maximum(v, -threshold) if self.several else v
        return spikes


class SumPool(nn.Module):
    """Sums over windows."""

    def __init__(self, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(size, stride, padding, divisor_override=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pool(x)
        return out


class NirNet(nn.Module):
    """A chain of NIR nodes, stepped over events [N, T, ...]; it answers how often every output fired."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name.replace(".", "_"): layer for name, layer in layers.items()})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            if isinstance(layer, Integrate):
                layer.reset()
        total: Any = 0
        for step in x.unbind(1):
            for layer in self.layers.values():
                step = layer(step)
            total = total + step
        return total


def read_nir(path: Path, *, dt: float = 1e-3) -> NirNet:
    """Read a .nir file as a network from events [N, T, C, H, W] to spike counts [N, K].

    Args:
        path: the file.
        dt: seconds that a step of the events stands for.

    Raises: ConfigError: nir is not installed. ArtefactError: unreadable, or with nodes that are not known.
    """
    try:
        nir = importlib.import_module("nir")
    except ImportError as error:
        raise ConfigError("a .nir file needs the package nir: pip install 'robustspike[nir]'.") from error
    try:
        graph = nir.read(path)
    except Exception as error:
        raise ArtefactError(f"{path}: not a readable NIR file ({type(error).__name__}: {error}).") from error
    layers = {}
    for name in _chain(graph, path):
        node = graph.nodes[name]
        if type(node).__name__ not in ("Input", "Output"):
            layers[name] = _layer(node, name, path, dt)
    return NirNet(layers)


def _chain(graph: Any, path: Path) -> list[str]:
    """Return the nodes in order. Raises: ArtefactError: they are no chain."""
    after: dict[str, list[str]] = {}
    for source, target in graph.edges:
        after.setdefault(source, []).append(target)
    name = next((key for key, node in graph.nodes.items() if type(node).__name__ == "Input"), None)
    order: list[str] = []
    while name is not None and name not in order:
        order.append(name)
        following = after.get(name, [])
        if len(following) > 1:
            raise ArtefactError(f"{path}: node '{name}' leads to {len(following)} others; chains are read.")
        name = following[0] if following else None
    if name is not None or len(order) != len(graph.nodes):
        raise ArtefactError(f"{path}: its nodes are no single chain (recurrence or branches); not read.")
    return order


def _layer(node: Any, name: str, path: Path, dt: float) -> nn.Module:
    kind = type(node).__name__
    if kind in ("IF", "LIF", "CubaLIF"):
        known = ("r", "v_threshold", "tau", "v_leak", "v_reset", "tau_mem", "tau_syn", "w_in")
        values = {key: getattr(node, key) for key in known if getattr(node, key, None) is not None}
        return Integrate(values, dt)
    if kind in ("Affine", "Linear"):
        weight = torch.as_tensor(node.weight, dtype=torch.float32)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=kind == "Affine")
        return _filled(linear, weight, getattr(node, "bias", None))
    if kind == "Conv2d":
        weight = torch.as_tensor(node.weight, dtype=torch.float32)
        groups = int(node.groups)
        conv = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=_pair(node.stride),
            padding=node.padding if isinstance(node.padding, str) else _pair(node.padding),
            dilation=_pair(node.dilation),
            groups=groups,
            bias=node.bias is not None,
        )
        return _filled(conv, weight, node.bias)
    if kind == "SumPool2d":
        return SumPool(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
    if kind == "AvgPool2d":
        return nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
    if kind == "Flatten":
        return nn.Flatten()
    if kind == "Scale":
        return _Scale(torch.as_tensor(node.scale, dtype=torch.float32))
    raise ArtefactError(
        f"{path}: node '{name}' is a {kind}; read are IF, LIF, CubaLIF, Conv2d, Linear, Affine, Scale, "
        "SumPool2d, AvgPool2d and Flatten."
    )


class _Scale(nn.Module):
    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.scale
        return out


def _filled(layer: Any, weight: Tensor, bias: Any) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(bias, dtype=torch.float32))
    module: nn.Module = layer
    return module


def _pair(value: Any) -> tuple[int, int]:
    both = [int(v) for v in torch.as_tensor(value).flatten().tolist()]
    return (both[0], both[-1])
