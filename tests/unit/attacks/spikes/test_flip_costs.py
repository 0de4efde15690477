"""When patches answer single flips: the cheaper way by count of work, on nets of several depths."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron
from torch import nn

from robustspike.bench.api import Domain
from robustspike.bench.api import adapt
from robustspike.bench.api import generator
from robustspike.bench.snn import flips
from robustspike.bench.snn.flips import FlipEngine

TIME = {"step_mode": "m"}


def block(inside: int, out: int, *, pool: bool = False, kernel: int = 3) -> list[nn.Module]:
    made = [
        layer.Conv2d(inside, out, kernel, padding=kernel // 2, bias=False, **TIME),
        neuron.LIFNode(**TIME),
    ]
    return [*made, layer.AvgPool2d(2, **TIME)] if pool else made


def net(shape: tuple[int, ...], *blocks: list[nn.Module], features: int) -> nn.Sequential:
    layers = [part for made in blocks for part in made]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = nn.Sequential(*layers, layer.Flatten(**TIME), layer.Linear(features, 4, **TIME))
        for module in made.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return made


def shallow() -> tuple[nn.Sequential, tuple[int, ...]]:
    shape = (4, 2, 16, 16)
    return net(shape, block(2, 8, pool=True), block(8, 8, pool=True), features=8 * 16), shape


def wide() -> tuple[nn.Sequential, tuple[int, ...]]:
    shape = (4, 2, 24, 24)
    return net(shape, block(2, 16), block(16, 16, pool=True), features=16 * 144), shape


def deep() -> tuple[nn.Sequential, tuple[int, ...]]:
    shape = (4, 2, 8, 8)
    return net(shape, *(block(c, 8) for c in (2, 8, 8, 8, 8)), features=8 * 64), shape


def small_map() -> tuple[nn.Sequential, tuple[int, ...]]:
    shape = (4, 2, 4, 4)
    return net(shape, block(2, 8), block(8, 8), block(8, 8), features=8 * 16), shape


def large_kernel() -> tuple[nn.Sequential, tuple[int, ...]]:
    shape = (4, 2, 8, 8)
    return net(shape, block(2, 8, kernel=7), block(8, 8, kernel=7), features=8 * 64), shape


def _adapted(body: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    return adapt(body, name="n", shape=shape, classes=4, time="time-first", domain=Domain.SPIKES).module


class Counted:
    """Counts the multiplications of convolutions and of patches' matrices, and the numbers they make."""

    def __init__(self, monkeypatch) -> None:
        self.work = 0.0
        convolve, spread = flips.functional.conv2d, flips._Base.convolved

        def conv2d(x, weight, *args, **kwargs):
            out = convolve(x, weight, *args, **kwargs)
            self.work += out.numel() * (weight[0].numel() + flips._ELEMENT)
            return out

        def convolved(base, number, patch):
            known = number in base.matrices
            before = self.work
            out = spread(base, number, patch)
            if number in base.matrices:
                if not known:
                    self.work = before  # the matrix is made once, whatever the number of flips
                inside = patch.delta[0, 0].numel()
                self.work += out.delta.numel() * (inside + flips._ELEMENT)
            return out

        monkeypatch.setattr(flips.functional, "conv2d", conv2d)
        monkeypatch.setattr(flips._Base, "convolved", convolved)


@pytest.mark.parametrize(
    "make", [shallow, pytest.param(wide, marks=pytest.mark.slow), deep, small_map, large_kernel]
)
def test_the_cheaper_way_by_counted_work_is_chosen(make, monkeypatch) -> None:
    body, shape = make()
    victim = adapt(body, name="net", shape=shape, classes=4, time="time-first", domain=Domain.SPIKES)
    engine = FlipEngine.of(victim.module, shape)
    assert engine is not None
    x = (torch.rand((2, *shape), generator=generator("x")) < 0.3).float()
    cells = x[0].numel()
    owner = torch.arange(2).repeat_interleave(cells)
    index = torch.arange(cells).repeat(2)
    here = x.flatten(1)[owner, index]
    # All flips live to the end, as the reckoning supposes: dead patches only make patches cheaper.
    monkeypatch.setattr(flips._Patch, "keep", lambda self, chosen: self)
    with torch.no_grad():
        counter = Counted(monkeypatch)
        engine.answer(x, owner, index, 1 - 2 * here)
        patches = counter.work + len(owner) * flips._FLIP
        counter.work = 0.0
        for start in range(0, len(owner), 256):
            part = slice(start, start + 256)
            flips._Base(engine, victim.flipped(x, owner[part], index[part]))
        whole = counter.work
    assert engine.pays(shape, inputs=2, flips=len(owner)) == (patches < whole)


def test_few_flips_of_an_input_are_whole_passes() -> None:
    body, shape = shallow()
    engine = FlipEngine.of(_adapted(body, shape), shape)
    assert engine is not None
    assert not engine.pays(shape, inputs=8, flips=8)
    assert engine.pays(shape, inputs=8, flips=80)


MEASURED = {
    "digits_events": ((4, 2, 16, 16), ((16,), (32,)), 5.0),
    "nmnist": ((8, 2, 34, 34), ((16,), (32,)), 61.3),
    "cifar10_events": ((10, 2, 32, 32), ((16,), (32,), (64,)), 18.0),
    "vggsnn": ((10, 2, 48, 48), ((64, 128), (256, 256), (512, 512), (512, 512)), 3.7),
    "vgg of one pool": ((4, 2, 16, 16), ((16, 16, 16),), 8.5),
}
"""Shape, channels by pool, and how many times faster than a whole pass a flip that lives to the end was by
patches (tests/benchmarks/flip_costs.py, one core)."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_way_that_was_measured_to_be_faster_is_chosen(name: str) -> None:
    shape, widths, ratio = MEASURED[name]
    layers: list[nn.Module] = []
    channels = shape[1]
    with torch.device("meta"):
        for group in widths:
            for place, out in enumerate(group, start=1):
                layers += block(channels, out, pool=place == len(group))
                channels = out
        features = channels * (shape[2] >> len(widths)) ** 2
        layers += [layer.Flatten(**TIME), layer.Linear(features, 10, **TIME)]
    holder = nn.Module()
    holder.time_mean_body = nn.Sequential(*layers)
    engine = FlipEngine.of(holder.eval(), shape)
    assert engine is not None
    whole, patch = engine.work(shape)
    assert 0.5 < whole / patch / ratio < 2
    assert not engine.pays(shape, inputs=8, flips=8)  # every input costs a whole pass first
    for each in (3, 10, 100):
        assert engine.pays(shape, inputs=8, flips=8 * each) == (1 + each / ratio < each)


@pytest.mark.parametrize("size", [1, 2])
def test_adaptive_pooling_and_nested_sequences_with_dropout_are_served(size: int) -> None:
    shape = (4, 2, 8, 8)
    tail = nn.Sequential(layer.AdaptiveAvgPool2d(size, **TIME), layer.Flatten(**TIME))
    body = nn.Sequential(nn.Sequential(*block(2, 8)), layer.Dropout(0.5, **TIME), tail)
    body.append(layer.Linear(8 * size * size, 4, **TIME))
    victim = adapt(body, name="n", shape=shape, classes=4, time="time-first", domain=Domain.SPIKES)
    assert FlipEngine.of(victim.module, shape) is not None
    x = (torch.rand((2, *shape), generator=generator("x")) < 0.3).float()
    owner, index = torch.arange(2).repeat_interleave(60), torch.arange(120) * 4
    with torch.no_grad():
        found = victim.flip_logits(x, owner, index)
        expected = victim.logits(victim.flipped(x, owner, index))
    assert float(((found - expected).abs().amax(dim=1) < 1e-4).float().mean()) > 0.95


class Residual(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def test_residual_connections_are_left_to_whole_passes() -> None:
    shape = (4, 2, 8, 8)
    body = nn.Sequential(
        *block(2, 4), Residual(*block(4, 4)), layer.Flatten(**TIME), layer.Linear(256, 4, **TIME)
    )
    victim = adapt(body, name="n", shape=shape, classes=4, time="time-first", domain=Domain.SPIKES)
    assert FlipEngine.of(victim.module, shape) is None
