"""Defenses that change the network: MPPD's neuron, SNN-RAT, StoG, FEEL, MPD-SGR, TGO, RSC."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor
from torch import nn

from robustspike.bench.api import ContractError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Neuron
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Step
from robustspike.bench.api import check_victim
from robustspike.bench.api import find_neurons
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.bench.api import supplied_with
from robustspike.defenses.dsd import without_dominant_direction
from robustspike.defenses.feel import FrequencyEncoding
from robustspike.defenses.feel import LeakNeuron
from robustspike.defenses.feel import half_widths
from robustspike.defenses.hosnn import AdaptiveNeuron
from robustspike.defenses.mpd_sgr import overlap
from robustspike.defenses.mppd import Current
from robustspike.defenses.mppd import Mppd
from robustspike.defenses.mppd import make_dlif
from robustspike.defenses.mppd import perturbation
from robustspike.defenses.rate_smoothing import BernoulliCoding
from robustspike.defenses.robust_conversion import ConvertibleNeuron
from robustspike.defenses.snn_rat import retracted
from robustspike.defenses.stog import Gate
from robustspike.defenses.structure import recorded_membranes
from robustspike.defenses.tgo import ThresholdGuard
from robustspike.defenses.tgo import guard_loss

RECIPE = registry("victims").get("lif_cnn.digits", widths=(4, 8))
DATA = RECIPE.data().load("train")[:32]
NETWORK_CHANGERS = (
    "feel",
    "hosnn",
    "mppd",
    "mppd_gaussian",
    "rate_smoothing",
    "robust_conversion",
    "rsc",
    "stog",
    "tgo",
    "tv_l1",
)


def node(tau: float = 2.0, threshold: float = 1.0, *, soft: bool = False, decay: bool = True) -> nn.Module:
    made: nn.Module = neuron.LIFNode(
        tau=tau,
        v_threshold=threshold,
        v_reset=None if soft else 0.0,
        decay_input=decay,
        surrogate_function=surrogate.ATan(),
        step_mode="m",
    )
    return made


def currents(*parts: object, steps: int = 6, n: int = 3, size: int = 5) -> Tensor:
    return torch.randn(steps, n, size, generator=generator(*parts), dtype=torch.float64) * 2


def potentials(module: nn.Module, x_seq: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-reset potentials and spikes [T, ...] of a module with one spiking layer."""
    layer = find_neurons(module)[0]
    layer.module.reset()
    with recorded_membranes(module) as records:
        spikes = module(x_seq)
    layer.module.reset()
    return torch.stack(records[0]) + layer.threshold, spikes


def hardened(name: str, **params: object) -> tuple[nn.Module, ModuleVictim]:
    rule = registry("defenses").get(name, **params)
    spec = rule.describe(RECIPE.spec())
    module = rule.transform(RECIPE.build(generator("init")), spec)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.weight, 8.0)  # an untrained network hardly spikes
    return module, ModuleVictim(module, spec)


@pytest.mark.parametrize("name", NETWORK_CHANGERS)
def test_changed_network_is_a_lawful_victim_with_a_gradient(name: str) -> None:
    module, victim = hardened(name)
    check_victim(victim, DATA.x)
    assert len(find_neurons(module)) == 2
    noise = RowStreams.derive(range(8), "n") if victim.spec.stochastic else None
    x = DATA.x[:8].clone().requires_grad_(True)
    logits = victim.logits(x, noise=noise)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())


@pytest.mark.parametrize("name", ["rate_smoothing", "rsc", "stog", "tgo"])
def test_stochastic_defense_draws_only_from_the_streams_it_is_handed(name: str) -> None:
    params = {"learning": 1.0} if name == "stog" else {}
    module, victim = hardened(name, **params)
    for gate in module.modules():
        if isinstance(gate, Gate):
            gate.p.data.fill_(0.5)
    one, again, other = (
        victim.logits(DATA.x[:8], noise=RowStreams.derive(range(8), part)) for part in ("a", "a", "b")
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with pytest.raises(ContractError):
        victim.logits(DATA.x[:8])
    with pytest.raises(ContractError, match="noise streams"):
        module(DATA.x[:8])


# --- MPPD ----------------------------------------------------------------------------------------------


def test_equal_inputs_give_no_perturbation_and_plain_cross_entropy() -> None:
    rule = Mppd(setting="gaussian", eps=0.0)
    module = rule.transform(RECIPE.build(generator("init")), RECIPE.spec()).train()
    step = Step(module, DATA.x, DATA.y, generator("s"), 0, RECIPE.loss)
    terms = rule.terms(step)
    assert float(terms["mppd"].detach()) == 0.0
    plain = step.loss(DATA.x, DATA.y)[0]
    assert torch.allclose(terms["loss"] + terms["perturbed"], plain)


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_without_spikes_the_recursion_is_the_potential_difference_if_the_scale_is_inside(
    decay: bool, scaled: bool
) -> None:
    dlif = make_dlif(node(tau=3.0, threshold=1e3, decay=decay), 6).double()
    with torch.no_grad():
        dlif.step_scale.a.copy_(0.5 + torch.rand(6, generator=generator("a")))
    one, two = currents("clean"), currents("other")
    (u, spikes), (v, others) = potentials(dlif, one), potentials(dlif, two)
    assert not bool(spikes.any() or others.any())
    layer = find_neurons(dlif)[0]
    r = (dlif.step_scale(one) - dlif.step_scale(two)) if scaled else one - two
    error = float((perturbation(r, leak=layer.leak, gain=layer.gain) - (u - v)).detach().abs().max())
    assert error < 1e-11 if scaled else error > 1e-2


def test_with_spikes_only_the_exact_recursion_is_the_potential_difference() -> None:
    lif = node(tau=4.0, decay=False).double()
    one, two = currents("clean"), currents("other")
    (u, s), (v, z) = potentials(lif, one), potentials(lif, two)
    layer = find_neurons(lif)[0]
    assert float(s.sum()) > 0
    exact = [layer.gain * (one - two)[0]]
    for t in range(1, len(one)):
        reset = u[t - 1] * s[t - 1] - v[t - 1] * z[t - 1]
        exact.append(layer.leak * (exact[-1] - reset) + layer.gain * (one - two)[t])
    assert torch.allclose(torch.stack(exact), u - v, atol=1e-12)
    simplified = perturbation(one - two, leak=layer.leak, gain=layer.gain)
    assert float((simplified - (u - v)).abs().max()) > 0.1


@pytest.mark.parametrize("soft", [True, False])
def test_dlif_with_unit_scale_is_the_node_bit_for_bit(soft: bool) -> None:
    plain, dlif = node(tau=3.0, soft=soft), make_dlif(node(tau=3.0, soft=soft), 6)
    x = currents("x").float()
    assert torch.equal(plain(x), dlif(x))


def test_perturbation_is_linear_and_its_gain_bounded() -> None:
    one, two = currents("r"), currents("q")
    rolled = perturbation(2 * one - 3 * two, leak=0.9, gain=0.5)
    parts = 2 * perturbation(one, leak=0.9, gain=0.5) - 3 * perturbation(two, leak=0.9, gain=0.5)
    assert torch.allclose(rolled, parts, atol=1e-12)
    for leak, expected in ((0.5, 1.826), (0.9, 4.111), (0.99, 5.264)):  # induced l2 gain at T = 8
        response = perturbation(torch.eye(8, dtype=torch.float64), leak=leak, gain=1.0)
        gain = float(torch.linalg.matrix_norm(response, 2))
        assert gain == pytest.approx(expected, abs=1e-3)
        assert gain <= 1 / (1 - leak)
    for norm, power in (("l2", 2), ("l1", 1)):  # the regulariser is homogeneous in the difference
        rule, layer = Mppd(norm=norm), find_neurons(node())[0]
        small, large = (
            float(rule.regulariser(Current(layer, scale * one), Current(layer, scale * two)))
            for scale in (1, 3)
        )
        assert large == pytest.approx(3**power * small, rel=1e-12)
    e = perturbation(one, leak=0.7, gain=1.0)
    assert float(e.abs().mean()) <= float(e.square().mean().sqrt())  # TV-l1 against TV-l2
    assert float(e.abs().sum()) <= float(one.abs().sum()) / (1 - 0.7)  # dominated variation


@pytest.mark.parametrize("both", [False, True])
def test_regulariser_reaches_the_weights_through_the_perturbed_branch(both: bool) -> None:
    rule = Mppd(setting="gaussian", both_branches=both)
    module = rule.transform(RECIPE.build(generator("init")), RECIPE.spec()).train()
    term = rule.terms(Step(module, DATA.x, DATA.y, generator("s"), 0, RECIPE.loss))["mppd"]
    gradients = torch.autograd.grad(term, list(module.parameters()), allow_unused=True)
    assert gradients[0] is not None and float(gradients[0].abs().sum()) > 0
    assert gradients[-1] is None  # the read-out comes after the last spiking layer


def test_adversarial_setting_moves_every_pixel_by_about_eps_and_stays_legal() -> None:
    rule = Mppd(eps=0.1)
    module = RECIPE.build(generator("init")).train()
    moved = rule.perturbed(Step(module, DATA.x, DATA.y, generator("s"), 0, RECIPE.loss))
    assert float((moved - DATA.x).abs().max()) <= 0.1 + 6 * 0.001
    assert float(moved.min()) >= 0 and float(moved.max()) <= 1


# --- SNN-RAT -------------------------------------------------------------------------------------------


def test_retraction_draws_singular_values_to_one_and_keeps_orthonormal_rows() -> None:
    w = torch.randn(4, 9, generator=generator("w"), dtype=torch.float64) * 0.4
    before = torch.linalg.svdvals(w)
    after = torch.linalg.svdvals(retracted(w, 0.05))
    expected = (before + 0.05 * before * (1 - before**2)).sort(descending=True).values
    assert torch.allclose(after, expected)
    for _ in range(400):
        w = retracted(w, 0.05)
    assert torch.allclose(torch.linalg.svdvals(w), torch.ones(4, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(retracted(w, 0.05), w, atol=1e-6)
    assert float((retracted(w, 0.3) @ w.T - torch.eye(4)).abs().max()) < 1e-6


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_retraction_keeps_the_sign_of_singular_values_below_its_stability_limit_only(beta: float) -> None:
    limit = ((1 + beta) / beta) ** 0.5
    for scale, keeps in ((0.999, True), (1.001, False)):
        w = torch.eye(3, dtype=torch.float64) * limit * scale
        assert bool((retracted(w, beta).diagonal() > 0).all()) == keeps
    w = torch.diag(torch.tensor([0.1, 0.9, min(0.9 * limit, 1.5)], dtype=torch.float64))
    for _ in range(400):
        w = retracted(w, beta)
    assert torch.allclose(torch.linalg.svdvals(w), torch.ones(3, dtype=torch.float64), atol=1e-6)


def test_retraction_touches_a_share_of_the_rows_of_wide_layers_only() -> None:
    rule = registry("defenses").get("snn_rat", beta=0.1)
    net = nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 5))
    before = [m.weight.detach().clone() for m in net]
    rule.after_step(Step(net, DATA.x, DATA.y, generator("s"), 0, RECIPE.loss))
    changed = [(m.weight != w).any(1).sum() for m, w in zip(net, before, strict=True)]
    assert [int(c) for c in changed] == [90, 5]
    assert rule.schedule(dataclasses.replace(RECIPE.schedule, weight_decay=0.1)).weight_decay == 0


# --- StoG ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
def test_gate_passes_spikes_with_its_probability_and_its_derivative_has_the_right_sign_and_size(
    p: float,
) -> None:
    gate = Gate((1,), temperature=0.5)
    gate.p.data.fill_(p)
    gate.noise = RowStreams.derive(range(20_000), "gate")
    spikes = torch.ones(2, 20_000, 1)
    out = gate(spikes)
    assert float(out.mean()) == pytest.approx(p, abs=0.01)
    out.mean().backward()
    # E[out] = P s, so a finite difference of the expectation gives exactly s = 1.
    assert float(gate.p.grad) == pytest.approx(1.0, rel=0.3)


def test_open_gates_are_the_identity_and_frozen_ones_do_not_learn() -> None:
    gate = Gate((5,), temperature=0.5)
    gate.noise = RowStreams.derive(range(3), "g")
    x = (currents("g") > 0).float().requires_grad_(True)
    assert torch.equal(gate(x), x)
    gate.learns = False
    gate.p.data.fill_(0.5)
    out = gate(x)
    out.sum().backward()
    assert gate.p.grad is None
    assert torch.equal(x.grad, (out / x.detach().clamp(min=1e-9) > 0).float() * (x > 0) + x.grad * (x == 0))


def test_averaged_gradients_of_a_gated_network_vary_less() -> None:
    module, victim = hardened("stog")
    for gate in module.modules():
        if isinstance(gate, Gate):
            gate.p.data.fill_(0.6)
    x, rows = DATA.x[:4], 4

    def gradient(draws: int, salt: int) -> Tensor:
        total = torch.zeros_like(x)
        for draw in range(draws):
            z = x.clone().requires_grad_(True)
            noise = RowStreams.derive(range(rows), "eot", salt, draw)
            (g,) = torch.autograd.grad(victim.logits(z, noise=noise)[:, 0].sum(), z)
            total += g / draws
        return total

    spread = [torch.stack([gradient(n, salt) for salt in range(12)]).var(0).mean() for n in (1, 8)]
    assert float(spread[0] / spread[1]) == pytest.approx(8, rel=0.5)


# --- FEEL ----------------------------------------------------------------------------------------------


def test_published_half_widths_are_reproduced() -> None:
    assert half_widths(4, 32) == (16, 14, 12, 10)
    assert half_widths(8, 32) == (16, 14, 12, 10, 8, 6, 4, 2)
    assert half_widths(4, 64) == (32, 28, 24, 20)
    assert half_widths(4, 8) == (4, 4, 3, 3)


def images(size: int = 8) -> Tensor:
    return torch.rand(1, 3, 1, size, size, generator=generator("image"), dtype=torch.float64)


def test_full_band_is_the_identity_and_a_narrow_one_has_nothing_outside() -> None:
    x = images()
    for part in ("real", "modulus"):
        assert torch.allclose(FrequencyEncoding((4,), part)(x), x, atol=1e-12)
    narrow = FrequencyEncoding((2,), "real")
    spectrum = torch.fft.fftshift(torch.fft.fft2(narrow(x)), dim=(-2, -1))
    outside = narrow.mask(8, 8) == 0
    assert float(spectrum.abs()[outside.expand_as(spectrum)].max()) < 1e-12
    assert torch.allclose(narrow(narrow(x)), narrow(x), atol=1e-12)
    asymmetric = FrequencyEncoding((2,), "modulus")(x)
    assert float((asymmetric - narrow(x)).abs().max()) > 1e-3  # why the part is documented


def test_gradient_through_the_encoding_matches_finite_differences() -> None:
    x = images().requires_grad_(True)
    for part in ("real", "modulus"):
        assert torch.autograd.gradcheck(FrequencyEncoding((2,), part), (x,))


@pytest.mark.parametrize("soft", [True, False])
def test_constant_leak_is_the_lif_neuron(soft: bool) -> None:
    plain = node(tau=2.0, soft=soft)
    own = LeakNeuron(Neuron("n", 0, plain), steps=6, shape=(5,), initial=None)
    x = currents("leak").float().requires_grad_(True)
    one, two = plain(x), own(x)
    assert torch.equal(one, two)
    gradients = [torch.autograd.grad(out.sum(), x)[0] for out in (one, two)]
    assert torch.allclose(*gradients, atol=1e-6)
    assert own.tau == pytest.approx(2.0)


# --- MPD-SGR, TGO --------------------------------------------------------------------------------------


def test_overlap_is_the_gaussian_mass_in_the_window_and_falls_with_the_mean() -> None:
    draws = torch.randn(200_000, 1, generator=generator("mpd"), dtype=torch.float64)
    assert float(overlap(0.5 * draws, 1.0)) == pytest.approx(0.9545, abs=2e-3)
    values = [float(overlap(0.5 * draws + mean, 1.0)) for mean in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert values == sorted(values, reverse=True)
    assert all(0 < v < 1 for v in values[:-1])
    for n in (1, 4):  # no spread: all of it inside, or none, and no gradient that is not a number
        still = torch.tensor([[0.0, 3.0]]).repeat(n, 1).requires_grad_(True)
        mass = overlap(still, 1.0)
        assert mass.tolist() == [1.0, 0.0]
        (gradient,) = torch.autograd.grad(mass.sum(), still)
        assert torch.isfinite(gradient).all()


def test_guard_is_zero_exactly_outside_the_band() -> None:
    assert float(guard_loss(torch.tensor([-0.5, 0.5, 3.0]), 0.5)) == 0.0
    assert float(guard_loss(torch.tensor([-0.5, 0.4]), 0.5)) == pytest.approx(0.05)


def test_guard_ramps_up_and_no_checkpoint_of_the_ramp_is_eligible() -> None:
    rule = ThresholdGuard()
    ramp = [rule.ramp(epoch, 10) for epoch in range(10)]
    assert ramp == sorted(ramp) and ramp[0] < 0.1 and ramp[4:] == [1.0] * 6
    assert [rule.eligible(epoch, 10) for epoch in range(10)] == [False] * 4 + [True] * 6


def test_membrane_noise_has_the_declared_size_in_membrane_units() -> None:
    module, _ = hardened("tgo", sigma=0.2)
    _, quiet = hardened("tgo", sigma=0.0)
    layer = quiet.neurons[0].module
    x = torch.zeros(1, 2000, 1, 8, 8)
    with supplied_with(module, RowStreams.derive(range(2000), "size")):
        noisy = find_neurons(module)[0].module.membrane_noise(x)
    assert float(noisy.std()) * (1 / layer.tau) == pytest.approx(0.2, rel=0.02)


# --- HoSNN, conversion, rate coding ----------------------------------------------------------------------


def adaptive(theta: float, *, adapts: bool = True) -> AdaptiveNeuron:
    made = AdaptiveNeuron(Neuron("n", 0, node(tau=2.0)), steps=6, shape=(5,), theta=theta)
    made.adapts.fill_(adapts)
    return made.eval()


def test_adaptive_threshold_of_strength_zero_is_the_lif_neuron() -> None:
    x = currents("hosnn").float()
    assert torch.equal(adaptive(0.0)(x), node(tau=2.0)(x))
    assert torch.equal(adaptive(5.0, adapts=False)(x), node(tau=2.0)(x))


def test_threshold_stays_on_the_reference_and_rises_when_over_driven() -> None:
    own, x = adaptive(0.5), currents("reference", n=1).float()
    u, _ = potentials(node(tau=2.0), x)
    own.signature.copy_(u[:, 0])
    assert torch.equal(own(x), node(tau=2.0)(x))  # e = 0 at every step
    over = own(x + 2.0)
    assert float(over[1:].sum()) < float(node(tau=2.0)(x + 2.0)[1:].sum())
    under = own(x - 1.0)
    assert float(under[1:].sum()) >= float(node(tau=2.0)(x - 1.0)[1:].sum())


def test_signature_is_the_running_mean_of_clean_potentials() -> None:
    own, x = adaptive(0.5, adapts=False).train(), currents("signature").float()
    u, _ = potentials(node(tau=2.0), x)
    for _ in range(200):
        own(x)
    assert torch.allclose(own.signature, u.mean(dim=1), atol=1e-5)


def test_converted_neuron_approaches_the_relu_it_was() -> None:
    own = ConvertibleNeuron().train()
    own.start_epoch(3)
    x = torch.linspace(-1, 2, 7).expand(64, 1, 7)
    relu = own(x)
    assert torch.equal(relu, x.relu())
    own.convert(1.0)
    assert float(own.threshold.detach()) == 2.0
    own.convert(0.1)  # a second call changes nothing
    assert float(own.threshold.detach()) == 2.0
    assert float((own(x).mean(0) - x[0].relu()).abs().max()) <= 2.0 / 64 + 1e-6
    own.start_epoch(4)
    assert float(own.peak) == 0.0


def test_bernoulli_coding_spikes_at_the_rate_of_the_pixel_and_passes_the_gradient() -> None:
    coding = BernoulliCoding(4)
    coding.noise = RowStreams.derive(range(5000), "coding")
    x = torch.tensor([0.0, 0.1, 0.5, 1.0]).expand(4, 5000, 4).clone().requires_grad_(True)
    spikes = coding(x)
    assert set(spikes.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert spikes.detach().mean((0, 1)).tolist() == pytest.approx([0, 0.1, 0.5, 1.0], abs=0.015)
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_gradient_without_its_dominant_direction_keeps_the_rest_and_still_descends() -> None:
    g = torch.randn(6, 3, 2, 2, generator=generator("dsd"), dtype=torch.float64)
    values = torch.linalg.svdvals(g.flatten(1))
    left = without_dominant_direction(g)
    assert torch.allclose(torch.linalg.svdvals(left.flatten(1))[:-1], values[1:], atol=1e-10)
    assert float((left * g).sum()) >= 0
    bias = torch.randn(4, generator=generator("bias"))
    assert torch.equal(without_dominant_direction(bias), bias)
