"""Spikes found at their spike functions: which, where, and what an exchanged derivative leaves alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import foreign_nets as nets
import pytest
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate
from torch import nn

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import count_synops
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import evaluate
from robustspike.bench.api import joint
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.snn.steps import find_step
from robustspike.bench.victim.sites import Site

DATA = registry("datasets").get("digits").load("test")
X = DATA.x[:8]
STEPWISE = (
    "atan",
    "triangle",
    "triangle(gamma=0.3)",
    "straight_through",
    "pdsg",
    "pdsg(scope=batch)",
    "assg",
)
BOTH_DOORS = ("native", *STEPWISE, "hart", "hart(gamma=0.25)", "hart_mix")


def victim_of(module: nn.Module, steps: int = nets.STEPS) -> ModuleVictim:
    return wrap(module, name="mine", shape=(1, 8, 8), classes=10, steps=steps)


def gradient(victim: ModuleVictim, estimator: str, x: torch.Tensor = X) -> Any:
    with torch.no_grad():
        y = victim.logits(x).argmax(dim=1)
    return victim.loss_and_grad(x, y, cross_entropy, registry("estimators").get(estimator))


def refusal(victim: ModuleVictim, estimator: str) -> str | None:
    return registry("estimators").get(estimator).fits(victim.module, victim.neurons)


@pytest.mark.parametrize("make", nets.WITH_SITES, ids=lambda make: make.__name__)
def test_every_stepwise_estimator_gives_its_derivative_and_leaves_the_forward_alone(
    make: Callable[[], nn.Module],
) -> None:
    victim = victim_of(make())
    expected = victim.logits(X).detach()
    assert [type(n) for n in victim.neurons] == [Site] * nets.LAYERS.get(make, 2)
    own = gradient(victim, "native").grad
    different = 0
    for name in STEPWISE:
        assert refusal(victim, name) is None
        out = gradient(victim, name)
        assert torch.equal(out.logits, expected), name
        assert bool(torch.isfinite(out.grad).all())
        different += not torch.equal(out.grad, own)
    assert different >= len(STEPWISE) - 1  # the network's own surrogate may be among them


def test_asking_for_the_surrogate_that_a_network_has_gives_its_own_gradient() -> None:
    victim = victim_of(nets.WrittenOut())
    assert torch.equal(gradient(victim, "triangle(gamma=1)").grad, gradient(victim, "native").grad)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("options", [{"tau": 2.0}, {"tau": 3.0, "decay_input": False}, {"v_reset": None}])
def test_a_renamed_neuron_answers_as_its_spikingjelly_node_under_every_estimator(
    options: dict[str, Any], detach: bool
) -> None:
    def node() -> neuron.LIFNode:
        return neuron.LIFNode(
            **options, detach_reset=detach, step_mode="m", surrogate_function=surrogate.ATan()
        )

    known, renamed = victim_of(nets.Layered(node)), victim_of(nets.Layered(lambda: nets.Renamed(node())))
    renamed.module.load_state_dict(known.module.state_dict())
    assert not any(isinstance(n, Site) for n in known.neurons)
    assert all(isinstance(n, Site) for n in renamed.neurons)
    for name in BOTH_DOORS:
        assert refusal(renamed, name) is None, name
        one, other = gradient(known, name), gradient(renamed, name)
        assert torch.equal(one.logits, other.logits) and torch.equal(one.grad, other.grad), name


def test_the_verdict_on_a_renamed_neuron_is_that_on_its_node() -> None:
    def node() -> neuron.LIFNode:
        return neuron.LIFNode(step_mode="m", detach_reset=True)

    known, renamed = victim_of(nets.Layered(node)), victim_of(nets.Layered(lambda: nets.Renamed(node())))
    renamed.module.load_state_dict(known.module.state_dict())
    with torch.no_grad():
        y = known.logits(X).argmax(dim=1)
    for estimator in ("pdsg", "hart", "assg"):
        attack = registry("attacks").get("pgd.linf", estimator=estimator, steps=5)
        one, other = (evaluate(victim, attack, X, y, eps="1/10") for victim in (known, renamed))
        assert one.robust == other.robust
        assert torch.equal(one.shards[0].x_adv, other.shards[0].x_adv)


@pytest.mark.parametrize("make", nets.SEQUENCES, ids=lambda make: make.__name__)
def test_cells_that_unroll_time_serve_hart_wherever_they_keep_their_time(
    make: Callable[[], nn.Module],
) -> None:
    victim, reference = victim_of(make()), victim_of(nets.TimeFirst())
    reference.module.load_state_dict(victim.module.state_dict())
    assert torch.allclose(
        gradient(victim, "hart").grad, gradient(reference, "hart").grad, rtol=1e-4, atol=1e-6
    )


def test_a_cell_that_is_called_step_by_step_is_refused_to_hart_with_the_reason() -> None:
    assert "one step a call" in str(refusal(victim_of(nets.StepByStep()), "hart"))


@pytest.mark.parametrize("estimator", ["rga", "bptr", "cba", "native(detach_reset=true)"])
def test_rules_that_need_more_than_a_potential_are_refused_at_a_site(estimator: str) -> None:
    assert "spike function" in str(refusal(victim_of(nets.TimeFirst()), estimator))


@pytest.mark.parametrize("threshold", [0.5, 1.0, 0.123])
def test_the_threshold_is_found_whether_it_is_subtracted_handed_over_or_built_in(threshold: float) -> None:
    u = torch.randn(4, 6, requires_grad=True)
    over = torch.linspace(threshold, 2 * threshold, 6)
    for function, args in (
        (nets.BuiltIn, (u, threshold)),
        (nets.HandedOver, (u, torch.full((6,), threshold))),
        (nets.HandedOver, (u, over)),
    ):
        step = find_step(function.apply, args, function.apply(*args))
        assert step is not None and step.levels == 1
        place = over if args[1] is over else torch.full((6,), threshold)
        assert torch.allclose(step.distance(args), u.detach() - place, atol=1e-5)


def test_thresholds_per_channel_that_no_argument_shows_are_found() -> None:
    over = torch.tensor([0.25, 0.5, 1.5])

    class PerChannel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
            return (u > over).to(u)

    u = torch.randn(5, 3, requires_grad=True)
    step = find_step(PerChannel.apply, (u,), PerChannel.apply(u))
    assert step is not None
    assert torch.allclose(step.distance((u,)), u.detach() - over, atol=1e-4)


def test_a_staircase_is_measured_from_its_nearest_jump() -> None:
    u = torch.linspace(-1, 3, 40).requires_grad_()
    step = find_step(nets.Staircase.apply, (u, 0.5), nets.Staircase.apply(u, 0.5))
    assert step is not None and step.spacing == pytest.approx(0.5, abs=1e-4)
    assert bool((step.distance((u, 0.5))[u > 0.25].abs() <= 0.2501).all())


@pytest.mark.parametrize("function", [nets.OwnRelu, nets.Rounding, nets.Noisy])
def test_what_is_no_step_is_no_site(function: type[torch.autograd.Function]) -> None:
    u = torch.randn(64, requires_grad=True)
    assert find_step(function.apply, (u,), function.apply(u)) is None


@pytest.mark.parametrize("make", nets.WITHOUT_SPIKES, ids=lambda make: make.__name__)
def test_a_network_without_spikes_has_no_sites_and_no_flag(make: Callable[[], nn.Module]) -> None:
    assert victim_of(make(), steps=0).neurons == ()


@pytest.mark.parametrize("make", nets.WITHOUT_SITE, ids=lambda make: make.__name__)
def test_spikes_without_a_site_leave_the_networks_own_gradient_alone_and_are_flagged(
    make: Callable[[], nn.Module],
) -> None:
    victim = victim_of(make())
    assert any(n.refusal for n in victim.neurons)
    for name in STEPWISE:
        assert "spike" in str(refusal(victim, name))
    assert refusal(victim, "native") is None
    with torch.no_grad():
        y = victim.logits(X).argmax(dim=1)
    result = evaluate(victim, registry("attacks").get("autoattack.snn", level="quick"), X, y, eps="1/10")
    assert result.errors == 0
    assert result.shards[0].counts["spikes_without_site"] > 0


def test_the_code_of_an_input_is_not_taken_for_neurons() -> None:
    victim = victim_of(nets.CodedInput())
    assert [n.refusal for n in victim.neurons] == [None]


def test_two_layers_that_share_lines_of_code_are_two_sites() -> None:
    victim = victim_of(nets.LayersInALoop())
    assert [n.name for n in victim.neurons] == ["network", "network#2"]
    twin = victim_of(nets.WrittenOut())
    twin.module.load_state_dict(victim.module.state_dict())
    for name in ("pdsg", "assg"):
        assert torch.equal(gradient(victim, name).grad, gradient(twin, name).grad)


def test_an_interrupted_pass_leaves_every_function_as_it_was() -> None:
    base = torch.autograd.function._SingleLevelFunction
    before, own = torch.autograd.Function.apply.__func__, dict(vars(base))  # type: ignore[attr-defined]
    victim = victim_of(nets.WrittenOut())
    estimator = registry("estimators").get("pdsg")

    def interrupted(_logits: torch.Tensor, _y: torch.Tensor) -> torch.Tensor:
        assert "apply" in vars(base)
        raise KeyboardInterrupt

    victim.neurons  # noqa: B018  (looked at before)
    with pytest.raises(KeyboardInterrupt):
        victim.loss_and_grad(X, torch.zeros(8, dtype=torch.int64), interrupted, estimator)
    assert dict(vars(base)) == own
    assert torch.autograd.Function.apply.__func__ is before  # type: ignore[attr-defined]
    assert not any(module._forward_hooks for module in victim.module.modules())


def test_a_function_called_by_another_thread_during_a_pass_is_its_own() -> None:
    victim = victim_of(nets.WrittenOut())
    u = torch.randn(6, 64, requires_grad=True)
    expected = torch.autograd.grad(nets.Triangle.apply(u, 1.0).sum(), u)[0]
    seen: list[torch.Tensor] = []

    def elsewhere() -> None:
        seen.append(torch.autograd.grad(nets.Triangle.apply(u, 1.0).sum(), u)[0])

    def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return cross_entropy(logits, y)

    y = torch.zeros(8, dtype=torch.int64)
    victim.loss_and_grad(X, y, loss, registry("estimators").get("pdsg"))
    assert torch.equal(seen[0], expected)


def test_two_threads_attack_two_networks_as_one_does_alone() -> None:
    victims = [victim_of(nets.WrittenOut()), victim_of(nets.TimeFirst())]
    alone = [gradient(victim, "pdsg").grad for victim in victims]
    found: dict[int, torch.Tensor] = {}

    def attack(index: int) -> None:
        for _ in range(5):
            found[index] = gradient(victims[index], "pdsg").grad

    threads = [threading.Thread(target=attack, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[index], alone[index]) for index in range(2))


def test_a_batch_of_one_and_batches_of_other_sizes_keep_layers_apart() -> None:
    victim = victim_of(nets.MergedTime())
    every = gradient(victim, "pdsg").grad
    single = torch.cat([gradient(victim, "pdsg", X[i : i + 1]).grad for i in range(len(X))])
    assert torch.allclose(every, single, rtol=1e-3, atol=1e-5)


def test_sites_of_joint_victims_are_exchanged_in_every_member() -> None:
    both = joint(victim_of(nets.WrittenOut()), victim_of(nets.TimeFirst()))
    y = torch.zeros(len(X), dtype=torch.int64)
    loss = lambda logits, _: logits[:, ::10].sum(dim=1)  # noqa: E731  (one logit of each member)
    whole = both.loss_and_grad(X, y, loss, registry("estimators").get("pdsg"))
    assert torch.equal(whole.logits, both.logits(X))
    parts = [m.loss_and_grad(X, y, loss, registry("estimators").get("pdsg")).grad for m in both.members]
    assert torch.allclose(whole.grad, parts[0] + parts[1], atol=1e-6)


@pytest.mark.parametrize("make", nets.WITH_SITES, ids=lambda make: make.__name__)
def test_energy_counts_what_comes_after_a_site_as_events(make: Callable[[], nn.Module]) -> None:
    victim = victim_of(make())
    counts = count_synops(victim, X)
    assert set(counts.rates) == {n.name for n in victim.neurons}
    assert bool((counts.spikes > 0).all()) and bool((counts.ac > 0).all())


def test_energy_of_a_renamed_neuron_is_that_of_its_node() -> None:
    def node() -> neuron.LIFNode:
        return neuron.LIFNode(step_mode="m", surrogate_function=surrogate.ATan())

    known, renamed = victim_of(nets.Layered(node)), victim_of(nets.Layered(lambda: nets.Renamed(node())))
    renamed.module.load_state_dict(known.module.state_dict())
    one, other = (count_synops(victim, X).energy_nj() for victim in (known, renamed))
    assert torch.equal(one, other)
