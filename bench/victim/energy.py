"""Synaptic operations and energy, of an answer and of a training step.

Counted per sample, as if it were alone on the hardware: for every convolution and linear layer, the
pairs of an arriving event and a non-zero weight it meets, over all time steps. An event that is a spike
costs an addition (AC), a real value a multiplication and an addition (MAC). Biases, BatchNorm, pooling,
membrane updates and memory traffic are not counted.

Which is which is decided by where the input comes from, not by its values: a layer that runs before any
spiking neuron (or spike encoder) of the network is analog, a later one is fed by spikes. Average pooling
and thresholds scale spikes, which is undone before they are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import nullcontext
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import Domain
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.neurons import find_neurons
from robustspike.bench.victim.module import TURN
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.sites import Book
from robustspike.bench.victim.sites import Site


@dataclass(frozen=True)
class EnergyCost:
    """Energy of one operation, and how the first layer is billed.

    Args:
        mac_pj: picojoules of a multiplication and addition; 32-bit floating point at 45 nm.
        ac_pj: picojoules of an addition.
        first_layer: "per_step": analog layers are computed at each time step. "once": an analog layer
            whose input is the same at every step is computed once and its result reused.
        inputs: of analog layers, "nonzero": an input that is zero costs nothing. "dense": every input meets
            every weight, as multiplications of an ANN are usually counted.
    Source: Horowitz, ISSCC 2014, as used by TET (arXiv:2202.11946) and most SNN papers. Differs: none.
    """

    mac_pj: float = 4.6
    ac_pj: float = 0.9
    first_layer: str = "per_step"
    inputs: str = "nonzero"

    def __post_init__(self) -> None:
        known = self.first_layer in ("per_step", "once") and self.inputs in ("nonzero", "dense")
        if not known or self.mac_pj < 0 or self.ac_pj < 0:
            raise ConfigError(
                "energy: first_layer must be 'per_step' or 'once', inputs 'nonzero' or 'dense', and costs 0 "
                f"or more, got '{self.first_layer}', '{self.inputs}', {self.mac_pj} and {self.ac_pj}."
            )


USUAL = EnergyCost()
"""The default convention."""

CONVENTIONS = {
    "clean": USUAL,
    "once": EnergyCost(first_layer="once"),
    "dense": EnergyCost(inputs="dense"),
    "dense_once": EnergyCost(first_layer="once", inputs="dense"),
}
"""The ways to bill a clean answer that a record keeps, by the name of its count there."""


@dataclass(frozen=True)
class SynapticCounts:
    """Operations of a batch: one float64 number per sample.

    Args:
        ac, mac: additions on spikes; multiplications on real values, every time step counted.
        mac_once: the same with analog layers billed once.
        mac_dense, mac_dense_once: the same two with every input and weight of analog layers billed.
        dense: operations if every input and every weight were non-zero.
        spikes: spikes emitted by all neurons.
        neurons: neurons of the network.
        steps: the victim's time steps (1 for a network without time).
        rates: mean spikes per neuron and step, by layer.
    """

    ac: Tensor
    mac: Tensor
    mac_once: Tensor
    mac_dense: Tensor
    mac_dense_once: Tensor
    dense: Tensor
    spikes: Tensor
    neurons: int
    steps: int
    rates: dict[str, float] = field(default_factory=dict)

    def energy_nj(self, cost: EnergyCost | None = None) -> Tensor:
        """Return the energy of each sample in nanojoules."""
        cost = EnergyCost() if cost is None else cost
        name = "mac" + "_dense" * (cost.inputs == "dense") + "_once" * (cost.first_layer == "once")
        mac: Tensor = getattr(self, name)
        return (cost.ac_pj * self.ac + cost.mac_pj * mac) / 1000

    def summary(self, cost: EnergyCost | None = None) -> dict[str, float]:
        """Return means per sample, ready for a record or a certificate."""
        cost = EnergyCost() if cost is None else cost
        places = max(1, self.neurons * self.steps)
        return {
            "ac": float(self.ac.mean()),
            "mac": float(self.mac.mean()),
            "mac_once": float(self.mac_once.mean()),
            "mac_dense": float(self.mac_dense.mean()),
            "mac_dense_once": float(self.mac_dense_once.mean()),
            "dense": float(self.dense.mean()),
            "spikes": float(self.spikes.mean()),
            "rate": float(self.spikes.mean()) / places,
            "energy_nj": float(self.energy_nj(cost).mean()),
            "mac_pj": cost.mac_pj,
            "ac_pj": cost.ac_pj,
        }


def count_synops(
    victim: ModuleVictim, x: Tensor, *, noise: RowStreams | None = None, batch: int = 250
) -> SynapticCounts:
    """Count the operations of a victim's answers, on clean or on adversarial inputs.

    Args:
        victim: the victim. Layers are its `nn.Conv2d` and `nn.Linear` modules that run, and modules
            with `synaptic_operations(inputs) -> [N]`. A module with `emits_spikes` makes what runs
            after it spike-fed; a layer with `input_kind` ("spikes", "times" or "analog") says itself.
            A layer on spike times meets the spikes that the module before it with
            `spikes_of(out) -> [N, ...]` fired, each of them, added up by `pooled_spikes(counts)` of the
            modules between; the first one meets an input that is not zero.
        x: inputs [N, *shape].
        noise: streams for a stochastic victim, one row per sample.
        batch: samples per pass, or as many as the victim answers at once where that is less.

    Cost: 1 forward per sample, and some arithmetic on the input of each layer.
    """
    parts = []
    passes = victim.passes(min(len(x), batch), gradient=False)
    batch = passes[0].stop if passes else batch
    for rows in torch.split(torch.arange(len(x), device=x.device), batch):
        streams = None if noise is None else noise.fork("energy", rows=rows)
        counter = _Counter(victim, len(rows))
        with TURN, counter.listening(), torch.no_grad():  # a pass of another thread is not counted
            victim.logits(x[rows].to(victim.device), noise=streams)
        parts.append(counter)
    totals = {name: torch.cat([part.totals[name] for part in parts]) for name in _Counter.NAMES}
    neurons = parts[0].neurons
    steps = max(1, victim.spec.steps)
    rates = {
        name: sum(part.emitted[name] for part in parts) / (len(x) * size * steps)
        for name, size in neurons.items()
    }
    return SynapticCounts(**totals, neurons=sum(neurons.values()), steps=steps, rates=rates)


def layer_operations(layer: nn.Module, x: Tensor, *, dense: bool = False) -> Tensor:
    """Return, per leading index of x, the sum of x over every non-zero weight that it meets.

    With x the events that arrive at a layer, this is the number of its operations.

    Args:
        layer: an `nn.Conv2d` or `nn.Linear`; one with `integers()` uses those weights.
        x: whole numbers, [L, C, H, W] for a convolution, [L, ..., features] for a linear layer.
        dense: take every weight as non-zero.
    Cost: one gradient of the layer on one input, and one product of x.
    """
    return (x * weights_met(layer, x[:1], dense=dense)).flatten(1).sum(dim=1, dtype=torch.float64)


def weights_met(layer: nn.Module, x: Tensor, *, dense: bool = False) -> Tensor:
    """Return how many non-zero weights each element of an input [1, ...] meets: of its shape.

    Args: as `layer_operations`.
    """
    used: Tensor = layer.integers() if hasattr(layer, "integers") else layer.weight  # type: ignore[assignment, operator]
    weight = torch.ones_like(used, dtype=x.dtype) if dense else (used.detach() != 0).to(x.dtype)
    if not isinstance(layer, nn.Conv2d):
        return weight.sum(dim=0).expand_as(x)
    with torch.enable_grad():
        probe = torch.zeros_like(x, requires_grad=True)
        met = nn.functional.conv2d(
            probe, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        (found,) = torch.autograd.grad(met.sum(), probe)
    return found


def spike_counts(x: Tensor) -> Tensor:
    """Return how many spikes each element of a layer's input stands for.

    Thresholds and average pooling scale spikes, so the elements are multiples of one value, or of one
    value per channel where each channel has its own threshold. That value is taken to be the smallest
    that occurs; on very few samples it may not occur, and the counts are then too low.

    Shape: x [L, channels, ...]; returns the same.
    """
    size = x.abs()
    top = size.max() if size.numel() else size.new_zeros(())
    if bool(((size == top) | (size == 0)).all()):
        return (size > 0).to(x.dtype)
    smallest = torch.where(size > 0, size, torch.inf)
    counts = (size / smallest.min()).nan_to_num_(0.0)
    whole = counts.round()
    if bool(((counts - whole).abs_() <= counts.clamp_(min=1).mul_(1e-3)).all()):
        return whole
    own = smallest.amin(dim=[0, *range(2, x.dim())], keepdim=True)
    return (size / own).nan_to_num(0.0).round()


_SOURCES = ("spikes_of", "pooled_spikes", "emits_spikes")
"""What a module has that says how it makes or passes on spikes."""


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _single(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the input of a layer with time folded into the batch, as `layer_operations` wants it."""
    if isinstance(layer, nn.Conv2d):
        return x.flatten(0, -4)
    return x.flatten(0, -2)


class _Flow:
    """Follows, during a pass, whether what runs now comes after a source of spikes."""

    def __init__(self, module: nn.Module, *, spiking: bool, book: Book | None = None) -> None:
        self.module = module
        self.spiking = spiking
        self.arriving: Tensor | None = None  # spikes on the way between layers that take spike times
        self.nodes = {neuron.module: neuron for neuron in find_neurons(module)}
        self.book = book

    @contextmanager
    def followed(
        self,
        at_layer: Callable[[str, nn.Module, tuple[Any, ...], Any], None],
        at_neurons: Callable[[str, Tensor], None],
    ) -> Iterator[None]:
        """Call back after every layer and after everything that fires, inside the block."""

        def layer_hook(name: str) -> Any:
            return lambda module, inputs, out: at_layer(name, module, inputs, out)

        def source_hook(name: str) -> Any:
            def hook(module: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
                del inputs
                if hasattr(module, "emits_spikes"):
                    self.spiking = bool(module.emits_spikes)
                elif hasattr(module, "pooled_spikes"):
                    if self.arriving is not None:
                        self.arriving = module.pooled_spikes(self.arriving)  # type: ignore[operator]
                elif hasattr(module, "spikes_of"):
                    self.arriving = module.spikes_of(out)  # type: ignore[operator]
                    at_neurons(name, self.arriving[None])  # type: ignore[index]
                else:
                    self.spiking = True
                    out = out.detach()
                    at_neurons(name, out if self.nodes[module].is_multi_step else out[None])

            return hook

        handles = []
        for name, module in self.module.named_modules():
            if hasattr(module, "synaptic_operations") or _is_layer(module):
                handles.append(module.register_forward_hook(layer_hook(name)))
            if module in self.nodes or any(hasattr(module, mark) for mark in _SOURCES):
                handles.append(module.register_forward_hook(source_hook(name)))

        def at_site(name: str, fired: Tensor) -> None:
            self.spiking = True
            at_neurons(name, fired)

        try:
            with nullcontext() if self.book is None else self.book.listening(at_site):
                yield
        finally:
            for handle in handles:
                handle.remove()


class _Counter:
    """Counts one pass of a victim on n samples."""

    NAMES = ("ac", "mac", "mac_once", "mac_dense", "mac_dense_once", "dense", "spikes")

    def __init__(self, victim: ModuleVictim, n: int) -> None:
        self.n = n
        book = next((neuron.book for neuron in victim.neurons if isinstance(neuron, Site)), None)
        self.flow = _Flow(victim.module, spiking=victim.spec.domain is not Domain.STATIC, book=book)
        zeros = torch.zeros(n, dtype=torch.float64, device=victim.device)
        self.totals = {name: zeros.clone() for name in self.NAMES}
        self.analog: dict[str, list[Tensor]] = {}
        self.analog_dense: dict[str, list[Tensor]] = {}
        self.kinds: dict[str, str] = {}
        self.neurons: dict[str, int] = {}
        self.emitted: dict[str, float] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count whatever runs inside the block."""
        with self.flow.followed(self._at_layer, self._at_neurons):
            yield
        for total, layers in (("mac", self.analog), ("mac_dense", self.analog_dense)):
            for steps in layers.values():
                self.totals[total] += torch.stack(steps).sum(dim=0)
                self.totals[f"{total}_once"] += torch.stack(steps).mean(dim=0)

    def _at_layer(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        del out
        if hasattr(layer, "synaptic_operations"):
            self.totals["ac"] += layer.synaptic_operations(*inputs)  # type: ignore[operator]
            self.totals["dense"] += layer.weight.numel()  # type: ignore[operator, union-attr]
            return
        x = _single(layer, inputs[0].detach())
        # Decided at the first call: in a loop over time a first layer runs after neurons, later on.
        here = "spikes" if self.flow.spiking else "analog"
        kind = self.kinds.setdefault(name, getattr(layer, "input_kind", here))
        if kind == "spikes":
            events = spike_counts(x)
        elif kind == "times" and self.flow.arriving is not None:
            events = self._arriving(name, x)
        else:
            events = (x != 0).to(x.dtype)
        counts = layer_operations(layer, events).view(-1, self.n)
        dense = weights_met(layer, x[:1], dense=True).sum(dtype=torch.float64)[None]
        self.totals["dense"] += dense * len(counts)
        if kind == "analog":
            self.analog.setdefault(name, []).extend(counts)
            self.analog_dense.setdefault(name, []).extend(dense.expand(len(counts), self.n))
        else:
            self.totals["ac"] += counts.sum(dim=0)

    def _arriving(self, name: str, x: Tensor) -> Tensor:
        """Return how many spikes each element of a layer's input of spike times stands for."""
        arriving = self.flow.arriving
        assert arriving is not None
        if arriving.numel() != x.numel():
            raise ContractError(
                f"energy: layer '{name}' takes {x[0].numel()} spike times a sample, and "
                f"{arriving.numel() // len(x)} spikes are on the way. Give the module between them "
                "pooled_spikes(counts) -> counts."
            )
        return arriving.to(x.dtype).reshape(x.shape)

    def _at_neurons(self, name: str, fired: Tensor) -> None:
        """Take in what a layer of neurons emitted: [T, N, ...], or [T, T' N, ...] with time folded in."""
        counts = fired.flatten(2).sum(dim=2, dtype=torch.float64) if fired.dim() > 2 else fired.double()
        per_sample = counts.flatten().view(-1, self.n).sum(dim=0)
        self.neurons[name] = fired[0, 0].numel()
        self.totals["spikes"] += per_sample
        self.emitted[name] = self.emitted.get(name, 0.0) + float(per_sample.sum())
