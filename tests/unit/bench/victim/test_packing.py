"""A gradient whose graph is packed, or written to a file, is that of an ordinary pass in every bit."""

from __future__ import annotations

from contextlib import AbstractContextManager

import estimator_nets as nets
import pytest
import torch
from torch import Tensor

from robustspike.bench.api import LossGrad
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import registry
from robustspike.bench.victim import module as victim_module
from robustspike.bench.victim import packing
from robustspike.bench.victim.packing import Packed
from robustspike.bench.victim.passes import PASS_BYTES
from robustspike.bench.victim.passes import peak_bytes


def same_bits(a: Tensor, b: Tensor) -> bool:
    whole = {4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[Packed]:
    """Let every sample be too large, keep next to nothing in memory, and note what was kept where."""
    made: list[Packed] = []

    def small(_most: int, known: list[Tensor]) -> AbstractContextManager[Packed]:
        return packing.packed(200, known)

    class Noted(Packed):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(packing, "Packed", Noted)
    monkeypatch.setattr(packing, "LEAST", 0)
    monkeypatch.setattr(victim_module, "packed", small)
    monkeypatch.setattr(victim_module, "NEVER_CUT", 0)
    return made


def gradient(victim: ModuleVictim, name: str, x: Tensor, y: Tensor) -> LossGrad:
    return victim.loss_and_grad(x, y, cross_entropy, registry("estimators").get(name))


@pytest.mark.parametrize("kind", ["lif-hard-decay", "lif-soft", "plif-hard-decay", "if-hard", "own"])
@pytest.mark.parametrize("step_mode", ["m", "s"])
@pytest.mark.parametrize("double", [False, True])
def test_gradients_are_those_of_an_ordinary_pass(
    kind: str, step_mode: str, double: bool, stores: list[Packed]
) -> None:
    x, y = nets.inputs(1, double=double)  # one sample is a pass
    ordinary, large = (nets.victim(kind, double=double, step_mode=step_mode) for _ in range(2))
    ordinary.__dict__["sample_bytes"] = {False: 1, True: 1}
    large.__dict__["sample_bytes"] = {False: PASS_BYTES, True: PASS_BYTES + 1}
    for name in ["native", "atan(alpha=5)", "pdsg", "assg"] + ["hart", "rga"] * (step_mode == "m"):
        expected = gradient(ordinary, name, x, y)
        assert not stores and bool((expected.grad != 0).any())
        for one, other in zip(gradient(large, name, x, y), expected, strict=True):
            assert same_bits(one, other)
        assert sum(store.held for store in stores)
        assert sum(store.written for store in stores) or name != "native"  # some rules save no currents
        stores.clear()


def test_spikes_take_a_bit_and_everything_comes_back_as_it_was() -> None:
    rng = torch.Generator().manual_seed(0)
    spikes = (torch.rand(4, 3, 64, 64, generator=rng) < 0.1).float()
    scaled, currents = spikes.double() * 0.3, torch.randn(2, 3, 64, 64, generator=rng)
    nasty = torch.full((1 << 15,), torch.nan)
    nasty[::2], nasty[1::4] = -0.0, torch.inf
    weight = torch.randn(1 << 16, generator=rng)
    with packing.packed(currents.numel() * 4 + 40_000, [weight]) as store:
        gives = [store.pack(t) for t in (spikes, scaled, currents, currents.neg(), nasty)]
        assert store.held == 2 * spikes.numel() // 8 + currents.numel() * 4
        assert store.written == 4 * (currents.numel() + nasty.numel())
        assert store.pack(weight)() is weight
        for give, tensor in zip(gives, (spikes, scaled, currents, currents.neg(), nasty), strict=True):
            assert same_bits(give(), tensor) and give().shape == tensor.shape
        turned = currents.transpose(1, 3)
        assert store.pack(turned)() is turned  # another layout in memory could round otherwise


def test_counting_what_a_sample_takes_ends_where_it_is_too_much() -> None:
    calls = []

    def greedy() -> None:
        held = []
        for _ in range(1000):
            calls.append(held.append(torch.ones(1000)))

    assert 40_000 < peak_bytes(greedy, most=40_000) <= 44_000
    assert len(calls) == 10
