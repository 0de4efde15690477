"""Activations that are a formula in the ANN and an integrate-and-fire neuron in the SNN.

A converted network is an ANN with such activations. In spiking mode the neuron works in units of its
scale lambda: threshold 1, soft reset, initial potential `initial` (plus a calibrated shift per neuron),
and its spikes are multiplied by lambda. Time is folded into the batch, time outermost: [T*N, ...].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Split


class _Floor(torch.autograd.Function):
    """Floor with the derivative of the identity (straight-through)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.floor()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


def floor_through(x: Tensor) -> Tensor:
    """Round down; the gradient passes unchanged."""
    out: Tensor = _Floor.apply(x)  # type: ignore[no-untyped-call]
    return out


class SpikingActivation(nn.Module):
    """Base of the activations of converted networks.

    Args:
        scale: initial lambda: the largest value, and the threshold of the neuron.
        initial: potential before the first step, in thresholds.
    """

    def __init__(self, scale: float, initial: float = 0.5) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron
        from spikingjelly.activation_based import surrogate

        self.scale = nn.Parameter(torch.tensor(scale))
        self.initial = initial
        self.neuron = neuron.IFNode(
            v_reset=None, surrogate_function=surrogate.ATan(), step_mode="m", detach_reset=True
        )
        self.steps = 0
        self.recording = False
        self.recorded: Tensor | None = None

    def activate(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return the ANN's activation of x, between 0 and the scale."""
        raise TypeError(f"{type(self).__name__} does not define activate(x, scale).")

    def potential(self, like: Tensor) -> float | Tensor:
        """Return the potential before the first step; `like` is one step of input [N, ...]."""
        del like
        return self.initial

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.abs()
        if not self.steps:
            out = self.activate(x, scale)
            self._keep(out)
            return out
        sequence = (x / scale).unflatten(0, (self.steps, -1))  # type: ignore[no-untyped-call]
        self.neuron.reset()
        self.neuron.v = self.potential(sequence[0])
        spikes: Tensor = self.neuron(sequence)
        self.neuron.reset()
        self._keep(spikes.mean(dim=0) * scale)
        return (spikes * scale).flatten(0, 1)

    def _keep(self, value: Tensor) -> None:
        self.recorded = value.detach() if self.recording else None


class ConvertedNet(nn.Module):
    """The spiking view of an ANN built with `SpikingActivation`s: constant input, mean output over T."""

    def __init__(self, ann: nn.Module, steps: int) -> None:
        super().__init__()
        self.ann = ann
        self.steps = steps

    @property
    def nodes(self) -> list[SpikingActivation]:
        """The activations, in forward order."""
        return [m for m in self.ann.modules() if isinstance(m, SpikingActivation)]

    def sequence(self, x: Tensor, steps: int | None = None) -> Tensor:
        """Return the logits of every time step [T, N, K], T = `steps` or the network's own."""
        steps = self.steps if steps is None else steps
        for node in self.nodes:
            node.steps = steps
        try:
            out: Tensor = self.ann(x.unsqueeze(0).expand(steps, *x.shape).flatten(0, 1))
        finally:
            for node in self.nodes:
                node.steps = 0
        unfolded: Tensor = out.unflatten(0, (steps, -1))  # type: ignore[no-untyped-call]
        return unfolded

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x).mean(dim=0)

    def twin(self, x: Tensor) -> Tensor:
        """Return the logits of the source ANN, which share their weights: a smooth path to attack."""
        out: Tensor = self.ann(x)
        return out


@contextmanager
def recording(nodes: list[SpikingActivation]) -> Iterator[None]:
    """Keep each node's last activation (ANN) or mean output (SNN) in `recorded` during the block."""
    for node in nodes:
        node.recording = True
    try:
        yield
    finally:
        for node in nodes:
            node.recording = False
            node.recorded = None


def activations(net: ConvertedNet, x: Tensor, *, spiking: bool) -> list[Tensor]:
    """Return every node's activation of a batch in the ANN, or its mean output in the SNN."""
    nodes = net.nodes
    with torch.no_grad(), recording(nodes):
        _ = net(x) if spiking else net.twin(x)
        return [node.recorded for node in nodes if node.recorded is not None]


def latency_curve(
    net: nn.Module, split: Split, *, steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32), batch: int = 250
) -> dict[int, int]:
    """Count correct answers after each number of time steps: what a converted network pays for speed.

    One pass of max(steps) gives all counts, because the network after t steps is the prefix of the
    network after more.

    Args:
        net: a network in evaluation mode with `sequence(x, steps) -> [T, N, K]`.
        split: samples with labels.
        steps: the numbers of steps T to report.
    Returns: T -> number correct, of len(split).
    """
    right = dict.fromkeys(steps, 0)
    device = next(net.parameters()).device
    with torch.no_grad():
        for start in range(0, len(split), batch):
            part = split[start : start + batch]
            sums = net.sequence(part.x.to(device), max(steps)).cumsum(dim=0)  # type: ignore[operator]
            for t in steps:
                right[t] += int((sums[t - 1].argmax(dim=1).cpu() == part.y).sum())
    return right
