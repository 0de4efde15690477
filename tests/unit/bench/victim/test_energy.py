"""Counting synaptic operations: against brute force, against the table, and in training."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import EnergyCost
from robustspike.bench.api import RowStreams
from robustspike.bench.api import count_synops
from robustspike.bench.api import generator
from robustspike.bench.api import initialise
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.victim.energy import layer_operations
from robustspike.bench.victim.energy import spike_counts
from robustspike.bench.victim.training_energy import training_operations

TEST = registry("datasets").get("digits").load("test")


def sparse(*shape: int, share: float = 0.4) -> torch.Tensor:
    rng = generator("sparse", shape)
    return torch.randn(shape, generator=rng) * (torch.rand(shape, generator=rng) < share)


def pairs(layer: nn.Conv2d, x: torch.Tensor) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Every (sample, input position, output position) that a weight of the layer joins, by loops."""
    found = []
    n, channels, height, width = x.shape
    with torch.no_grad():
        _, outputs, rows, columns = layer(x).shape
    k, s, p = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    per_group = outputs // layer.groups
    for row in range(n):
        for o, i, j in itertools.product(range(outputs), range(rows), range(columns)):
            first = o // per_group * (channels // layer.groups)
            for c, a, b in itertools.product(range(channels // layer.groups), range(k), range(k)):
                y, z = i * s + a - p, j * s + b - p
                if 0 <= y < height and 0 <= z < width and layer.weight[o, c, a, b] != 0:
                    found.append((row, (first + c, y, z), (o, i, j)))
    return found


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 1, 1), (1, 0, 2)])
def test_operations_of_a_convolution_equal_a_count_by_loops(stride: int, padding: int, groups: int) -> None:
    layer = nn.Conv2d(2, 4, 3, stride=stride, padding=padding, groups=groups)
    with torch.no_grad():
        layer.weight.copy_(sparse(*layer.weight.shape, share=0.6))
    x = (sparse(3, 2, 5, 5) != 0).float()
    expected = [0.0] * 3
    for row, (c, y, z), _ in pairs(layer, x):
        expected[row] += float(x[row, c, y, z])
    assert layer_operations(layer, x).tolist() == expected


def test_ann_pays_macs_and_snn_pays_macs_only_in_front() -> None:
    ann = count_synops(load_victim("ann_cnn.digits"), TEST.x[:200]).summary()
    snn = count_synops(load_victim("lif_cnn.digits"), TEST.x[:200]).summary()
    # methods/victims.md, section 8: 46.7 k MAC; 100 k AC + 17.2 k MAC, 169 nJ (per step)
    assert ann["ac"] == 0 and ann["mac"] == pytest.approx(46_700, rel=0.1)
    assert snn["ac"] == pytest.approx(100_000, rel=0.15) and snn["mac"] == pytest.approx(17_200, rel=0.05)
    assert snn["energy_nj"] == pytest.approx(169, rel=0.1)
    assert 0 < snn["rate"] < 0.3 and snn["dense"] == 4 * (16 * 22**2 + 16 * 32 * 10**2 + 128 * 10)


def test_first_layer_is_billed_per_step_or_once() -> None:
    counts = count_synops(load_victim("lif_cnn.digits"), TEST.x[:20])
    assert torch.equal(counts.mac, 4 * counts.mac_once)
    per_step, once = counts.energy_nj(), counts.energy_nj(EnergyCost(first_layer="once"))
    assert torch.allclose(per_step - once, 4.6 * 3 * counts.mac_once / 1000)


def test_counts_of_a_sample_do_not_depend_on_its_batch_mates() -> None:
    victim = load_victim("lif_cnn_soft.digits")
    together = count_synops(victim, TEST.x[:30])
    apart = count_synops(victim, TEST.x[:30], batch=7)
    for name in ("ac", "mac", "dense", "spikes"):
        assert torch.equal(getattr(together, name), getattr(apart, name)), name


@pytest.mark.parametrize("name", ["qcfs_cnn.digits", "lif_cnn.digits"])
def test_scaled_and_pooled_spikes_are_additions(name: str) -> None:
    victim = load_victim(name)
    emitted: list[torch.Tensor] = []
    for neuron in victim.neurons:
        neuron.module.register_forward_hook(lambda m, i, out: emitted.append(out))
    counts = count_synops(victim, TEST.x[:20])
    convolution, linear = [m for m in victim.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)][1:]
    arriving = [4 * nn.functional.avg_pool2d(spikes.flatten(0, 1), 2) for spikes in emitted]
    by_hand = layer_operations(convolution, arriving[0]) + layer_operations(linear, arriving[1].flatten(1))
    assert torch.equal(counts.ac, by_hand.view(4, 20).sum(dim=0))


def test_thresholds_per_channel_do_not_change_what_a_spike_costs() -> None:
    spikes = (sparse(200, 6, 4, 4) != 0).float()
    scaled = nn.functional.avg_pool2d(spikes * torch.linspace(0.3, 1.7, 6)[:, None, None], 2)
    assert torch.equal(spike_counts(scaled), 4 * nn.functional.avg_pool2d(spikes, 2))
    assert torch.equal(spike_counts(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_pruned_weights_cost_nothing() -> None:
    pruned = count_synops(load_victim("admm_pruned_cnn.digits"), TEST.x[:50])
    plain = count_synops(load_victim("lif_cnn.digits"), TEST.x[:50])
    assert float(pruned.ac.sum()) < 0.35 * float(plain.ac.sum())
    assert torch.equal(pruned.dense, plain.dense)


def test_b1_neurons_spike_at_most_once_and_cost_additions_only() -> None:
    counts = count_synops(load_victim("ttfs_b1.digits"), TEST.x[:100])
    assert float(counts.mac.sum()) == 0 and counts.neurons == 1536
    assert all(0.2 < rate <= 1 for rate in counts.rates.values()) and len(counts.rates) == 2


def test_every_spike_of_a_pooled_cell_of_a_b1_network_is_paid() -> None:
    """By loops over cells: four neurons share a place after pooling, and each of their spikes travels on."""
    victim = load_victim("ttfs_b1.digits")
    x = TEST.x[:3]
    net = victim.module
    with torch.no_grad():
        fired = [(times < end).double() for times, end in net.times(x)]  # type: ignore[operator]
    first, second = (layer.linear for layer in net.layers)  # type: ignore[union-attr]
    expected = layer_operations(first, (x != 0).float())
    for spikes, layer in ((fired[1], second), (fired[2], net.out)):
        n, channels, height, width = spikes.shape
        cells = torch.zeros(n, channels, height // 2, width // 2)
        for i, j in itertools.product(range(height), range(width)):
            cells[:, :, i // 2, j // 2] += spikes[:, :, i, j]
        expected = expected + layer_operations(layer, cells if layer is second else cells.flatten(1))
    assert torch.equal(count_synops(victim, x).ac, expected)
    whole = count_synops(victim, TEST.x[:200]).summary()
    assert whole["energy_nj"] == pytest.approx(113.1, abs=0.1)


def test_spikes_that_cannot_arrive_are_an_error_that_says_what_to_do() -> None:
    class Halved(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net
            net.pool = nn.AvgPool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x)
            return out

    net = registry("victims").get("ttfs_b1.digits").build(generator("halved"))
    victim = wrap(Halved(net), name="halved", shape=(1, 8, 8), classes=10)
    with pytest.raises(ContractError, match=r"takes 256 spike times .*pooled_spikes"):
        count_synops(victim, TEST.x[:2])


def test_spikingjellys_counter_agrees_on_a_network_without_pooling() -> None:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based.op_counter import SynOpCounter
    from spikingjelly.activation_based.op_counter.base import DispatchCounterMode

    class Loop(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.body(x) for _ in range(4)]).mean(dim=0)

    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        neuron.LIFNode(),
        nn.Conv2d(4, 8, 3, stride=2),
        neuron.LIFNode(),
        nn.Flatten(),
        nn.Linear(8 * 9, 10),
    )
    initialise(body, generator("oracle"))
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(3)
    net, oracle = Loop(body), SynOpCounter()
    with DispatchCounterMode([oracle]), torch.no_grad():
        net(TEST.x[:20])
    functional.reset_net(net)
    counts = count_synops(wrap(net, name="loop", shape=(1, 8, 8), classes=10, steps=4), TEST.x[:20])
    assert float(counts.ac.sum()) == oracle.get_total() > 10_000


def test_dense_inputs_are_billed_as_those_of_an_ann_usually_are() -> None:
    ann = count_synops(load_victim("ann_cnn.digits"), TEST.x[:20])
    assert torch.equal(ann.mac_dense, ann.dense) and (ann.mac_dense > ann.mac).all()
    snn = count_synops(load_victim("lif_cnn.digits"), TEST.x[:20])
    assert torch.equal(snn.mac_dense, torch.full_like(snn.mac, 4 * 16 * 22**2))
    assert torch.equal(snn.mac_dense, 4 * snn.mac_dense_once)
    for layer in ("per_step", "once"):
        dense, sparse_ = (
            snn.energy_nj(EnergyCost(first_layer=layer, inputs=inputs)) for inputs in ("dense", "nonzero")
        )
        assert (dense > sparse_).all()


def test_first_spike_layers_count_their_causal_sets() -> None:
    victim = load_victim("causal_lin.digits")
    counts = count_synops(victim, TEST.x[:50])
    assert torch.equal(counts.dense, torch.full((50,), 65 * 64 + 65 * 10.0, dtype=torch.float64))
    assert (counts.ac > 0).all() and (counts.ac < counts.dense).all()
    assert (counts.spikes <= 74).all()


def test_spike_codes_have_no_analog_layer_and_stochastic_victims_use_their_noise() -> None:
    victim = load_victim("poisson_cnn.digits")
    one, two = (
        count_synops(victim, TEST.x[:10], noise=RowStreams.derive(range(10), tag)) for tag in ("a", "b")
    )
    assert float(one.mac.sum()) == 0 and not torch.equal(one.ac, two.ac)


def test_energy_under_attack_can_be_compared_with_clean_energy() -> None:
    victim = load_victim("lif_cnn.digits")
    brighter = (TEST.x[:100] + 0.2).clamp(0, 1)
    clean, bright = (count_synops(victim, x).energy_nj() for x in (TEST.x[:100], brighter))
    assert float((bright / clean).min()) > 1.1


def test_costs_that_make_no_sense_are_refused() -> None:
    for wrong in ({"first_layer": "never"}, {"inputs": "some"}, {"mac_pj": -1.0}):
        with pytest.raises(ConfigError, match="energy"):
            EnergyCost(**wrong)  # type: ignore[arg-type]


def test_single_step_neurons_are_counted_like_multi_step_ones() -> None:
    from spikingjelly.activation_based import functional

    class Loop(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.body(x) for _ in range(4)]).mean(dim=0)

    whole = load_victim("lif_cnn.digits")
    counts = count_synops(whole, TEST.x[:10])
    functional.set_step_mode(whole.module, "s")
    loop = wrap(Loop(whole.module.body), name="loop", shape=(1, 8, 8), classes=10, steps=4)
    again = count_synops(loop, TEST.x[:10])
    for name in ("ac", "mac", "mac_once", "dense", "spikes"):
        assert torch.equal(getattr(again, name), getattr(counts, name)), name


def test_training_operations_equal_a_count_by_loops() -> None:
    first = nn.Conv2d(1, 2, 3, padding=1)
    second = nn.Conv2d(2, 2, 3, stride=2, padding=1)
    net = nn.Sequential(first, nn.ReLU(), second)
    x = sparse(2, 1, 5, 5)
    weights = sparse(2, 2, 3, 3)
    with torch.no_grad():
        second.weight.copy_(sparse(2, 2, 3, 3, share=0.7))
        hidden = first(x).relu()
    with training_operations(net) as found:
        (net(x) * weights).sum().backward()
    joined = pairs(second, hidden)
    forward = sum(bool(hidden[(r, *i)] != 0) for r, i, _ in joined)
    backward = sum(bool(weights[(r, *o)] != 0) for r, _, o in joined)
    with torch.no_grad():
        mask = nn.functional.conv_transpose2d(weights, second.weight, None, 2, 1) * (hidden > 0)
    all_pairs = [*pairs(first, x)]
    forward += sum(bool(x[(r, *i)] != 0) for r, i, _ in all_pairs)
    gradient = sum(bool(x[(r, *i)] != 0) and bool(mask[(r, *o)] != 0) for r, i, o in all_pairs)
    every = nn.Conv2d(2, 2, 3, stride=2, padding=1)
    nn.init.ones_(every.weight)
    gradient += sum(
        bool(hidden[(r, *i)] != 0) and bool(weights[(r, *o)] != 0) for r, i, o in pairs(every, hidden)
    )
    assert (found.forward_mac, found.backward_mac, found.weight_mac) == (forward, backward, gradient)
    assert found.forward_ac == found.weight_ac == 0


def test_training_on_spikes_adds_and_an_input_gradient_costs_more() -> None:
    net = registry("victims").get("lif_cnn.digits").build(generator("ops"))
    x, y = TEST.x[:16], TEST.y[:16]

    def cost(inputs: torch.Tensor) -> dict[str, float]:
        from robustspike.bench.api import reset

        reset(net)
        with training_operations(net) as found:
            nn.functional.cross_entropy(net(inputs), y).backward()
        reset(net)
        return vars(found) | {"nj": found.energy_nj()}

    plain, attacked = cost(x), cost(x.clone().requires_grad_(True))
    assert plain["weight_ac"] > 0 and plain["forward_ac"] > 0
    assert attacked["backward_mac"] > plain["backward_mac"] and attacked["nj"] > plain["nj"]
    assert attacked["forward_ac"] == plain["forward_ac"]
