"""Converted networks: the formulas of their activations, what conversion costs, and their ANN twins."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robustspike.bench.api import RowStreams
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.victims.converted.nodes import ConvertedNet
from robustspike.victims.converted.nodes import activations
from robustspike.victims.converted.nodes import latency_curve
from robustspike.victims.converted.normalised import convert
from robustspike.victims.converted.nq import NoisyQuantised
from robustspike.victims.converted.qcfs import QcfsActivation
from robustspike.victims.converted.two_phase import ClipActivation
from robustspike.victims.converted.two_phase import calibrate_potentials

CONVERTED = (
    "maxnorm_cnn.digits",
    "maxnorm_half_cnn.digits",
    "nq_cnn.digits",
    "percentile_cnn.digits",
    "qcfs_cnn.digits",
    "qcfs_cnn_t8.digits",
    "two_phase_cnn.digits",
)


def spiking_rate(node: nn.Module, z: torch.Tensor, steps: int) -> torch.Tensor:
    node.steps = steps  # type: ignore[assignment]
    out = node(z.unsqueeze(0).expand(steps, *z.shape).flatten(0, 1)).unflatten(0, (steps, -1))
    node.steps = 0  # type: ignore[assignment]
    return out.mean(dim=0)


@pytest.mark.parametrize("levels", [2, 4, 8])
def test_if_neuron_with_constant_input_computes_qcfs_exactly_when_t_equals_l(levels: int) -> None:
    node = QcfsActivation(levels, 1.5).double()
    z = torch.linspace(-2, 4, 601, dtype=torch.float64)[None] + 1e-5  # away from the rounding ties
    with torch.no_grad():
        assert torch.allclose(spiking_rate(node, z, levels), node(z), atol=1e-12)


def test_qcfs_gradient_is_one_inside_and_the_scale_learns_from_above() -> None:
    node = QcfsActivation(4, 2.0).double()
    z = torch.tensor([-0.3, -0.2, 0.6, 1.9, 2.2, 2.3], dtype=torch.float64, requires_grad=True)
    h = node(z)
    (to_z,) = torch.autograd.grad(h.sum(), z, retain_graph=True)
    assert to_z.tolist() == [0, 1, 1, 1, 1, 0]
    inside, above, below = h[2], h[5], h[0]
    for value, expected in ((inside, float((h[2] - z[2]).detach()) / 2.0), (above, 1.0), (below, 0.0)):
        (to_scale,) = torch.autograd.grad(value, node.scale, retain_graph=True)
        assert float(to_scale) == pytest.approx(expected, abs=1e-12)


def test_nq_clips_before_it_rounds_so_its_gradient_ends_at_zero() -> None:
    node = NoisyQuantised(4, 2.0).double().eval()
    z = torch.tensor([-0.1, 0.1, 1.9, 2.1], dtype=torch.float64, requires_grad=True)
    (to_z,) = torch.autograd.grad(node(z).sum(), z)
    assert to_z.tolist() == [0, 1, 1, 0]


def test_nq_adds_noise_in_training_only_and_by_sample() -> None:
    node = NoisyQuantised(4, 2.0)
    node.sigma.fill_(0.3)
    z = torch.full((2, 3000), 1.0)
    node.noise = RowStreams.derive([5, 9], "t")
    noisy = node.train()(z)
    node.noise = RowStreams.derive([9], "t")
    assert torch.equal(node(z[1:]), noisy[1:])
    assert abs(float((noisy - 1.0).detach().std()) - 0.3) < 0.02
    assert torch.equal(node.eval()(z), torch.ones_like(z))


def test_two_phase_rounds_every_element_at_test_time_and_some_in_training() -> None:
    node = ClipActivation(1.0, (5000,), levels=4, smooth=0.1)
    z = torch.full((1, 5000), 0.4)
    assert torch.equal(node.eval()(z), torch.full_like(z, 0.5))
    node.noise = RowStreams.derive([0], "t")
    kept = (node.train()(z) == 0.4).float().mean()
    assert 0.08 < float(kept) < 0.12


def test_calibrated_potentials_close_the_mean_gap_of_the_first_layer() -> None:
    recipe = registry("victims").get("two_phase_cnn.digits")
    net = recipe.build(generator("gap")).eval()
    x = recipe.data().load("train").x[:200]
    for node in net.nodes:
        node.scale.data.fill_(1.0)

    def gap() -> float:
        wanted = activations(net, x, spiking=False)[0]
        return float((wanted - activations(net, x, spiking=True)[0]).mean(dim=0).abs().mean())

    # The mean of a layer is missing only where spikes come late: start all potentials too low.
    for node in net.nodes:
        node.shift.fill_(-0.6)
    before = gap()
    calibrate_potentials(net, x)
    assert gap() < 0.5 * before


@pytest.mark.parametrize("name", CONVERTED)
def test_twin_is_the_source_network_and_forward_leaves_no_trace_in_it(name: str) -> None:
    net = load_victim(name).module
    x = registry("datasets").get("digits").load("test").x[:8]
    with torch.no_grad():
        before = net.twin(x)
        net(x)
        assert torch.equal(net.twin(x), before)
        assert torch.equal(net.ann(x), before)
        assert not torch.equal(net(x), before)


@pytest.mark.parametrize("name", ["qcfs_cnn.digits", "percentile_cnn.digits"])
def test_latency_curve_counts_what_the_network_of_that_t_answers(name: str) -> None:
    net = load_victim(name).module
    split = registry("datasets").get("digits").load("test")[:150]
    curve = latency_curve(net, split, steps=(1, 4), batch=64)
    for t, right in curve.items():
        with torch.no_grad():
            answers = net.sequence(split.x, t).mean(dim=0).argmax(dim=1)
        assert right == int((answers == split.y).sum())
    assert curve[4] > curve[1]


def test_conversion_far_below_its_ann_is_marked_and_others_are_not() -> None:
    marked = {name: load_victim(name).spec.notes for name in CONVERTED}
    assert len(marked.pop("maxnorm_cnn.digits")) == 1
    assert marked == dict.fromkeys(marked, ())
    broken = load_victim("qcfs_cnn.digits", steps=1).spec.notes
    assert len(broken) == 1 and "T=1" in broken[0]


def test_spikingjelly_conversion_folds_without_touching_source_or_global_random_state() -> None:
    ann = load_victim("ann_cnn.digits").module
    x = registry("datasets").get("digits").load("train").x[:64]
    state = copy.deepcopy(ann.state_dict())
    before = torch.random.get_rng_state()
    net = convert(ann, x, mode="99%", channel_wise=True, half_threshold=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(state[key], value) for key, value in ann.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def test_half_threshold_works_for_layer_wise_thresholds_too() -> None:
    ann = load_victim("ann_cnn.digits").module
    x = registry("datasets").get("digits").load("train").x[:64]
    net = convert(ann, x, mode="max", channel_wise=False, half_threshold=True)
    kinds = {type(m).__name__ for m in net.modules()}
    assert "HalfThresholdIFNode" in kinds and "IFNode" not in kinds


def test_nq_first_layer_is_exact_at_t_equals_l_and_the_second_is_not() -> None:
    net = load_victim("nq_cnn.digits").module
    assert isinstance(net, ConvertedNet)
    first, second = (float(node.sigma) for node in net.nodes)
    assert first < 0.02 < second


def test_show_prints_the_latency_curve_the_energy_and_the_mark() -> None:
    from click.testing import CliRunner

    from robustspike.bench.cli.show import command

    out = CliRunner().invoke(command, ["maxnorm_cnn.digits"]).output
    assert "ANN 491, T=1 50, T=2 69, T=4 110, T=8 376" in out
    assert "nJ an answer" in out and "NOTE: conversion lost 115 of 500" in out
