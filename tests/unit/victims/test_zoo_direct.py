"""The reference ANN and the directly trained victims: what their options mean, and what ships."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import find_neurons
from robustspike.bench.api import generator
from robustspike.bench.api import initialise
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import reset
from robustspike.victims.direct.lif_cnn import LIF_CNN_DIGITS
from robustspike.victims.direct.lif_cnn import make_neuron
from robustspike.victims.direct.lif_cnn import tet_loss
from robustspike.victims.direct.sew import Merge
from robustspike.victims.direct.sew import SewBlock


def test_tet_loss_is_plain_cross_entropy_without_pull_at_one_step() -> None:
    logits = torch.randn(1, 6, 4, generator=generator("tet"))
    y = torch.arange(6) % 4
    expected = nn.functional.cross_entropy(logits[0], y)
    assert torch.allclose(tet_loss(logits, y, weight=0.0), expected)


def test_tet_loss_weighs_every_step_and_the_distance_to_the_threshold() -> None:
    logits = torch.randn(3, 5, 4, generator=generator("tet"), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0])
    entropies = torch.stack([nn.functional.cross_entropy(step, y) for step in logits])
    pull = (logits - 1).square().mean()
    got = tet_loss(logits, y, weight=0.05)
    assert torch.allclose(got, 0.95 * entropies.mean() + 0.05 * pull, rtol=1e-12)


def test_unknown_objective_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="objective"):
        dataclasses.replace(LIF_CNN_DIGITS, objective="tett")  # type: ignore[arg-type]


def test_tet_names_the_network_that_has_no_steps() -> None:
    recipe = dataclasses.replace(LIF_CNN_DIGITS, objective="tet")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ConfigError, match="sequence"):
        recipe.loss(flat, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "kind", "hard", "detached", "steps"),
    [
        ("lif_cnn.digits", "LIFNode", True, True, 4),
        ("lif_cnn_t8.digits", "LIFNode", True, True, 8),
        ("lif_cnn_tet.digits", "LIFNode", True, True, 4),
        ("lif_cnn_soft.digits", "LIFNode", False, True, 4),
        ("lif_cnn_attached.digits", "LIFNode", True, False, 4),
        ("plif_cnn.digits", "ParametricLIFNode", True, True, 4),
        ("if_cnn.digits", "IFNode", True, True, 4),
    ],
)
def test_variants_are_built_from_what_their_name_says(
    name: str, kind: str, hard: bool, detached: bool, steps: int
) -> None:
    recipe = registry("victims").get(name)
    neurons = find_neurons(recipe.build(generator("build")))
    assert recipe.spec().steps == steps
    assert [type(n.module).__name__ for n in neurons] == [kind, kind]
    assert all((n.module.v_reset is not None) == hard for n in neurons)
    assert all(n.module.detach_reset == detached for n in neurons)


@pytest.mark.parametrize("name", ["tandem_cnn.digits", "count_cnn.digits"])
def test_tandem_twin_has_the_logits_of_the_spiking_net_and_the_gradient_of_the_ann(name: str) -> None:
    net = load_victim(name).module.double()
    x = registry("datasets").get("digits").load("test").x[:6].double().requires_grad_(True)
    logits = net.twin(x)
    assert torch.allclose(logits, net(x), atol=1e-9)
    (got,) = torch.autograd.grad(logits.sum(), x)
    # The ANN on the true counts: each ReLU's mask comes from the counts of the layer before.
    value, spikes = x * net.steps, x.unsqueeze(0).expand(net.steps, *x.shape)
    masks = []
    with torch.no_grad():
        for layer in net.layers:
            bias = layer.convolution.bias * (1 if layer.norm else net.steps)
            pre = torch.nn.functional.conv2d(
                value, layer.convolution.weight, bias, layer.convolution.stride, 1
            )
            pre = layer.norm(pre) if layer.norm else pre
            masks.append((pre > 0).double())
            spikes = layer.spikes(spikes)
            value = spikes.sum(dim=0)
    smooth = x * net.steps
    for layer, mask in zip(net.layers, masks, strict=True):
        smooth = layer.convolution(smooth)
        smooth = (layer.norm(smooth) if layer.norm else smooth) * mask
    (expected,) = torch.autograd.grad(net.classifier(smooth.flatten(1)).sum(), x)
    assert torch.allclose(got, expected, atol=1e-9)
    (unrolled,) = torch.autograd.grad(net(x).sum(), x)
    assert not torch.allclose(unrolled, expected, rtol=0.1)


@pytest.mark.parametrize(("merge", "most"), [("add", 2.0), ("and", 1.0), ("iand", 1.0)])
def test_sew_block_joins_spikes_after_the_neuron(merge: Merge, most: float) -> None:
    def node() -> nn.Module:
        return make_neuron("if", tau=2.0, v_reset=0.0, detach_reset=True, decay_input=True)

    block = SewBlock(2, 2, 1, merge, node)
    initialise(block, generator("sew"))
    for norm in (block.path[0][1], block.path[1][1]):
        nn.init.constant_(norm.weight, 3.0)
    s = (torch.rand(4, 3, 2, 6, 6, generator=generator("spikes")) > 0.5).float()
    with torch.no_grad():
        out = block.eval()(s)
        reset(block)
        a = block.path(s)
    joined = {"add": a + s, "and": a * s, "iand": (1 - a) * s}[merge]
    assert torch.equal(out, joined)
    assert float(out.max()) == most and 0 < float(a.mean()) < 1


@pytest.mark.parametrize(
    "name",
    [
        "ann_cnn.digits",
        "hybrid_cnn.digits",
        "int8_cnn.digits",
        "integer_cnn.digits",
        "lif_cnn.digits",
        "nq_cnn.digits",
        "percentile_cnn.digits",
        "qcfs_cnn.digits",
        "ratesyn_cnn.digits",
        "ttfs_b1.digits",
        "ttfs_b1_mapped.digits",
        "two_phase_cnn.digits",
    ],
)
def test_depth_follows_the_number_of_widths_up_to_what_the_input_allows(name: str) -> None:
    for widths in ((4, 6, 8), (5, 7)):
        recipe = registry("victims").get(name, widths=widths)
        net = recipe.build(generator("depth")).eval()
        with torch.no_grad():
            assert net(torch.rand(2, 1, 8, 8, generator=generator("x"))).shape == (2, 10)
        deep = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
        assert len(deep) % len(widths) == 0
    for wrong in ((4, 4, 4, 4), ()):
        with pytest.raises(ConfigError, match=name):
            registry("victims").get(name, widths=wrong).build(generator("depth"))


@pytest.mark.parametrize("name", ["lif_cnn.digits", "qcfs_cnn.digits", "ttfs_b1.digits", "causal_lin.digits"])
def test_another_data_set_changes_the_input_and_nothing_else(name: str) -> None:
    net = registry("victims").get(name, dataset="cifar10").build(generator("cifar")).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, 32, 32, generator=generator("x"))).shape == (2, 10)


@pytest.mark.parametrize("name", ["lif_cnn.digits", "plif_cnn.digits", "lif_cnn.digits_events"])
def test_a_whole_number_is_a_time_constant_too(name: str) -> None:
    """SpikingJelly asserts a float; a user writes tau=4."""
    whole, written = (registry("victims").get(f"{name}(tau={tau})") for tau in ("4", "4.0"))
    networks = [recipe.build(generator("init")).state_dict() for recipe in (whole, written)]
    assert all(torch.equal(networks[0][key], tensor) for key, tensor in networks[1].items())
