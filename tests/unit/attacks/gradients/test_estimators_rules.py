"""What each estimator's gradient is, checked against its equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from fractions import Fraction
from typing import Any

import estimator_nets as nets
import pytest
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor
from torch import nn

from robustspike.attacks.gradients import assg
from robustspike.attacks.gradients import pdsg
from robustspike.attacks.gradients.bptr import Bptr
from robustspike.attacks.gradients.cba import Cba
from robustspike.attacks.gradients.cba import quantised_clip
from robustspike.attacks.gradients.hart import Hart
from robustspike.attacks.gradients.rga import Rga
from robustspike.attacks.gradients.rga import rate_slope
from robustspike.attacks.pixels.sapgd import SaPgd
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron
from robustspike.bench.api import RowStreams
from robustspike.bench.api import SurrogateEstimator
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import find_neurons
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.bench.api import reset
from robustspike.bench.api import wrap
from robustspike.bench.victim.checks import refusal


def random(*shape: int, seed: str = "rules", scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, shape), dtype=torch.float64) * scale


def memory(n: int) -> Memory:
    return Memory(rows=torch.arange(n), n=n)


def layer_gradient(
    node: nn.Module, estimator: GradientEstimator, x_seq: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the spikes [T, N, ...] of one neuron layer and dL/dx for the given dL/dspikes."""
    neurons = find_neurons(node)
    reset(node)
    leaf = x_seq.clone().requires_grad_(True)
    with estimator.installed(neurons, [memory(x_seq.shape[1]) for _ in neurons]):
        spikes = node(leaf)
    spikes.backward(upstream)
    reset(node)
    assert leaf.grad is not None
    return spikes.detach(), leaf.grad


def lif(**options: Any) -> nn.Module:
    made: nn.Module = neuron.LIFNode(**{"tau": 2.0, "decay_input": False, "step_mode": "m", **options})
    return made


# fixed surrogates


SPIKINGJELLY = {
    "atan": surrogate.ATan(alpha=2.0),
    "sigmoid": surrogate.Sigmoid(alpha=4.0),
    "erf": surrogate.Erf(alpha=2.0),
    "piecewise_exp": surrogate.PiecewiseExp(alpha=1.0),
}


@pytest.mark.parametrize("name", SPIKINGJELLY)
def test_surrogate_is_the_one_of_spikingjelly(name: str) -> None:
    u = torch.linspace(-3, 3, 601, dtype=torch.float64).add(1e-9).requires_grad_(True)
    SPIKINGJELLY[name](u).sum().backward()
    estimator: SurrogateEstimator = registry("estimators").get(name)
    torch.testing.assert_close(estimator.derivative(u.detach()), u.grad)


@pytest.mark.parametrize(
    ("name", "area"),
    (
        ("atan(alpha=5)", 1.0),
        ("triangle(gamma=0.3)", 1.0),
        ("rectangle(a=1.5)", 1.0),
        ("sigmoid(alpha=12)", 1.0),
        ("erf(alpha=0.7)", 1.0),
        ("piecewise_exp(alpha=3)", 1.0),
        ("fast_sigmoid(alpha=2)", 1.0),
        ("damped_triangle(gamma=0.3, width=2)", 0.6),
        ("slayer(width=4)", 2.0),
    ),
)
def test_surrogates_are_even_and_have_the_stated_area(name: str, area: float) -> None:
    estimator: SurrogateEstimator = registry("estimators").get(name)
    t = torch.linspace(0, math.pi / 2, 200_003, dtype=torch.float64)[1:-1]
    u = torch.tan(t)  # the half line
    g = estimator.derivative(u)
    torch.testing.assert_close(g, estimator.derivative(-u), rtol=1e-12, atol=0)
    assert (g >= 0).all()
    measured = 2 * torch.trapezoid(g * (1 + u.square()), t)
    assert float(measured) == pytest.approx(area, rel=1e-3)


def test_straight_through_is_the_identity_at_one_step() -> None:
    x, up = random(1, 3, 7), random(1, 3, 7, seed="up")
    _, grad = layer_gradient(lif(), registry("estimators").get("straight_through"), x, up)
    assert torch.equal(grad, up)


# PDSG


@pytest.mark.parametrize("scope", ("sample", "batch"))
@pytest.mark.parametrize(
    "shape", ((5, 3, 2, 4, 4), (5, 3, 2, 3, 5), (5, 3, 6), (5, 3, 4, 6), (3, 1, 7), (4, 1, 2, 1, 1))
)
def test_running_deviation_equals_that_of_the_stacked_steps(
    shape: tuple[int, ...], scope: pdsg.Scope
) -> None:
    u = random(*shape) * 0.01 + 1.0
    found = pdsg.running_deviation(u, scope).expand_as(u)
    axes = [0] + ([1] if scope == "batch" else [])
    axes += list(range(3, u.dim())) if u.dim() >= 5 else [2] if u.dim() == 4 else []
    for t in range(len(u)):
        stacked = u[: t + 1]
        pooled = math.prod(stacked.shape[a] for a in axes)
        expected = stacked.std(dim=axes, keepdim=True)[0] if pooled > 1 else torch.ones_like(u[:1, :1])[0]
        torch.testing.assert_close(found[t], expected.expand_as(u[t]), rtol=1e-10, atol=0)


def test_deviation_does_not_see_the_future() -> None:
    u = random(4, 2, 3, 5, 5)
    changed = u.clone()
    changed[2:] += random(2, 2, 3, 5, 5, seed="later")
    assert torch.equal(pdsg.running_deviation(u, "sample")[:2], pdsg.running_deviation(changed, "sample")[:2])


def test_pdsg_density_has_mass_one_and_its_peak_at_half_a_deviation() -> None:
    grid = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    u = torch.cat((grid, torch.zeros(200_000, dtype=torch.float64))).view(1, 1, 1, 1, -1)
    sigma = float(u.std())
    g = pdsg._PdsgRule("sample", 0.5).slopes(u).flatten()[: len(grid)]
    assert float(torch.trapezoid(g, grid)) == pytest.approx(1.0, abs=1e-6)
    assert float(grid[g.argmax()]) == pytest.approx(sigma / 2, abs=1e-3)
    assert float(g.max()) == pytest.approx(1 / math.sqrt(2 * math.pi) / sigma, rel=1e-5)
    assert float(g[8000]) == pytest.approx(0.352 / sigma, rel=1e-3)


def test_pdsg_scales_with_the_potentials() -> None:
    u = random(3, 2, 2, 4, 4)
    rule = pdsg._PdsgRule("sample", 0.5)
    torch.testing.assert_close(rule.slopes(u * 8), rule.slopes(u) / 8)
    torch.testing.assert_close(pdsg.running_deviation(u * 8, "batch"), 8 * pdsg.running_deviation(u, "batch"))


def test_pdsg_is_defined_where_a_deviation_is_not() -> None:
    rule = pdsg._PdsgRule("sample", 0.5)
    assert torch.isfinite(rule.slopes(random(4, 1, 9))).all()  # one number a feature at the first step
    assert torch.isfinite(rule.slopes(torch.zeros(4, 1, 2, 3, 3))).all()  # no spread at all


@pytest.mark.parametrize("soft", (False, True))
@pytest.mark.parametrize("detach", (False, True))
def test_pdsg_gradient_follows_the_recursion_with_sigma_held_constant(soft: bool, detach: bool) -> None:
    x, up = random(5, 1, 2, 3, 3) + 0.5, random(5, 1, 2, 3, 3, seed="up")
    node = lif(v_reset=None if soft else 0.0, detach_reset=detach)
    spikes, grad = layer_gradient(node, pdsg.Pdsg(), x, up)
    v, potentials = torch.zeros_like(x[0]), []
    for t in range(5):
        h = v / 2 + x[t]
        potentials.append(h)
        v = h - spikes[t] if soft else h * (1 - spikes[t])
    h_seq = torch.stack(potentials)
    assert torch.equal((h_seq >= 1).double(), spikes)
    g = pdsg._PdsgRule("sample", 0.5).slopes(h_seq - 1)
    expected, later = torch.zeros_like(x), torch.zeros_like(x[0])
    for t in reversed(range(5)):
        through = (0 if detach else 1) * (g[t] if soft else h_seq[t] * g[t])
        later = up[t] * g[t] + later * 0.5 * ((1.0 if soft else 1 - spikes[t]) - through)
        expected[t] = later
    torch.testing.assert_close(grad, expected)


def test_deferred_slopes_cost_nothing_without_a_gradient() -> None:
    rule = pdsg._PdsgRule("sample", 0.5)
    with torch.no_grad():
        rule(random(2, 3))
    rule(random(2, 3))
    assert not rule._trace.u


def test_deferred_rule_starts_again_when_the_shape_changes() -> None:
    rule = pdsg._PdsgRule("sample", 0.5)
    a, b = random(2, 3, 4, 4), random(2, 5)
    leaf_a, leaf_b = a.clone().requires_grad_(True), b.clone().requires_grad_(True)
    rule(leaf_a).sum().add(rule(leaf_b).sum()).backward()
    torch.testing.assert_close(leaf_a.grad, rule.slopes(a[None])[0])
    torch.testing.assert_close(leaf_b.grad, rule.slopes(b[None])[0])


# rate gradients


@pytest.mark.parametrize("leak", (0.25, 0.5, 0.9, 1.0))
@pytest.mark.parametrize(("gamma", "saturation"), ((0.2, 2.0), (0.0, 1.0), (1.0, 3.0)))
def test_rate_curve_rises_to_one_and_is_flat_outside(leak: float, gamma: float, saturation: float) -> None:
    current = torch.linspace(-1, 4, 500_001, dtype=torch.float64)
    slope = rate_slope(current, leak=leak, gamma=gamma, saturation=saturation)
    assert float(torch.trapezoid(slope, current)) == pytest.approx(1.0, abs=1e-4)
    assert (slope[(current < 0) | (current > saturation)] == 0).all()
    below = (current >= 0) & (current < 1 - leak - 1e-9)
    assert torch.equal(slope[below], torch.full_like(slope[below], gamma))


def test_rga_on_integrate_and_fire_is_one_half_up_to_two_thresholds() -> None:
    x = torch.tensor([-0.5, 0.0, 0.3, 1.9, 2.0, 2.1], dtype=torch.float64).expand(4, 1, 6)
    _, grad = layer_gradient(neuron.IFNode(step_mode="m"), Rga(), x, torch.ones_like(x))
    assert torch.equal(grad[0, 0], torch.tensor([0, 0.5, 0.5, 0.5, 0.5, 0], dtype=torch.float64))


def test_rga_knee_of_a_leaky_neuron_is_its_rheobase() -> None:
    x = torch.tensor([0.49, 0.51], dtype=torch.float64).expand(200, 1, 2)  # tau 2: rheobase 0.5
    spikes, grad = layer_gradient(lif(), Rga(), x, torch.ones_like(x))
    assert spikes.sum(dim=0).flatten().tolist()[0] == 0 and float(spikes.sum(dim=0)[0, 1]) > 0
    torch.testing.assert_close(grad[0, 0], torch.tensor([0.2, (1 - 0.1) / 1.5], dtype=torch.float64))


RATE: tuple[GradientEstimator, ...] = (Rga(), Bptr(), Bptr("slope"), Hart(0.5), Cba())


@pytest.mark.parametrize("estimator", RATE, ids=str)
def test_decaying_input_is_the_same_neuron_with_a_divided_current(estimator: GradientEstimator) -> None:
    x, up = random(4, 3, 6, scale=2.0) + 1, random(4, 3, 6, seed="up")
    spikes, grad = layer_gradient(lif(tau=4.0, decay_input=True), estimator, x, up)
    same, inner = layer_gradient(lif(tau=4.0), estimator, x / 4, up)
    assert torch.equal(same, spikes) and spikes.any()
    torch.testing.assert_close(grad, inner / 4)
    assert grad.any()


@pytest.mark.parametrize("estimator", RATE, ids=str)
@pytest.mark.parametrize("v_reset", (0.0, None, -0.5))
def test_units_of_the_potential_do_not_matter(estimator: GradientEstimator, v_reset: float | None) -> None:
    x, up = random(4, 3, 6) + 0.5, random(4, 3, 6, seed="up")
    spikes, grad = layer_gradient(lif(v_threshold=1.0, v_reset=v_reset), estimator, x, up)
    scaled = lif(v_threshold=4.0, v_reset=None if v_reset is None else 4 * v_reset)
    same, inner = layer_gradient(scaled, estimator, 4 * x, up)
    assert torch.equal(same, spikes)
    torch.testing.assert_close(4 * inner, grad)
    assert grad.any()


def test_bptr_is_zero_exactly_where_a_neuron_never_fired() -> None:
    x, up = random(4, 3, 20), random(4, 3, 20, seed="up")
    spikes, grad = layer_gradient(lif(), Bptr(), x, up)
    fired = spikes.any(dim=0).expand_as(grad)
    assert fired.any() and not fired.all()
    assert torch.equal(grad, up * fired)


def test_bptr_slope_variant_is_the_mean_ratio_of_rate_to_input() -> None:
    x, up = random(4, 2, 30) + 0.3, torch.ones(4, 2, 30, dtype=torch.float64)
    spikes, grad = layer_gradient(lif(), Bptr("slope"), x, up)
    mean, rate = x.mean(dim=0), spikes.mean(dim=0)
    for i in range(2):
        positive = mean[i] > 0
        expected = (rate[i][positive] / mean[i][positive]).sum() / (positive.sum() + 0.001)
        torch.testing.assert_close(grad[0, i], positive * expected)


def test_hart_at_one_step_is_the_triangle_surrogate() -> None:
    x, up = random(1, 3, 20), random(1, 3, 20, seed="up")
    for options in ({}, {"decay_input": True}, {"v_reset": None}):
        _, hart = layer_gradient(lif(**options), Hart(0.7), x, up)
        _, stbp = layer_gradient(lif(**options), registry("estimators").get("triangle(gamma=0.7)"), x, up)
        torch.testing.assert_close(hart, stbp)


def test_hart_limits_wide_is_constant_narrow_is_blind() -> None:
    x, up = random(4, 3, 20), torch.ones(4, 3, 20, dtype=torch.float64)
    _, wide = layer_gradient(lif(), Hart(1e6), x, up)
    torch.testing.assert_close(wide * 1e6, torch.ones_like(wide), rtol=1e-5, atol=0)
    _, narrow = layer_gradient(lif(), Hart(1e-9), x, up)
    assert not narrow.any()


def test_hart_weights_steps_by_their_distance_and_shares_the_result() -> None:
    x, up = random(4, 3, 20), random(4, 3, 20, seed="up")
    node = lif()
    spikes, grad = layer_gradient(node, Hart(0.8), x, up)
    v, total = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    for t in range(4):
        h = v / 2 + x[t]
        total = total + up[t] * (0.8 - (h - 1).abs()).clamp(min=0) / 0.64
        v = h * (1 - spikes[t])
    torch.testing.assert_close(grad, (total / 4).expand_as(grad))


def test_quantised_clip_has_nine_levels_and_the_gradient_of_the_clip() -> None:
    x = torch.linspace(-1, 2, 3001, dtype=torch.float64, requires_grad=True)
    y = quantised_clip(x, 8)
    assert y.unique().tolist() == [k / 8 for k in range(9)]
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, ((x >= 0) & (x <= 1)).double())


def test_cba_gradient_is_that_of_the_ann() -> None:
    victim = nets.victim("if-soft", double=True)
    x, y = nets.inputs(double=True)
    net: Any = victim.module
    leaf = x.clone().requires_grad_(True)
    hidden = quantised_clip(net.conv(leaf), 8).flatten(1)
    logits = net.out(quantised_clip(net.hidden(hidden), 8))
    cross_entropy(logits, y).sum().backward()
    out = victim.loss_and_grad(x, y, cross_entropy, Cba())
    torch.testing.assert_close(out.grad, leaf.grad)


# ASSG


@pytest.mark.parametrize("form", assg.ASSG_FORMS)
def test_mass_is_the_integral_of_the_density_and_reach_its_inverse(form: assg.Form) -> None:
    z = torch.linspace(0, 6, 60_001, dtype=torch.float64)
    integral = 2 * torch.cumulative_trapezoid(assg.density(form, z), z)
    torch.testing.assert_close(assg.mass(form, z)[1:], integral, atol=2e-4, rtol=0)
    for bound in (0.1, 0.5, 0.85, 0.99):
        at = torch.tensor(assg.reach(form, bound), dtype=torch.float64)
        assert float(assg.mass(form, at)) == pytest.approx(bound, abs=1e-9)
    torch.testing.assert_close(assg.density(form, -z), assg.density(form, z), rtol=1e-12, atol=0)


def test_the_released_omega_of_the_atan_form() -> None:
    assert assg.Assg().scale == pytest.approx(2 / math.pi * math.tan(math.pi * 0.425))
    assert assg.Assg(form="gaussian", omega=0.8).scale == 0.8


def steps(estimator: assg.Assg, sizes: Callable[[int], Tensor], n: int, count: int) -> Tensor:
    """Feed |u| [T, N, ...] of `count` iterations; return the last alpha."""
    rule = assg._AssgRule(estimator, memory(n))
    for k in range(count):
        alpha = rule.sharpness(sizes(k))
    return alpha


@pytest.mark.parametrize("form", assg.ASSG_FORMS)
def test_constant_distances_give_the_limit_sharpness(form: assg.Form) -> None:
    size = random(3, 2, 5).abs() + 0.05
    estimator = assg.Assg(form=form)
    alpha = steps(estimator, lambda k: size, 2, 400)
    torch.testing.assert_close(alpha, estimator.scale / (size + 1e-4), rtol=1e-6, atol=0)
    assert (assg.mass(form, alpha * size) <= 0.85).all()


@pytest.mark.parametrize("bound", (0.5, 0.85))
@pytest.mark.parametrize("form", assg.ASSG_FORMS)
def test_expected_vanishing_degree_stays_below_the_bound(form: assg.Form, bound: float) -> None:
    rng = generator("assg bound")
    scale = torch.rand((2, 4, 500), generator=rng, dtype=torch.float64) + 0.01
    rule = assg._AssgRule(assg.Assg(form=form, bound=bound), memory(4))
    degrees = []
    for k in range(400):
        u = torch.randn((2, 4, 500), generator=rng, dtype=torch.float64) * scale
        alpha = rule.sharpness(u.abs())
        if k >= 100:
            degrees.append(assg.mass(form, alpha * u))
    expected = torch.stack(degrees).mean(dim=0)  # of every neuron, over iterations
    assert float(expected.max()) <= bound


def test_statistics_are_the_published_moving_averages() -> None:
    sizes = [random(2, 3, 4, seed=f"step {k}").abs() for k in range(6)]
    alpha = steps(assg.Assg(), lambda k: sizes[k], 3, 6)
    m, d = torch.ones(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, 4, dtype=torch.float64)
    for size in sizes:
        m = 0.9 * m + 0.1 * size
        d = 0.9 * d + 0.1 * (size - m).abs()
    torch.testing.assert_close(alpha, assg.Assg().scale / (m + 1.5 * d + 1e-4))


def test_statistics_follow_samples_through_compaction_and_reordering() -> None:
    sizes = random(4, 2, 5, 3).abs()  # [iteration, T, sample, neuron]
    batches = ([0, 1, 2, 3, 4], [4, 2, 0], [2], [0, 2])
    store: dict[str, Any] = {}
    last = {}
    for k, rows in enumerate(batches):
        rule = assg._AssgRule(assg.Assg(), Memory(rows=torch.tensor(rows), n=5, store=store))
        alpha = rule.sharpness(sizes[k][:, rows])
        last.update({row: alpha[:, i] for i, row in enumerate(rows)})
    for row in range(5):
        own = [k for k, rows in enumerate(batches) if row in rows]
        alone = steps(assg.Assg(), lambda k, own=own, row=row: sizes[own[k]][:, row : row + 1], 1, len(own))
        assert torch.equal(last[row], alone[:, 0])


def test_without_a_start_the_first_distance_is_the_mean() -> None:
    size = random(2, 3, 4).abs()
    alpha = steps(assg.Assg(start=None), lambda k: size, 3, 1)
    torch.testing.assert_close(alpha, assg.Assg().scale / (size + 1e-4))
    broken = size.clone()
    broken[0, 0, 0] = torch.nan
    rule = assg._AssgRule(assg.Assg(start=None), memory(3))
    assert torch.isfinite(rule.sharpness(broken)).all() and torch.isfinite(rule.sharpness(size)).all()


def test_frozen_statistics_do_not_move() -> None:
    size = random(2, 3, 4).abs()
    store: dict[str, Any] = {}
    live = assg._AssgRule(assg.Assg(), Memory(rows=torch.arange(3), n=3, store=store))
    alpha = live.sharpness(size)
    kept = [part.clone() for part in next(iter(store.values()))]
    frozen = assg._AssgRule(assg.Assg(), Memory(rows=torch.arange(3), n=3, frozen=True, store=store))
    assert torch.equal(frozen.sharpness(size * 9), alpha)
    assert all(torch.equal(a, b) for a, b in zip(kept, next(iter(store.values())), strict=True))


def test_one_candidate_or_several_equal_ones_count_once() -> None:
    size = random(2, 2, 4).abs()
    once = assg._AssgRule(assg.Assg(), memory(2)).sharpness(size)
    repeated = assg._AssgRule(assg.Assg(), Memory(rows=torch.tensor([1, 0, 1, 1]), n=2))
    torch.testing.assert_close(repeated.sharpness(size[:, [1, 0, 1, 1]]), once[:, [1, 0, 1, 1]])


def test_distances_that_are_not_finite_leave_the_statistics_alone() -> None:
    size = random(2, 2, 4).abs()
    rule = assg._AssgRule(assg.Assg(), memory(2))
    rule.sharpness(size)
    broken = size.clone()
    broken[0, 1, 2], broken[1, 0, 0] = torch.nan, torch.inf
    assert torch.isfinite(rule.sharpness(broken)).all()
    level, _ = next(iter(rule.memory.store.values()))
    assert torch.isfinite(level).all()


def test_a_neuron_on_its_threshold_keeps_a_finite_slope() -> None:
    alpha = steps(assg.Assg(), lambda k: torch.zeros(1, 1, 1, dtype=torch.float64), 1, 3000)
    assert float(alpha) == pytest.approx(assg.Assg().scale / 1e-4)


@dataclass(frozen=True)
class Spy(GradientEstimator):
    """Notes whether statistics were frozen, draw by draw."""

    frozen: list[bool] = field(default_factory=list, compare=False)
    name = "spy"

    def rule(self, neuron: Neuron, memory: Memory) -> None:
        self.frozen.append(memory.frozen)


class Noisy(nn.Module):
    draws_noise = True

    def __init__(self) -> None:
        super().__init__()
        self.node = neuron.IFNode(step_mode="m")
        self.noise: RowStreams | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.noise is not None
        current = x + 0.1 * self.noise.normal(x.shape[1:])
        out: Tensor = self.node(current.expand(4, *x.shape)).mean(dim=0)
        return out


def test_statistics_are_frozen_for_later_draws_of_one_gradient() -> None:
    victim = wrap(Noisy(), name="noisy", shape=(3,), classes=3, stochastic=True)
    x = torch.tensor([[0.9, 0.1, 0.2]])
    spy = Spy()
    refusal(victim, spy)  # the harness tries an estimator once before it is used
    spy.frozen.clear()
    attack = SaPgd(steps=2, draws=3, estimator=spy)  # type: ignore[arg-type]
    threat = ThreatModel(geometry="linf", eps=Fraction(1, 100))
    evaluate_shard(victim, attack, threat, x, torch.tensor([0]), torch.tensor([0]))
    assert spy.frozen == [False, True, True] * 2
