"""The synaptic operations of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch import nn
from torch.nn.grad import conv2d_input
from torch.nn.grad import conv2d_weight

from robustspike.bench.victim.energy import EnergyCost
from robustspike.bench.victim.energy import _Flow
from robustspike.bench.victim.energy import _is_layer
from robustspike.bench.victim.energy import _single
from robustspike.bench.victim.energy import layer_operations


@dataclass
class TrainingOperations:
    """Operations of training passes, summed over samples and steps; zeros are skipped.

    Args:
        forward_ac, forward_mac: inputs that are not zero, times the weights they meet.
        backward_mac: errors that are not zero, times the weights they meet on the way down.
        weight_ac, weight_mac: pairs of an input and an error that are both not zero: additions of an
            error where the input is a spike, multiplications where it is a real value.
    """

    forward_ac: float = 0.0
    forward_mac: float = 0.0
    backward_mac: float = 0.0
    weight_ac: float = 0.0
    weight_mac: float = 0.0

    def energy_nj(self, cost: EnergyCost | None = None) -> float:
        """Return their energy in nanojoules."""
        cost = EnergyCost() if cost is None else cost
        additions = self.forward_ac + self.weight_ac
        products = self.forward_mac + self.backward_mac + self.weight_mac
        return (cost.ac_pj * additions + cost.mac_pj * products) / 1000


@contextmanager
def training_operations(module: nn.Module) -> Iterator[TrainingOperations]:
    """Count the operations of the convolutions and linear layers in every pass inside the block.

    The backward pass is counted where and as often as it really runs, so a defense pays here for its
    inner attack and for its regulariser. A layer whose input needs no gradient passes no error down.
    """
    found = TrainingOperations()
    flow = _Flow(module, spiking=False)
    kinds: dict[str, bool] = {}

    def at_layer(name: str, layer: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        if not _is_layer(layer):
            return
        x = _single(layer, inputs[0].detach())
        active = (x != 0).to(x.dtype)
        spiking = kinds.setdefault(name, getattr(layer, "input_kind", "") == "spikes" or flow.spiking)
        done = float(layer_operations(layer, active).sum())
        found.forward_ac += done if spiking else 0.0
        found.forward_mac += 0.0 if spiking else done
        if not out.requires_grad:
            return
        needs_error, needs_weight = inputs[0].requires_grad, layer.weight.requires_grad  # type: ignore[union-attr]

        def at_error(error: Tensor) -> None:
            flat = (_single(layer, error) != 0).to(active.dtype)
            if needs_error:
                found.backward_mac += _error_operations(layer, active, flat)
            if needs_weight:
                pairs = _weight_operations(layer, active, flat)
                found.weight_ac += pairs if spiking else 0.0
                found.weight_mac += 0.0 if spiking else pairs

        out.register_hook(at_error)

    def at_neurons(name: str, fired: Tensor) -> None:
        del name, fired

    with flow.followed(at_layer, at_neurons):
        yield found


def _error_operations(layer: nn.Module, x: Tensor, error: Tensor) -> float:
    weight = (layer.weight.detach() != 0).to(x.dtype)  # type: ignore[operator, union-attr]
    if isinstance(layer, nn.Conv2d):
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        down: Tensor = conv2d_input(x.shape, weight, error, *settings)  # type: ignore[no-untyped-call]
        return float(down.double().sum())
    return float((error @ weight).double().sum())


def _weight_operations(layer: nn.Module, x: Tensor, error: Tensor) -> float:
    if isinstance(layer, nn.Conv2d):
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        size = layer.weight.shape
        pairs: Tensor = conv2d_weight(x, size, error, *settings)  # type: ignore[no-untyped-call]
        return float(pairs.double().sum())
    return float((error.T @ x).double().sum())
