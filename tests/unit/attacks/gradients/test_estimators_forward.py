"""Every estimator on every neuron: the forward pass is untouched, and the victim is left as it was."""

from __future__ import annotations

from typing import Any

import estimator_nets as nets
import pytest
import torch
from torch import Tensor

from robustspike.bench.api import LOSSES
from robustspike.bench.api import BpttEstimator
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import LossGrad
from robustspike.bench.api import Memory
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Task
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.bench.victim.checks import fingerprint_inputs

STEPWISE = (
    "native",
    "native(detach_reset=true)",
    "native(detach_reset=false)",
    "atan(alpha=5, detach_reset=true)",
    "triangle(gamma=0.3)",
    "rectangle",
    "sigmoid",
    "erf",
    "piecewise_exp",
    "fast_sigmoid",
    "damped_triangle",
    "slayer",
    "straight_through",
    "pdsg",
    "pdsg(scope=batch, detach_reset=false)",
    "assg",
    "assg(form=triangle, start=none)",
    "assg(form=rectangle)",
    "assg(form=sigmoid)",
    "assg(form=gaussian, omega=0.8)",
    "twin",
)
SEQUENTIAL = ("rga", "bptr", "bptr(variant=slope)", "cba", "hart", "hart(gamma=2)", "hart_mix")


def query(victim: ModuleVictim, name: str, x: Tensor, y: Tensor, **options: Any) -> LossGrad:
    estimator: GradientEstimator = registry("estimators").get(name)
    return victim.loss_and_grad(x, y, cross_entropy, estimator, **options)


def plain(victim: ModuleVictim, x: Tensor) -> Tensor:
    with torch.no_grad():
        return victim.logits(x)


def state(victim: ModuleVictim) -> list[Any]:
    return [
        (
            n.module.surrogate_function,
            n.module.detach_reset,
            "forward" in vars(n.module),
            list(n.module._modules),
            n.module.training,
        )
        for n in victim.neurons
    ] + [victim.module.state_dict().keys(), [m.training for m in victim.module.modules()]]


def test_every_registered_estimator_is_tested_here() -> None:
    tested = {name.partition("(")[0] for name in STEPWISE + SEQUENTIAL}
    assert set(registry("estimators").names()) <= tested


@pytest.mark.parametrize("start", (0.0, 0.5))
@pytest.mark.parametrize("kind", nets.NODES)
def test_forward_is_bit_identical_and_the_victim_is_restored(kind: str, start: float) -> None:
    victim = nets.victim(kind, start=start)
    x, y = nets.inputs()
    logits, before = plain(victim, x), state(victim)
    assert len(logits.unique()) > nets.CLASSES  # the network does spike
    for name in STEPWISE + SEQUENTIAL:
        out = query(victim, name, x, y)
        assert torch.equal(out.logits, logits), name
        assert torch.equal(out.loss, cross_entropy(logits, y)), name
        assert torch.isfinite(out.grad).all() and out.grad.shape == x.shape, name
        assert not out.grad.requires_grad and not out.logits.requires_grad, name
        assert state(victim) == before, name
        assert torch.equal(plain(victim, x), logits), name


@pytest.mark.parametrize("name", STEPWISE + SEQUENTIAL)
def test_gradients_are_not_zero_everywhere(name: str) -> None:
    x, y = nets.inputs(16)
    zero = [
        (query(nets.victim(kind), name, x, y).grad.flatten(1) == 0).all(dim=1).double().mean()
        for kind in ("lif-hard", "if-soft")
    ]
    assert max(zero) < 1


@pytest.mark.parametrize("kind", nets.NODES)
def test_stepwise_estimators_agree_in_both_step_modes(kind: str) -> None:
    x, y = nets.inputs(double=True)
    multi = nets.victim(kind, start=0.5, double=True)
    single = nets.victim(kind, start=0.5, double=True, step_mode="s")
    assert torch.equal(plain(single, x), plain(multi, x))
    for name in STEPWISE:
        a, b = query(multi, name, x, y), query(single, name, x, y)
        assert torch.equal(b.logits, a.logits), name
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_layer_rules_refuse_single_step_neurons_with_a_remedy(name: str) -> None:
    x, y = nets.inputs()
    victim = nets.victim("lif-hard", step_mode="s")
    before = state(victim)
    with pytest.raises(ContractError, match=r"whole sequence. Set its step_mode to 'm'"):
        query(victim, name, x, y)
    assert state(victim) == before


@pytest.mark.parametrize("name", STEPWISE + SEQUENTIAL)
@pytest.mark.parametrize("kind", ("lif-hard-decay", "if-soft"))
def test_a_sample_does_not_depend_on_its_batch_mates(kind: str, name: str) -> None:
    if "scope=batch" in name:
        pytest.skip("pools over the batch by definition")
    x, y = nets.inputs(double=True)
    victim = nets.victim(kind, double=True)
    together = query(victim, name, x, y).grad
    alone = torch.cat([query(victim, name, x[i : i + 1], y[i : i + 1]).grad for i in range(len(x))])
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", (*SEQUENTIAL[:4], "hart"))
@pytest.mark.parametrize("kind", ("lif-hard", "plif-hard-decay", "if-soft"))
def test_rate_gradients_are_the_same_at_every_time_step(kind: str, name: str) -> None:
    victim = nets.victim(kind, events=True)
    x, y = nets.inputs(events=True)
    grad = query(victim, name, x, y).grad
    assert grad.abs().max() > 0
    torch.testing.assert_close(
        grad, grad[:, :1].expand_as(grad), rtol=1e-5, atol=1e-7 * float(grad.abs().max())
    )


@pytest.mark.parametrize("name", ("native", "pdsg", "assg", "triangle"))
def test_unrolled_gradients_differ_between_time_steps(name: str) -> None:
    victim = nets.victim("lif-hard", events=True)
    x, y = nets.inputs(events=True)
    grad = query(victim, name, x, y).grad
    assert (grad - grad[:, :1]).abs().max() > 0.01 * grad.abs().max()


@pytest.mark.parametrize("kind", nets.NODES)
def test_reset_option_gives_the_gradient_of_the_other_setting(kind: str) -> None:
    x, y = nets.inputs(double=True)
    victim = nets.victim(kind, double=True)
    grads = {}
    for detach in (True, False):
        for neuron in victim.neurons:
            neuron.module.detach_reset = detach
        grads[detach] = query(victim, "native", x, y).grad
        other = query(victim, f"native(detach_reset={not detach})", x, y).grad
        grads[not detach, "asked"] = other
    assert torch.equal(grads[True, "asked"], grads[True])
    assert torch.equal(grads[False, "asked"], grads[False])
    assert not torch.equal(grads[True], grads[False])


def test_reset_option_needs_a_neuron_that_has_it() -> None:
    victim = nets.victim("own")
    for neuron in victim.neurons:
        del neuron.module.detach_reset
    with pytest.raises(ContractError, match="no attribute `detach_reset`"):
        query(victim, "native(detach_reset=true)", *nets.inputs())


def test_twin_without_a_twin_says_so() -> None:
    victim = nets.victim("if-soft")
    victim.module.twin = None  # type: ignore[assignment]
    with pytest.raises(ContractError, match=r"no method twin\(x\)"):
        query(victim, "twin", *nets.inputs())


def test_twin_gradient_is_the_gradient_of_the_twin() -> None:
    victim = nets.victim("if-soft")
    x, y = nets.inputs()
    leaf = x.clone().requires_grad_(True)
    cross_entropy(victim.module.twin(leaf), y).sum().backward()
    assert torch.equal(query(victim, "twin", x, y).grad, leaf.grad)


def test_mixing_averages_both_gradients() -> None:
    victim = nets.victim("lif-hard")
    x, y = nets.inputs()
    both = query(victim, "native", x, y).grad + query(victim, "hart(gamma=0.5)", x, y).grad
    assert torch.equal(query(victim, "hart_mix(gamma=0.5)", x, y).grad, both / 2)


def test_batch_of_one_and_changing_batches_work_within_one_run() -> None:
    victim = nets.victim("lif-soft-decay")
    x, y = nets.inputs(6)
    for name in STEPWISE + SEQUENTIAL:
        stores: list[dict[str, Any]] = [{} for _ in victim.neurons]
        for rows in ([0, 1, 2, 3, 4, 5], [4, 1], [3], [2, 2, 5]):
            at = torch.tensor(rows)
            memories = [Memory(rows=at, n=6, store=s) for s in stores]
            out = query(victim, name, x[at], y[at], memories=memories)
            assert torch.isfinite(out.grad).all(), name


@pytest.mark.parametrize(
    "name",
    (
        "atan(alpha=0)",
        "triangle(gamma=-1)",
        "sigmoid(alpha=nan)",
        "pdsg(scope=layer)",
        "pdsg(shift=nan)",
        "assg(form=box)",
        "assg(bound=1)",
        "assg(omega=0)",
        "assg(beta_level=1)",
        "assg(floor=0)",
        "assg(start=0)",
        "rga(gamma=2)",
        "rga(saturation=0.5)",
        "bptr(variant=x)",
        "cba(levels=0)",
        "hart(gamma=0)",
        "hart_mix(gamma=inf)",
        "hart(gama=1)",
        "hart(1)",
        "hart(gamma=1",
    ),
)
def test_wrong_parameters_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        registry("estimators").get(name.replace("nan", "1e999-1e999").replace("inf", "1e999"))


def test_a_written_call_sets_parameters() -> None:
    made = registry("estimators").get("atan(alpha=5, detach_reset=true)")
    assert made == registry("estimators").get("atan", alpha=5, detach_reset=True)
    assert isinstance(made, BpttEstimator) and made.detach_reset is True


def affordable() -> list[str]:
    """List the victims that have gradients but the published architectures, which other tests build small."""
    recipes = {name: registry("victims").get(name) for name in registry("victims").names()}
    return [
        name
        for name, recipe in recipes.items()
        if recipe.family != "published" and not recipe.spec().black_box
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim_name", affordable())
def test_forward_is_bit_identical_on_every_registered_victim(victim_name: str) -> None:
    recipe = registry("victims").get(victim_name)
    victim = ModuleVictim(recipe.build(generator("estimators")), recipe.spec())
    x = fingerprint_inputs(victim.spec, 3)
    loss = LOSSES["score"] if victim.spec.task is Task.QUALITY else cross_entropy

    def noise() -> RowStreams | None:
        return RowStreams.derive(range(3), "noise") if victim.spec.stochastic else None

    with torch.no_grad():
        logits = victim.logits(x, noise=noise())
    for name in STEPWISE + SEQUENTIAL:
        estimator = registry("estimators").get(name)
        if estimator.fits(victim.module, victim.neurons) is not None:
            continue
        out = victim.loss_and_grad(x, logits.argmax(dim=1), loss, estimator, noise=noise())
        assert torch.equal(out.logits, logits), name
        assert torch.isfinite(out.grad).all(), name
