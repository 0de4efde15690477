"""Interval bounds on every potential and spike of a small deterministic network (S-IBP)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.errors import ContractError
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import find_neurons
from robustspike.bench.snn.neurons import reset
from robustspike.bench.victim.module import ModuleVictim

SLACK = 1e-5
"""Widening of every potential's interval, and least margin of a certificate: covers float32 rounding of
values of order one."""


@dataclass
class Interval:
    """Elementwise bounds."""

    low: Tensor
    high: Tensor

    def through(self, centre: Callable[[Tensor], Tensor], radius: Callable[[Tensor], Tensor]) -> Interval:
        """Map by an affine layer, given its action on centres and on radii."""
        middle, half = centre((self.low + self.high) / 2), radius((self.high - self.low) / 2)
        return Interval(middle - half, middle + half)


def lower_margins(victim: ModuleVictim, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    """Return lower bounds on z_y - z_k over the L-inf ball within the domain, +inf at k = y: [N, K]."""
    features, head = bounds_before_head(victim, x, eps=eps)
    weight, bias = head.weight, head.bias
    mean = Interval(features.low.mean(dim=0), features.high.mean(dim=0))
    rows = weight[y][:, None, :] - weight[None]  # C_y W, [N, K, F]
    centre, half = (mean.low + mean.high) / 2, (mean.high - mean.low) / 2
    margins = torch.einsum("nkf,nf->nk", rows, centre) - torch.einsum("nkf,nf->nk", rows.abs(), half)
    if bias is not None:
        margins = margins + bias[y][:, None] - bias[None]
    return margins.scatter(1, y[:, None], torch.inf)


def bounds_before_head(victim: ModuleVictim, x: Tensor, *, eps: float) -> tuple[Interval, nn.Linear]:
    """Return bounds [T, N, F] on the read-out's inputs over the ball, and the read-out in float64.

    Raises: ContractError: the reason why there are none for this network.
    """
    body, steps = getattr(victim.module, "body", None), getattr(victim.module, "steps", 0)
    if not isinstance(body, nn.Sequential) or victim.spec.stochastic or not steps:
        raise ContractError("it is not a deterministic, directly coded sequence of layers such as a lif_cnn")
    network = copy.deepcopy(body).double().eval()
    reset(network)
    neurons = {id(neuron.module): neuron for neuron in find_neurons(network)}
    low, high = victim.spec.bounds
    point = x.double().unsqueeze(0).expand(steps, *x.shape)
    interval = Interval((point - eps).clamp(low, high), (point + eps).clamp(low, high))
    layers = list(network)
    head = layers.pop()
    if not isinstance(head, nn.Linear):
        raise ContractError("it does not end in a linear read-out")
    for layer in layers:
        interval = _layer_bounds(layer, interval, neurons.get(id(layer)))
    return interval, head


def _layer_bounds(layer: nn.Module, given: Interval, neuron: Neuron | None) -> Interval:
    if neuron is not None:
        # A parameter (PLIF's w) or another submodule (a defense's gate or scale) changes the neuron.
        if [*layer.children()] != [layer.surrogate_function] or [*layer.parameters()]:
            raise ContractError("its neurons are not plain LIF or IF nodes")
        return _neuron_bounds(neuron, given)
    if isinstance(layer, nn.Conv2d):

        def spread(r: Tensor) -> Tensor:
            out = functional.conv2d(
                r.flatten(0, 1),
                layer.weight.abs(),
                None,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
            return out.unflatten(0, r.shape[:2])

        return given.through(layer, spread)
    if isinstance(layer, nn.Linear):
        return given.through(layer, lambda r: functional.linear(r, layer.weight.abs()))
    if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
        scale = (layer.weight / (layer.running_var + layer.eps).sqrt()).abs()[:, None, None]
        return given.through(layer, lambda r: r * scale)
    if isinstance(layer, nn.AvgPool2d | nn.Flatten | nn.Identity):
        return Interval(layer(given.low), layer(given.high))
    raise ContractError(f"no interval bounds are known for its {type(layer).__name__}")


def _neuron_bounds(neuron: Neuron, current: Interval) -> Interval:
    """Bound the spikes of one layer given bounds on its input current: [T, N, ...] of 0 and 1."""
    threshold, leak, gain = neuron.threshold, neuron.leak, neuron.gain
    to: float | None = neuron.module.v_reset  # type: ignore[assignment]
    rest = 0.0 if to is None else float(to)
    v = Interval(torch.full_like(current.low[0], rest), torch.full_like(current.low[0], rest))
    drift = (1 - leak) * rest  # SpikingJelly decays towards the reset potential
    lows, highs = [], []
    for t in range(len(current.low)):
        u_low = leak * v.low + gain * current.low[t] + drift - SLACK
        u_high = leak * v.high + gain * current.high[t] + drift + SLACK
        surely, maybe = u_low >= threshold, u_high >= threshold
        lows.append(surely.to(u_low.dtype))
        highs.append(maybe.to(u_low.dtype))
        if to is None:  # silent keeps u (below the threshold), firing subtracts the threshold
            fired_low, fired_high = (u_low - threshold).clamp(min=0.0), u_high - threshold
            fired_low = torch.where(surely, u_low - threshold, fired_low)
        else:
            fired_low = fired_high = torch.full_like(u_low, rest)
        silent_high = u_high.clamp(max=threshold)
        open_low, open_high = torch.minimum(u_low, fired_low), torch.maximum(silent_high, fired_high)
        v = Interval(
            torch.where(surely, fired_low, torch.where(maybe, open_low, u_low)),
            torch.where(surely, fired_high, torch.where(maybe, open_high, u_high)),
        )
    return Interval(torch.stack(lows), torch.stack(highs))
