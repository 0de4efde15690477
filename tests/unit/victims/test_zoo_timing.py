"""Spike codes, first-spike networks and B1: given vectors, closed forms, and exact gradients."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import RowStreams
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.victims.timing.b1 import B1Net
from robustspike.victims.timing.b1 import MappedB1
from robustspike.victims.timing.causal import CausalLayer
from robustspike.victims.timing.encoders import Encoder
from robustspike.victims.timing.encoders import FirstSpikeReadout
from robustspike.victims.timing.encoders import FusedEncoder
from robustspike.victims.timing.encoders import RateReadout
from robustspike.victims.timing.encoders import effective_eps

KERNELS = ("lin", "exp", "lif2")


def pixels(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def trains(spikes: torch.Tensor) -> list[str]:
    return ["".join(str(int(v)) for v in row) for row in spikes.flatten(1).T]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pre", ["00000000", "10000000", "11110000", "11111111"]),
        ("post", ["00000000", "00000000", "00000111", "01111111"]),
        ("latency", ["00000000", "00000001", "00001000", "10000000"]),
        ("ttfs", ["00000001", "00000010", "00001000", "10000000"]),
        ("ratesyn", ["00000001", "00000011", "00001111", "11111111"]),
        ("phase", ["00000000", "00011001", "10000000", "11111111"]),
    ],
)
def test_codes_of_0_01_05_1_at_eight_steps(code: str, expected: list[str]) -> None:
    assert trains(Encoder(code, 8)(pixels(0.0, 0.1, 0.5, 1.0))) == expected  # type: ignore[arg-type]


def test_ttfs_spikes_once_and_earlier_for_brighter_pixels() -> None:
    x = torch.linspace(0, 1, 101).view(-1, 1, 1, 1)
    spikes = Encoder("ttfs", 8)(x).flatten(1)
    assert torch.equal(spikes.sum(dim=0), torch.ones(101))
    assert (spikes.argmax(dim=0).diff() <= 0).all()


def test_phase_code_is_the_binary_expansion() -> None:
    x = pixels(*[i / 256 for i in range(256)])
    spikes = Encoder("phase", 8)(x)
    weights = 0.5 ** torch.arange(1, 9, dtype=torch.float64)
    assert torch.equal((spikes * weights.view(-1, 1, 1, 1, 1)).sum(dim=0), x)


@pytest.mark.parametrize("code", ["ttfs", "latency", "pre", "post", "ratesyn", "phase"])
def test_relaxation_leaves_the_hard_code_and_gives_a_finite_gradient(code: str) -> None:
    x = torch.rand(3, 1, 4, 4, generator=generator("x"), dtype=torch.float64)
    plain = Encoder(code, 8)(x)  # type: ignore[arg-type]
    for backward in ("relaxation", "masked"):
        leaf = x.clone().requires_grad_(True)
        coded = Encoder(code, 8, backward=backward)(leaf)  # type: ignore[arg-type]
        assert torch.equal(coded.detach().round(), plain)
        assert torch.allclose(coded.detach(), plain, atol=1e-12)
        # Weighted by time, so that a spike that moves changes the sum.
        weight = torch.linspace(1, 2, 8, dtype=torch.float64).view(-1, 1, 1, 1, 1)
        (grad,) = torch.autograd.grad((coded * weight).sum(), leaf)
        assert torch.isfinite(grad).all() and (grad != 0).any()


def test_phase_gradient_is_the_minimum_norm_inverse_of_the_expansion() -> None:
    leaf = pixels(0.3).requires_grad_(True)
    coded = Encoder("phase", 4)(leaf)
    weights = 0.5 ** torch.arange(1, 5, dtype=torch.float64)
    jacobian = [float(torch.autograd.grad(c.sum(), leaf, retain_graph=True)[0]) for c in coded]
    assert jacobian == pytest.approx((weights / weights.square().sum()).tolist())
    assert sum(w * j for w, j in zip(weights.tolist(), jacobian, strict=True)) == pytest.approx(1.0)


def test_poisson_draws_by_sample_and_at_the_pixels_rate() -> None:
    encoder = Encoder("poisson", 200)
    x = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    encoder.noise = RowStreams.derive([3, 4], "t")
    both = encoder(x)
    encoder.noise = RowStreams.derive([4], "t")
    assert torch.equal(encoder(x[1:]), both[:, 1:])
    assert both.mean(dim=(0, 2, 3, 4)).tolist() == pytest.approx([0.2, 0.7], abs=0.02)
    encoder.noise = None
    with pytest.raises(ContractError, match="noise"):
        encoder(x)


def test_poisson_victim_needs_noise_and_repeats_with_it() -> None:
    victim = load_victim("poisson_cnn.digits")
    x = registry("datasets").get("digits").load("test").x[:6]
    with pytest.raises(ContractError, match="stochastic"):
        victim.logits(x)

    def answer(part: str) -> torch.Tensor:
        with torch.no_grad():
            return victim.logits(x, noise=RowStreams.derive(range(6), part))

    assert torch.equal(answer("a"), answer("a"))
    assert not torch.equal(answer("a"), answer("b"))


def test_fused_code_puts_codes_side_by_side() -> None:
    x = torch.rand(2, 3, 4, 4, generator=generator("x"))
    fused = FusedEncoder([Encoder("direct", 5), Encoder("ttfs", 5)])(x)
    assert fused.shape == (5, 2, 6, 4, 4)
    assert torch.equal(fused[:, :, :3], Encoder("direct", 5)(x))
    assert torch.equal(fused[:, :, 3:], Encoder("ttfs", 5)(x))


def test_unknown_code_is_refused() -> None:
    with pytest.raises(ConfigError, match="ratesync"):
        Encoder("ratesync", 8)  # type: ignore[arg-type]


def test_rate_and_first_spike_decoders_agree_on_constant_one_hot_trains() -> None:
    spikes = torch.eye(10).unsqueeze(0).expand(8, 10, 10)
    for readout in (RateReadout(), FirstSpikeReadout(), FirstSpikeReadout(early_exit=True)):
        assert readout(spikes).argmax(dim=1).tolist() == list(range(10))


def test_first_spike_time_counts_from_one_and_silence_is_last() -> None:
    spikes = torch.zeros(8, 1, 3)
    spikes[2, 0, 0] = spikes[5, 0, 0] = spikes[7, 0, 1] = 1
    assert (FirstSpikeReadout(beta=1.0)(spikes) == torch.tensor([[-3.0, -8.0, -9.0]])).all()


def test_early_exit_ignores_everything_after_the_first_output_spike() -> None:
    spikes = (torch.rand(8, 50, 10, generator=generator("spikes")) > 0.8).float()
    readout = FirstSpikeReadout(early_exit=True)
    first = spikes.amax(dim=2).argmax(dim=0)
    changed = spikes.clone()
    for row, time in enumerate(first.tolist()):
        changed[time + 1 :, row] = 1 - changed[time + 1 :, row]
    assert torch.equal(readout(spikes), readout(changed))
    assert not torch.equal(FirstSpikeReadout()(spikes), FirstSpikeReadout()(changed))
    same = readout(spikes).argmax(dim=1) == FirstSpikeReadout()(spikes).argmax(dim=1)
    assert same.all()


@pytest.mark.parametrize(
    ("eps", "acts_as"), [("1/10", "1/8"), ("1/8", "1/8"), ("3/20", "1/8"), ("1/20", "1/16"), ("1/40", "0")]
)
def test_sixteen_input_levels_distort_eps(eps: str, acts_as: str) -> None:
    assert effective_eps(Fraction(eps), 16) == Fraction(acts_as)


def test_b1_has_the_logits_of_the_network_it_was_mapped_from() -> None:
    net = load_victim("ttfs_b1_mapped.digits").module
    assert isinstance(net, MappedB1)
    split = registry("datasets").get("digits").load("train")
    with torch.no_grad():
        worst = (net(split.x) - net.twin(split.x)).abs().max()
    assert float(worst) < 1e-5
    exact = net.double()
    x = split.x[:100].double().requires_grad_(True)
    logits, twin = exact(x), exact.twin(x)
    assert torch.allclose(logits, twin, atol=1e-5)
    (ours,), (theirs,) = (torch.autograd.grad(z.square().sum(), x) for z in (logits, twin))
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ttfs_b1.digits", "ttfs_b1_mapped.digits"])
def test_b1_spikes_fall_into_their_phase_and_its_windows_fit_the_training_data(name: str) -> None:
    module = load_victim(name).module
    net = module.timed if isinstance(module, MappedB1) else module
    assert isinstance(net, B1Net)
    with torch.no_grad():
        phases = net.times(registry("datasets").get("digits").load("train").x)
    for (_, start), (times, end) in itertools.pairwise(phases):
        assert (times >= start).all() and (times <= end).all()
        earliest = float((times.min() - start) / (end - start))
        assert earliest == pytest.approx(1 - 1 / 1.1, abs=1e-3)


def test_b1_grid_rounds_spike_times_and_keeps_a_gradient() -> None:
    net = load_victim("ttfs_b1.digits", grid=64).module
    x = registry("datasets").get("digits").load("test").x[:50].requires_grad_(True)
    times, end = net.times(x)[1]
    steps = (end - times) / net.layers[0].window * 64
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    (grad,) = torch.autograd.grad(net(x).sum(), x)
    assert (grad.flatten(1).abs().amax(dim=1) > 0).all()


def response(kernel: str, s: torch.Tensor) -> torch.Tensor:
    value = {
        "lin": s,
        "exp": 1 - (-s).exp(),
        "lif2": (-s / 2).exp() - (-s).exp(),
    }[kernel]
    return torch.where(s > 0, value, torch.zeros_like(s))


def layer(kernel: str, *, inputs: int = 12, outputs: int = 9) -> CausalLayer:
    made = CausalLayer(
        inputs,
        outputs,
        kernel=kernel,  # type: ignore[arg-type]
        silent=4.0,
        mean=12.0 if kernel == "lif2" else 3.0,
        deviation=4.0 if kernel == "lif2" else 2.0,
    ).double()
    made.draw_parameters(generator("causal", kernel))
    return made


@pytest.mark.parametrize("kernel", KERNELS)
def test_first_spike_time_is_the_first_crossing_of_a_simulated_potential(kernel: str) -> None:
    net = layer(kernel)
    assert (net.weight < 0).any()
    times = 2 * torch.rand(5, 12, generator=generator("times"), dtype=torch.float64)
    step = 1e-3
    grid = torch.arange(0, 4.0, step, dtype=torch.float64)
    arrivals = torch.cat([torch.zeros(5, 1, dtype=torch.float64), times], dim=1)
    kernels = response(kernel, grid[:, None, None] - arrivals[None])
    crossed = kernels @ net.weight.detach() >= 1.0
    expected = torch.where(crossed.any(dim=0), grid[crossed.to(torch.uint8).argmax(dim=0)], 4.0)
    with torch.no_grad():
        got = net(times)
    assert ((got <= expected + 1e-9) & (got >= expected - step - 1e-9)).all()
    assert (got < 4.0).float().mean() > 0.3


@pytest.mark.parametrize("kernel", KERNELS)
def test_causal_gradients_are_exact(kernel: str) -> None:
    net = layer(kernel)
    times = (2 * torch.rand(3, 12, generator=generator("t2"), dtype=torch.float64)).requires_grad_(True)
    out = net(times)
    weights = torch.rand(out.shape, generator=generator("w"), dtype=torch.float64)
    to_times, to_weight = torch.autograd.grad((out * weights).sum(), (times, net.weight))
    h = 1e-6
    with torch.no_grad():
        for gradient, tensor in ((to_times, times), (to_weight, net.weight)):
            direction = torch.randn(tensor.shape, generator=generator("d"), dtype=torch.float64)
            start = tensor.detach().clone()
            tensor.copy_(start + h * direction)
            above = (net(times) * weights).sum()
            tensor.copy_(start - h * direction)
            below = (net(times) * weights).sum()
            tensor.copy_(start)
            slope = float((above - below) / (2 * h))
            assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_after_the_output_spike_and_silent_neurons_have_no_gradient(kernel: str) -> None:
    net = layer(kernel, outputs=2)
    with torch.no_grad():
        net.weight.fill_(1.0 if kernel != "lif2" else 4.0)
        net.weight[:, 1] = -1.0
    times = torch.linspace(0.1, 2.0, 12, dtype=torch.float64)[None].requires_grad_(True)
    out = net(times)
    (grad,) = torch.autograd.grad(out.sum(), times)
    out = out.detach()
    assert float(out[0, 1]) == 4.0 and math.isfinite(float(out[0, 0]))
    late = times[0] > out[0, 0]
    assert late.any() and (grad[0, late] == 0).all() and (grad[0, ~late] != 0).all()
    assert torch.isfinite(grad).all()


def test_simultaneous_inputs_are_one_event_whatever_their_order() -> None:
    net = layer("lin", inputs=4, outputs=3)
    with torch.no_grad():
        net.weight[1:] = net.weight[1:2]
        same = net(torch.full((1, 4), 0.3, dtype=torch.float64))
        swapped = net(torch.full((1, 4), 0.3, dtype=torch.float64)[:, [3, 1, 0, 2]])
    assert torch.equal(same, swapped)
