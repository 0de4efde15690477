"""Chains of layers found in networks of other people's shapes, and what is no chain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch import nn

from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import adapt
from robustspike.bench.api import generator
from robustspike.bench.api import wrap
from robustspike.bench.snn.flips import FlipEngine
from robustspike.bench.snn.layers import chain

SHAPE = (4, 2, 8, 8)
TIME = {"step_mode": "m"}


def features() -> nn.Sequential:
    return nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False, **TIME),
        layer.BatchNorm2d(6, **TIME),
        neuron.LIFNode(**TIME),
        layer.AvgPool2d(2, **TIME),
        layer.Conv2d(6, 4, 3, padding=1, **TIME),
        neuron.IFNode(**TIME),
    )


class BatchFirst(nn.Module):
    """As published code is written: time is swapped to the front, and averaged at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.drop, self.classifier = features(), layer.Dropout(0.5, **TIME), nn.Linear(64, 4)
        self.seen: object = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        x = self.features(x.transpose(0, 1).contiguous())
        return self.classifier(self.drop(torch.flatten(x, 2))).mean(0)


class TimeFirst(nn.Module):
    """Stateless layers in a container, permuted by the caller; every step is answered."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layer.SeqToANNContainer(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.fire = neuron.LIFNode(**TIME)
        self.pool = layer.SeqToANNContainer(nn.AdaptiveAvgPool2d(2))
        self.read = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.pool(self.fire(self.conv(x))).flatten(2))


def with_forward(forward: Callable[[BatchFirst, Tensor], Tensor]) -> nn.Module:
    made = type("Other", (BatchFirst,), {"forward": forward})()
    assert isinstance(made, nn.Module)
    return made


def agreement(victim: ModuleVictim) -> float:
    """Return the share of all single flips that patches answer as whole passes do."""
    x = (torch.rand((2, *SHAPE), generator=generator("x")) < 0.3).float()
    cells = x[0].numel()
    owner, index = torch.arange(2).repeat_interleave(cells), torch.arange(cells).repeat(2)
    with torch.no_grad():
        found, expected = (
            victim.flip_logits(x, owner, index),
            victim.logits(victim.flipped(x, owner, index)),
        )
    assert float((expected - victim.logits(x)[owner]).abs().amax(dim=1).gt(1e-6).double().mean()) > 0.05
    return float(((found - expected).abs().amax(dim=1) < 1e-4).double().mean())


def victim_of(kind: type[nn.Module], how: str) -> ModuleVictim:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = kind()
        for node in net.modules():
            if isinstance(node, neuron.LIFNode | neuron.IFNode):
                node.v_threshold = 0.15
    settings = {"name": "n", "shape": SHAPE, "classes": 4, "domain": Domain.SPIKES}
    if how == "wrap":
        return wrap(net, steps=4, **settings)
    return adapt(net, time=how, **settings)


@pytest.mark.parametrize(
    ("kind", "how"), [(BatchFirst, "wrap"), (BatchFirst, "inside"), (TimeFirst, "time-first")]
)
def test_flips_of_networks_without_a_declared_body_are_answered_by_patches(
    kind: type[nn.Module], how: str
) -> None:
    victim = victim_of(kind, how)
    assert FlipEngine.of(victim.module, SHAPE) is not None
    assert agreement(victim) > 0.98


def test_tracing_leaves_a_network_as_it_was() -> None:
    net = BatchFirst().eval()
    found = chain(net)
    assert found is not None
    assert [type(part).__name__ for part in found][-3:] == ["Flatten", "Dropout", "Linear"]
    assert net.seen is None and found[0] is net.features[0]
    net.train()
    assert chain(net) is not None and net.training and net.features[1].training


def residual(self: BatchFirst, x: Tensor) -> Tensor:
    h = self.features[:3](x.transpose(0, 1))
    return self.classifier((h + self.features[2](h))[:, :, :4, :4, :4].flatten(2)).mean(0)


def rates(self: BatchFirst, x: Tensor) -> Tensor:
    return self.classifier(self.features(x.mean(1, keepdim=True).transpose(0, 1)).flatten(2)).mean(0)


def last_step(self: BatchFirst, x: Tensor) -> Tensor:
    return self.classifier(self.features(x.transpose(0, 1)).flatten(2))[-1]


def scaled(self: BatchFirst, x: Tensor) -> Tensor:
    return self.classifier(self.features(2 * x.transpose(0, 1)).flatten(2)).mean(0)


def over_batch(self: BatchFirst, x: Tensor) -> Tensor:
    return self.classifier(self.features(x.transpose(0, 1)).flatten(2)).mean(1)


def on_values(self: BatchFirst, x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = x.clone()
    return self.classifier(self.features(x.transpose(0, 1)).flatten(2)).mean(0)


def twice(self: BatchFirst, x: Tensor) -> Tensor:
    return self.classifier(self.features[5](self.features(x.transpose(0, 1))).flatten(2)).mean(0)


def batch_first_layers(self: BatchFirst, x: Tensor) -> Tensor:
    return self.classifier(self.features(x).flatten(2)).mean(0)


def sums(self: BatchFirst, x: Tensor) -> Tensor:
    return self.classifier(self.features(x.transpose(0, 1)).flatten(2)).sum(0)


@pytest.mark.parametrize(
    "forward",
    [residual, rates, last_step, scaled, over_batch, on_values, twice, batch_first_layers, sums],
)
def test_what_is_no_chain_is_left_to_whole_passes(forward: Callable[[BatchFirst, Tensor], Tensor]) -> None:
    net = with_forward(forward).eval()
    assert chain(net) is None
    assert FlipEngine.of(net, SHAPE) is None
