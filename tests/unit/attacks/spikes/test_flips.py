"""Single flips answered by patches: equal to whole passes, on toy and shipped victims."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch import nn

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.snn.flips import FlipEngine
from robustspike.bench.snn.flips import _spikes


def some_flips(x: Tensor, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = generator("flips", seed)
    owner = torch.randint(len(x), (n,), generator=rng)
    return owner, torch.randint(x[0].numel(), (n,), generator=rng)


def whole(victim: ModuleVictim, x: Tensor, owner: Tensor, index: Tensor) -> Tensor:
    with torch.no_grad():
        return victim.logits(victim.flipped(x, owner, index))


@pytest.mark.parametrize("shape", [(8, 2, 8, 8), (4, 1, 9, 11), (2, 3, 4, 6)])
def test_patches_equal_whole_passes_bit_for_bit_in_exact_arithmetic(toys, grid, shape) -> None:
    victim = toys.spiking(shape, seed=2)
    x = grid(5, shape)
    assert FlipEngine.of(victim.module, shape) is not None
    everything = torch.arange(x[0].numel())
    owner = torch.arange(5).repeat_interleave(len(everything))
    index = everything.repeat(5)
    expected = whole(victim, x, owner, index)
    assert torch.equal(victim.flip_logits(x, owner, index), expected)
    assert float((expected != victim.logits(x)[owner]).any(dim=1).double().mean()) > 0.2


@pytest.mark.parametrize("name", ["lif_cnn.digits_events", "plif_cnn.digits_events"])
def test_patches_agree_on_shipped_victims(grid, name) -> None:
    victim = load_victim(name)
    x = grid(4, victim.spec.shape, dtype=torch.float32)
    owner, index = some_flips(x, 200)
    assert FlipEngine.of(victim.module, victim.spec.shape) is not None
    change = (victim.flip_logits(x, owner, index) - whole(victim, x, owner, index)).abs().amax(dim=1)
    # Rounding moves a spike now and then; nearly all answers are equal up to float32 rounding.
    assert float((change < 1e-4).double().mean()) >= 0.98


def test_few_flips_and_no_flips_take_the_whole_pass(toys, grid) -> None:
    victim = toys.spiking(seed=1)
    x = grid(4, victim.spec.shape)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert victim.flip_logits(x, nothing, nothing).shape == (0, 4)
    owner, index = some_flips(x, 3)
    assert torch.equal(victim.flip_logits(x, owner, index), whole(victim, x, owner, index))


def test_state_of_the_victim_is_left_clean(toys, grid) -> None:
    victim = toys.spiking(seed=1)
    x = grid(2, victim.spec.shape)
    before = victim.logits(x)
    victim.flip_logits(x, *some_flips(x, 50))
    assert torch.equal(victim.logits(x), before)
    assert not any(n.module.store_v_seq for n in victim.neurons)


class Strided(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.time_mean_body = body


def test_other_structures_are_left_to_whole_passes(toys) -> None:
    body = toys.spiking().module.body
    assert FlipEngine.of(Strided(body).eval(), (8, 2, 8, 8)) is not None
    assert FlipEngine.of(Strided(body).train(), (8, 2, 8, 8)) is None
    assert FlipEngine.of(nn.Identity().eval(), (8, 2, 8, 8)) is None
    shuffled = nn.Sequential(*list(body)[1:]).eval()
    assert FlipEngine.of(Strided(shuffled).eval(), (8, 2, 8, 8)) is None
    hooked = toys.spiking().module
    hooked.body[1].register_forward_hook(lambda *_: None)
    assert FlipEngine.of(hooked, (8, 2, 8, 8)) is None


class Doubling(layer.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class SignFlipping(layer.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


@pytest.mark.parametrize(("at", "kind"), [(3, Doubling), (-1, SignFlipping)])
def test_layers_that_redefine_their_forward_are_left_to_whole_passes(toys, grid, at, kind) -> None:
    victim = toys.spiking(seed=2)
    victim.module.body[at].__class__ = kind
    x = grid(3, victim.spec.shape)
    owner, index = some_flips(x, 60)
    assert torch.equal(victim.flip_logits(x, owner, index), whole(victim, x, owner, index))


def test_a_victim_that_sees_rates_declares_no_body() -> None:
    victim = load_victim("rate_only.digits_events")
    assert FlipEngine.of(victim.module, victim.spec.shape) is None


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_leaky_nodes_run_in_place_give_the_bits_of_the_node(decay_input: bool, begun: bool) -> None:
    rng = generator("in place", decay_input)
    fire = neuron.LIFNode(tau=2.3, decay_input=decay_input, step_mode="m", v_threshold=0.7)
    current = torch.randn(5, 4, 6, generator=rng) * 3
    before = torch.randn(4, 6, generator=rng)
    if begun:
        fire.v = before.clone()
    expected = fire(current)
    fire.reset()
    got = _spikes(fire, current.clone(), before.clone() if begun else None)
    assert torch.equal(got, expected) and 0 < int(expected.sum()) < expected.numel()
