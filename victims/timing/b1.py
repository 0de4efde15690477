"""TTFS-B1: one spike per neuron, whose time is the activation of a clipped ReLU network, up to rounding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Dataset
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.victims.layout import CIFAR_TUNING
from robustspike.victims.layout import START_SAMPLES
from robustspike.victims.layout import VGG6
from robustspike.victims.layout import Widths
from robustspike.victims.layout import blocks
from robustspike.victims.layout import flat_features
from robustspike.victims.layout import relu_network


class _Round(torch.autograd.Function):
    """Round to the nearest integer with the derivative of the identity."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


class B1Layer(nn.Module):
    """Neurons that integrate until t_min and fire at t = t_max - [sum_j W_ij (t_min - t_j) + D_i]_+.

    A neuron whose bracket is not positive does not fire and counts as t_max; none fires before t_min.

    Args:
        linear: W, with D as its bias.
        window: t_max - t_min, the length of the firing phase.
        grid: number of time steps of the firing phase; 0 for continuous time.
    """

    window: Tensor

    def __init__(self, linear: nn.Conv2d | nn.Linear, *, window: float, grid: int = 0) -> None:
        super().__init__()
        self.linear = linear
        linear.input_kind = "times"  # type: ignore[assignment]
        self.grid = grid
        self.register_buffer("window", torch.tensor(window))

    def forward(self, times: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return (spike times, end of the firing phase) from input times and the end of theirs."""
        potential = self.linear(start - times)
        early = torch.minimum(potential.relu(), self.window)
        if self.grid:
            steps: Tensor = _Round.apply(early / self.window * self.grid)  # type: ignore[no-untyped-call]
            early = steps * self.window / self.grid
        end = start + self.window
        return end - early, end

    def spikes_of(self, out: tuple[Tensor, Tensor]) -> Tensor:
        """Return which neurons fired, given what `forward` returned."""
        times, end = out
        return times.detach() < end


class PooledTimes(nn.Module):
    """Average pooling of spike times over 2x2 cells; every spike of a cell travels on."""

    def forward(self, times: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(times, 2)

    def pooled_spikes(self, counts: Tensor) -> Tensor:
        """Return how many spikes arrive from each cell, given those of its neurons."""
        return 4 * nn.functional.avg_pool2d(counts.double(), 2)


class B1Net(nn.Module):
    """Convolutions, a pool after each block of them, then linear, on spike times; [N, C, H, W] -> [N, K].

    A pixel x spikes at 1 - x. Average pooling acts on t_min - t, which is linear. The output layer does
    not spike: its potential at t_min is the logit.

    Args:
        layers: the spiking layers.
        out: the read-out.
        pools: for each layer, whether a pool follows; by default after every one.
        input_grid: levels of the input times; 0 for continuous time.
    """

    def __init__(
        self,
        layers: list[B1Layer],
        out: nn.Linear,
        *,
        pools: tuple[bool, ...] = (),
        input_grid: int = 0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.pools = pools or (True,) * len(layers)
        self.out = out
        out.input_kind = "times"  # type: ignore[assignment]
        self.input_grid = input_grid
        self.pool = PooledTimes()

    def times(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (spike times before pooling, end of the phase) of the input and of every spiking layer."""
        times = 1 - x
        if self.input_grid:
            times = _Round.apply(times * self.input_grid) / self.input_grid  # type: ignore[no-untyped-call]
        end = torch.ones((), dtype=x.dtype, device=x.device)
        phases = [(times, end)]
        for layer, pooled in zip(self.layers, (False, *self.pools[:-1]), strict=True):
            times, end = layer(self.pool(times) if pooled else times, end)
            phases.append((times, end))
        return phases

    def forward(self, x: Tensor) -> Tensor:
        times, end = self.times(x)[-1]
        out: Tensor = self.out((end - (self.pool(times) if self.pools[-1] else times)).flatten(1))
        return out

    def fold(self, ann: nn.Module) -> None:
        """Take over a ReLU network of the same shape: BatchNorm folded, equal logits up to rounding.

        The firing phases keep their length; it must hold the largest activation (`fit_windows`).
        """
        convolutions = [m for m in ann.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in ann.modules() if isinstance(m, nn.BatchNorm2d)]
        (last,) = (m for m in ann.modules() if isinstance(m, nn.Linear))
        for layer, convolution, norm in zip(self.layers, convolutions, norms, strict=True):
            folded = nn.utils.fusion.fuse_conv_bn_eval(convolution.eval(), norm.eval())
            layer.linear.load_state_dict(folded.state_dict())  # type: ignore[union-attr]
        self.out.load_state_dict(last.state_dict())


class MappedB1(nn.Module):
    """A trained ReLU network and the B1 network that computes the same logits."""

    def __init__(self, ann: nn.Sequential, timed: B1Net) -> None:
        super().__init__()
        self.ann = ann
        self.timed = timed

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.timed(x)
        return out

    def twin(self, x: Tensor) -> Tensor:
        """Return the logits of the source ANN."""
        out: Tensor = self.ann(x)
        return out


@dataclass(frozen=True, kw_only=True)
class B1Cnn(VictimRecipe):
    """The reference convolutional network on spike times, trained in time.

    Where it `starts` from a trained ReLU network it begins with that network's function.

    Args:
        widths: channels of the convolutions; a tuple among them is a block of several before one pool.
        window: length of the firing phases in training, in units of the input phase.
        margin: after training a phase is this much longer than the largest training activation needs.
        grid: time steps of each firing phase; 0 for continuous time.
    """

    dataset: str = "digits"
    widths: Widths = (16, 32)
    window: float = 16.0
    margin: float = 1.1
    grid: int = 0
    schedule: Schedule = Schedule(lr=2e-2)

    family: ClassVar[str] = "timing"
    deployed: ClassVar[tuple[str, ...]] = ("grid",)
    source: ClassVar[str] = (
        "Stanojevic et al., Nature Communications 15:6793, 2024. Differs: fixed windows in training, cut to "
        "the largest training activation afterwards; average pooling; AdamW one-cycle."
    )

    def __post_init__(self) -> None:
        if not self.window > 0 or self.margin < 1 or self.grid < 0:
            raise ConfigError(
                f"victim '{self.name}': window must be above 0, margin 1 or more, grid 0 or more, got "
                f"{self.window}, {self.margin} and {self.grid}."
            )

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes)

    def network(self) -> B1Net:
        """Build the network without drawing its weights."""
        data = self.data()
        features = flat_features(data.shape, self.widths, name=self.name)
        parts = blocks(self.widths)
        layers = [
            B1Layer(nn.Conv2d(inputs, outputs, 3, padding=1), window=self.window, grid=self.grid)
            for inputs, outputs in itertools.pairwise((data.shape[0], *itertools.chain(*parts)))
        ]
        pools = tuple(place == len(part) for part in parts for place in range(1, len(part) + 1))
        return B1Net(layers, nn.Linear(features, data.classes), pools=pools)

    def build(self, rng: torch.Generator) -> nn.Module:
        net = self.network()
        initialise(net, rng)
        return net

    def start(self, module: nn.Module, source: nn.Module, train: Split) -> None:
        """Fold the ReLU network into the timed one, and make its phases long enough for it."""
        assert isinstance(module, B1Net)
        module.fold(source)
        fit_windows(module, train[:START_SAMPLES], margin=2 * self.margin)

    def finish(self, module: nn.Module, data: Dataset, *, root: Path | None) -> None:
        """Cut each firing phase to what training activations need."""
        assert isinstance(module, B1Net)
        fit_windows(module, data.load("train", root=root), margin=self.margin)

    def notes(self, certificate: Mapping[str, Any]) -> tuple[str, ...]:
        return ("spike times are on a grid: gradients are straight-through",) if self.grid else ()


def fit_windows(net: B1Net, split: Split, *, margin: float) -> None:
    """Set each layer's window to the largest activation on a split times a margin.

    What a layer hands on is how early it fires, its activation, whatever the windows are: one pass of
    the activations finds the largest of every layer.
    """
    device = next(net.parameters()).device
    largest = [1e-3] * len(net.layers)
    with torch.no_grad():
        for x in torch.split(split.x, 500):
            early = x.to(device)
            for index, (layer, pooled) in enumerate(zip(net.layers, net.pools, strict=True)):
                assert isinstance(layer, B1Layer)
                early = layer.linear(early).relu_()
                largest[index] = max(largest[index], float(early.max()))
                if pooled:
                    early = nn.functional.avg_pool2d(early, 2)
    for layer, most in zip(net.layers, largest, strict=True):
        assert isinstance(layer, B1Layer)
        layer.window.fill_(most * margin)


@dataclass(frozen=True, kw_only=True)
class MappedB1Cnn(B1Cnn):
    """The reference ANN trained as such, then mapped to spike times: equal logits up to rounding."""

    schedule: Schedule = Schedule(epochs=25)

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        timed = self.network()
        ann = relu_network(data.shape, data.classes, self.widths, name=self.name)
        net = MappedB1(ann, timed)
        initialise(net, rng)
        return net

    def trainable(self, module: nn.Module) -> nn.Module:
        """Return the ANN."""
        assert isinstance(module, MappedB1)
        return module.ann

    def finish(self, module: nn.Module, data: Dataset, *, root: Path | None) -> None:
        """Fold BatchNorm into the convolutions and copy them into the timed network."""
        assert isinstance(module, MappedB1)
        module.timed.fold(module.ann)
        fit_windows(module.timed, data.load("train", root=root), margin=self.margin)


TTFS_B1_DIGITS = B1Cnn(name="ttfs_b1.digits")
TTFS_B1_MAPPED_DIGITS = MappedB1Cnn(name="ttfs_b1_mapped.digits")
TTFS_B1_MNIST = B1Cnn(
    name="ttfs_b1.mnist", dataset="mnist", widths=(8, 16), schedule=Schedule(epochs=3, batch=128, lr=1e-2)
)
TTFS_B1_CIFAR10 = B1Cnn(
    name="ttfs_b1.cifar10",
    dataset="cifar10",
    widths=VGG6,
    starts="ann_cnn.cifar10",
    schedule=dataclasses.replace(CIFAR_TUNING, epochs=0),
)
