"""Networks of other libraries as victims: state, neurons, gradients, and what is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from robustspike.bench.api import Access
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import Domain
from robustspike.bench.api import RowStreams
from robustspike.bench.api import SpikeRule
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import adapt
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.testing.victim_checks import VICTIM_CHECKS
from robustspike.leaderboard.flags import declared_flags

snntorch = pytest.importorskip("snntorch")
X = registry("datasets").get("digits").load("test").x[:12]


def seeded(module: nn.Module, gain: float = 3.0) -> nn.Module:
    rng = generator("adapters")
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, gain / parameter[0].numel() ** 0.5, generator=rng)
    return module


class SnnTorchNet(nn.Module):
    """The usual tutorial network: state made in forward(), spikes and potentials of all steps returned."""

    def __init__(self, hidden: bool = False, **neuron: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 40)
        self.lif1 = snntorch.Leaky(beta=0.8, init_hidden=hidden, **neuron)
        self.fc2 = nn.Linear(40, 10)
        self.lif2 = snntorch.Leaky(beta=0.8, init_hidden=hidden, output=hidden, **neuron)
        self.hidden = hidden

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spikes, potentials = [], []
        if not self.hidden:
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        for _ in range(6):
            if self.hidden:
                spike, mem2 = self.lif2(self.fc2(self.lif1(self.fc1(x.flatten(1)))))
            else:
                spike, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
                spike, mem2 = self.lif2(self.fc2(spike), mem2)
            spikes.append(spike)
            potentials.append(mem2)
        return torch.stack(spikes), torch.stack(potentials)


@pytest.mark.parametrize("hidden", [False, True])
def test_snntorch_net_keeps_the_victim_contract(hidden: bool) -> None:
    victim = adapt(seeded(SnnTorchNet(hidden)), name="snn", shape=(1, 8, 8), classes=10, steps=6)
    assert [n.name for n in victim.neurons] == ["network.lif1", "network.lif2"]
    assert [(n.threshold, round(n.leak, 6), n.gain) for n in victim.neurons] == [(1.0, 0.8, 1.0)] * 2
    for check in VICTIM_CHECKS.values():
        check(victim)


@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
def test_snntorch_net_answers_as_it_did_before_and_under_every_surrogate(mechanism: str) -> None:
    net = seeded(SnnTorchNet(reset_mechanism=mechanism))
    with torch.no_grad():
        expected = copy.deepcopy(net)(X)[0].mean(dim=0)
    victim = adapt(net, name="snn", shape=(1, 8, 8), classes=10, steps=6)
    y = expected.argmax(dim=1)
    grads = {}
    for name in ("native", "atan", "triangle", "pdsg"):
        out = victim.loss_and_grad(X, y, cross_entropy, registry("estimators").get(name))
        assert torch.equal(out.logits, expected), name
        grads[name] = out.grad
    assert not torch.equal(grads["native"], grads["triangle"])


def test_snntorch_neuron_that_sits_on_its_threshold_does_not_fire_under_another_rule_either() -> None:
    class Fire(SpikeRule):
        def slope(self, u: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(u)

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), snntorch.Leaky(beta=0.5, init_hidden=True))
    seeded(net)
    victim = adapt(net, name="snn", shape=(1, 8, 8), classes=10, steps=1, time="loop")
    node = victim.neurons[0]
    on_it = torch.tensor([1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)), 0.5])
    own = node.module.fire(on_it)
    with node.spiking_by(Fire()):
        assert node.module.fire(on_it).tolist() == own.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("time", ["repeat", "loop"])
def test_spikingjelly_net_answers_alike_in_both_step_modes(time: str) -> None:
    from spikingjelly.activation_based import functional

    shipped = load_victim("lif_cnn.digits")
    expected = shipped.logits(X).detach()
    body = shipped.module.body
    functional.set_step_mode(body, "m" if time == "repeat" else "s")
    victim = adapt(body, name="sj", shape=(1, 8, 8), classes=10, steps=4, time=time)  # type: ignore[arg-type]
    assert torch.allclose(victim.logits(X).detach(), expected, atol=1e-6)
    assert len(victim.neurons) == 2
    for check in VICTIM_CHECKS.values():
        check(victim)


def test_spikingjelly_model_zoo_net_is_a_victim() -> None:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate
    from spikingjelly.activation_based.model import parametric_lif_net

    net = parametric_lif_net.MNISTNet(
        channels=4, spiking_neuron=neuron.LIFNode, surrogate_function=surrogate.ATan(), detach_reset=True
    )
    functional.set_step_mode(seeded(net, gain=6.0), "m")
    victim = adapt(
        net, name="zoo", shape=(1, 28, 28), classes=10, steps=4, time="repeat", mean=(0.13,), std=(0.31,)
    )
    assert len(victim.neurons) == 4
    x = torch.rand(3, 1, 28, 28, generator=generator("x"))
    y = victim.logits(x).argmax(dim=1)
    grad = victim.loss_and_grad(x, y, cross_entropy, registry("estimators").get("atan")).grad
    assert grad.shape == x.shape and bool((grad != 0).any())


class Remembers(nn.Module):
    """A plain network that keeps its potential in an attribute, in a list, or in a buffer in place."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.where = where
        self.past: list[torch.Tensor] = []
        self.register_buffer("potential", torch.zeros(1, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        current = self.fc(x.flatten(1))
        if self.where == "attribute":
            self.v = getattr(self, "v", torch.zeros_like(current)) + current
            return self.v
        if self.where == "list":
            self.past.append(current)
            return torch.stack(self.past).sum(dim=0)
        self.potential.add_(current.detach().mean(dim=0, keepdim=True)[:, :1] * 0 + 1)
        return current * self.potential.clone()


@pytest.mark.parametrize("where", ["attribute", "list", "buffer"])
def test_state_of_plain_torch_modules_is_found_and_put_back(where: str) -> None:
    bare = seeded(Remembers(where))
    with torch.no_grad():
        assert not torch.equal(bare(X), bare(X))
    victim = adapt(seeded(Remembers(where)), name="plain", shape=(1, 8, 8), classes=10)
    assert torch.equal(victim.logits(X), victim.logits(X))


def test_a_given_reset_is_called_instead_of_the_ones_found() -> None:
    calls: list[nn.Module] = []
    net = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    victim = adapt(net, name="plain", shape=(1, 8, 8), classes=10, clear=calls.append)
    before = len(calls)
    victim.logits(X)
    assert calls[before:] == [victim.module.network]


def test_state_hidden_outside_the_module_is_refused() -> None:
    memory: list[float] = []

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            memory.append(1.0)
            return self.fc(x.flatten(1)) * len(memory)

    with pytest.raises(ContractError, match="two calls"):
        adapt(seeded(Hidden()), name="hidden", shape=(1, 8, 8), classes=10)


def test_neuron_without_a_graph_in_evaluation_mode_is_refused() -> None:
    class Detached(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if self.training else x.detach()

    net = seeded(nn.Sequential(nn.Flatten(), Detached(), nn.Linear(64, 10)))
    with pytest.raises(ContractError, match="gradient"):
        adapt(net, name="detached", shape=(1, 8, 8), classes=10)


def test_normalisation_happens_inside_so_that_budgets_stay_in_pixels() -> None:
    net = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    inside = adapt(net, name="n", shape=(1, 8, 8), classes=10, mean=(0.2,), std=(0.4,))
    with torch.no_grad():
        assert torch.allclose(inside.logits(X), net((X - 0.2) / 0.4), atol=1e-6)
    y = torch.zeros(len(X), dtype=torch.int64)
    native = registry("estimators").get("native")
    outside = adapt(net, name="n", shape=(1, 8, 8), classes=10)
    ratio = inside.loss_and_grad(X, y, lambda z, t: z.sum(dim=1), native).grad / (
        outside.loss_and_grad(X, y, lambda z, t: z.sum(dim=1), native).grad
    )
    assert torch.allclose(ratio, torch.full_like(ratio, 2.5), rtol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"time": "loop"}, {"time": "backwards", "steps": 4}, {"mean": (0.1,)}, {"mean": (0.1,), "std": (0.0,)}],
)
def test_parameters_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="adapt 'n'"):
        adapt(nn.Linear(64, 10), name="n", shape=(1, 8, 8), classes=10, **wrong)


def test_an_output_that_is_no_logits_is_named() -> None:
    with pytest.raises(ContractError, match="readout"):
        adapt(nn.Flatten(0), name="n", shape=(1, 8, 8), classes=10)


def test_a_network_is_copied_and_keeps_its_mode_and_gradients() -> None:
    net = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).train()
    adapt(net, name="n", shape=(1, 8, 8), classes=10)
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_spikingjellys_step_mode_is_set_as_time_asks() -> None:
    from spikingjelly.activation_based import layer
    from spikingjelly.activation_based import neuron

    net = seeded(nn.Sequential(layer.Flatten(), layer.Linear(64, 32), neuron.LIFNode(), layer.Linear(32, 10)))
    answers = []
    for time in ("repeat", "loop", "auto"):
        victim = adapt(net, name="sj", shape=(1, 8, 8), classes=10, steps=4, time=time)  # type: ignore[arg-type]
        assert victim.neurons[0].is_multi_step is (time != "loop")
        answers.append(victim.logits(X))
    assert torch.allclose(answers[0], answers[1], atol=1e-5) and torch.equal(answers[0], answers[2])
    assert net[2].step_mode == "s"


@pytest.mark.parametrize("time", ["time-first", "loop"])
def test_events_go_in_time_first_or_a_step_a_call(time: str) -> None:
    from spikingjelly.activation_based import layer
    from spikingjelly.activation_based import neuron

    net = seeded(
        nn.Sequential(layer.Flatten(), layer.Linear(128, 16), neuron.LIFNode(), layer.Linear(16, 10))
    )
    victim = adapt(
        net,
        name="e",
        shape=(5, 2, 8, 8),
        classes=10,
        time=time,
        domain=Domain.SPIKES,  # type: ignore[arg-type]
    )
    x = (torch.rand(4, 5, 2, 8, 8, generator=generator("events")) > 0.5).float()
    v, out = torch.zeros(4, 16), torch.zeros(4, 10)
    for step in x.unbind(1):
        v = v + (net[1](step.flatten(1)) - v) / 2
        spikes = (v >= 1).float()
        v, out = v * (1 - spikes), out + net[3](spikes)
    assert torch.allclose(victim.logits(x), out / 5, atol=1e-5)
    assert victim.spec.steps == 5


def test_a_network_that_writes_into_its_input_does_no_harm() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.clamp_(0.2, 0.8).flatten(1))

    victim = adapt(seeded(Writes()), name="w", shape=(1, 8, 8), classes=10)
    x = X.clone()
    assert torch.equal(victim.logits(x), victim.logits(x)) and torch.equal(x, X)


class Poisson(nn.Module):
    """A rate code drawn by torch's own generator."""

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.steps = steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        drawn = (torch.rand(self.steps, *x.shape) < x).to(x).mean(0) if self.steps else None
        code = torch.bernoulli(x) if drawn is None else drawn
        return self.fc((x + (code - x).detach()).flatten(1))


@pytest.mark.parametrize("steps", [0, 4])
def test_draws_of_the_network_come_from_a_stream_for_each_sample(steps: int) -> None:
    net = seeded(Poisson(steps))
    victim = adapt(net, name="p", shape=(1, 8, 8), classes=10, steps=steps, stochastic=True)
    state = torch.get_rng_state()
    streams = RowStreams.derive(range(12), "draws")
    every = victim.logits(X, noise=streams.fork("a"))
    rows = torch.tensor([7, 3])
    alone = victim.logits(X[rows], noise=streams.fork("a", rows=rows))
    assert torch.allclose(every[rows], alone, atol=1e-5)
    assert not torch.equal(every, victim.logits(X, noise=streams.fork("b")))
    assert torch.equal(state, torch.get_rng_state())
    for check in VICTIM_CHECKS.values():
        check(victim)


def test_undeclared_draws_are_refused_with_the_remedy() -> None:
    with pytest.raises(ContractError, match="stochastic=True"):
        adapt(seeded(Poisson()), name="p", shape=(1, 8, 8), classes=10)


def test_draws_that_no_stream_stands_in_for_are_named() -> None:
    class Other(Poisson):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc((x + torch.empty_like(x).normal_()).flatten(1))

    with pytest.raises(ContractError, match="draws by normal_"):
        adapt(seeded(Other()), name="p", shape=(1, 8, 8), classes=10, stochastic=True)


class CutInEvaluation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.fc(x.flatten(1))).relu()
        return self.out(h if self.training else h.detach())


def test_a_gradient_that_is_cut_in_evaluation_mode_is_offered_its_remedy_and_noted() -> None:
    net = seeded(CutInEvaluation())
    with pytest.raises(ContractError, match="training_neurons=True"):
        adapt(net, name="cut", shape=(1, 8, 8), classes=10)
    victim = adapt(net, name="cut", shape=(1, 8, 8), classes=10, training_neurons=True)
    assert not victim.module.network.norm.training and victim.module.network.training
    assert "training mode" in victim.spec.notes[0]
    declared = {"declared": {"notes": victim.spec.notes}}
    record: Any = SimpleNamespace(parameters=declared, threat=ThreatModel(access=Access.LABEL))
    assert declared_flags([record]) == {"neurons_in_training_mode"}


def test_a_node_class_without_a_step_mode_is_no_error() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v_threshold = 1.0
            self.surrogate_function = registry("estimators").get("atan").rule(None, None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.surrogate_function(x - self.v_threshold)

    Odd.__name__ = "LIFNode"
    Odd.__module__ = "spikingjelly.elsewhere"
    victim = adapt(
        seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Odd())), name="o", shape=(1, 8, 8), classes=10
    )
    assert [n.refusal for n in victim.neurons] == [None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"time": "time-first"}, "is for events"),
        ({"time": "repeat", "domain": "spikes", "shape": (3, 1, 8, 8)}, "is for images"),
        ({"mean": (0.1, 0.2), "std": (1.0, 1.0)}, "2 values, but inputs"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(given: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"shape": (1, 8, 8), "steps": 4} | given
    if "domain" in settings:
        settings["domain"] = Domain(settings["domain"])
    with pytest.raises(ConfigError, match=message):
        adapt(nn.Linear(64, 10), name="n", classes=10, **settings)
