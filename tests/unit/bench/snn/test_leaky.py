"""Plain nodes run in place: the node's own spikes bit for bit, and the gradient of the unrolled steps."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor

from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron
from robustspike.bench.api import SpikeRule
from robustspike.bench.api import Step
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.bench.snn import fast_lif as leaky
from robustspike.bench.snn.neurons import FunctionRule

NODES = {
    f"{kind}-{reset}-{decay}-{detach}": (kind, reset, decay, detach)
    for kind in ("lif", "if")
    for reset in (0.0, -0.25, None)
    for decay in ((True, False) if kind == "lif" else (False,))
    for detach in (True, False)
}


def node_of(kind: str, v_reset: float | None, decay_input: bool, detach: bool):
    settings = {"v_reset": v_reset, "v_threshold": 0.7, "detach_reset": detach, "step_mode": "m"}
    settings["surrogate_function"] = surrogate.ATan()
    if kind == "if":
        return neuron.IFNode(**settings)
    return neuron.LIFNode(tau=3.0, decay_input=decay_input, **settings)


def currents(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 3, 4, 6, generator=generator("leaky"), dtype=dtype) * 1.5


@pytest.fixture(params=NODES.values(), ids=NODES.keys())
def node(request: pytest.FixtureRequest):
    return node_of(*request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spikes_and_potentials_are_the_nodes_own(monkeypatch, node, dtype) -> None:
    monkeypatch.setattr(leaky, "_PIECE", 30)  # several pieces, the last one smaller
    x = currents(dtype)
    node.set_reset_value("v", 0.3)  # converted nets begin above zero
    node.reset()
    node.store_v_seq = True
    expected = node(x)
    potentials = node.v_seq
    node.store_v_seq = False
    node.reset()
    assert 0 < int(expected.sum()) < expected.numel()
    spikes, after = leaky.traced(node, x)
    assert torch.equal(spikes, expected) and torch.equal(after, potentials)
    with leaky.in_place([node]):
        assert torch.equal(node(x), expected)
    begun, rest = x.clone()[2:], potentials[1].clone()
    leaky.run(node, begun, rest, out=begun)  # from the middle, over the currents themselves
    assert torch.equal(begun, expected[2:])


@pytest.mark.parametrize("name", ["pdsg", "assg", "triangle"])
def test_gradient_is_that_of_the_unrolled_steps(node, name) -> None:
    rule = registry("estimators").get(name)

    def gradient(nodes) -> tuple[Tensor, Tensor]:
        node.reset()
        leaf = currents().requires_grad_(True)
        wrapped = Neuron(name="node", index=0, module=node)
        memory = Memory(rows=torch.arange(3), n=3)
        with rule.installed([wrapped], [memory]), leaky.in_place(nodes):
            spikes = node(leaf)
            weight = torch.randn(spikes.shape, generator=generator("weight"), dtype=spikes.dtype)
            return spikes.detach(), torch.autograd.grad((spikes * weight).sum(), leaf)[0]

    (spikes, grad), (expected_spikes, expected) = gradient([node]), gradient([])
    assert torch.equal(spikes, expected_spikes)
    assert bool((expected != 0).any())
    if node.detach_reset:
        assert torch.equal(grad, expected)
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("alpha", [2.0, 3.0])
def test_a_nodes_own_atan_gradient_is_the_same_bit_for_bit(node, alpha: float) -> None:
    node.surrogate_function = surrogate.ATan(alpha)

    def gradient(nodes) -> tuple[Tensor, Tensor]:
        node.reset()
        leaf = currents(torch.float32).requires_grad_(True)
        with leaky.in_place(nodes):
            spikes = node(leaf)
        weight = torch.randn(spikes.shape, generator=generator("weight"))
        return spikes.detach(), torch.autograd.grad((spikes * weight).sum(), leaf)[0]

    for mine, own in zip(gradient([node]), gradient([]), strict=True):
        assert torch.equal(mine, own) and bool((own != 0).any())


def test_training_runs_plain_nodes_in_place_unless_the_rule_differentiates_a_gradient() -> None:
    net = registry("victims").get("lif_cnn.digits").build(generator("net")).train()
    x, y = torch.rand(8, 1, 8, 8, generator=generator("x")), torch.arange(8)
    names: dict[bool, set[str]] = {}
    gradients = {}
    for second_order in (False, True):
        step = Step(net, x, y, generator("step"), 0, _loss, second_order=second_order)
        loss, logits = step.loss(x, y)
        names[second_order] = _graph(logits)
        gradients[second_order] = torch.autograd.grad(loss, list(net.parameters()))
    assert "_SequenceBackward" in names[False] and "_SequenceBackward" not in names[True]
    assert all(torch.equal(a, b) for a, b in zip(gradients[False], gradients[True], strict=True))


def _loss(net, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    logits = net(x)
    return torch.nn.functional.cross_entropy(logits, y), logits


def _graph(value: Tensor) -> set[str]:
    """Return the names of the functions that a value was made by."""
    found, todo = {}, [value.grad_fn]
    while todo:
        function = todo.pop()
        if function is not None and function not in found:
            found[function] = function.name()
            todo += [inner for inner, _ in function.next_functions]
    return set(found.values())


class Counting(SpikeRule):
    """A rule that notes how often it is asked, so it must be asked every step."""

    calls = 0

    def forward(self, u: Tensor) -> Tensor:
        self.calls += 1
        return (u >= 0).to(u.dtype)


def test_what_is_not_plain_is_left_to_the_node(monkeypatch) -> None:
    node = node_of("lif", 0.0, True, True)
    node.surrogate_function = Counting()
    with torch.no_grad(), leaky.in_place([node]):
        node(currents())
    assert node.surrogate_function.calls == 5
    by_channel = node_of("lif", 0.0, True, True)
    by_channel.v_threshold = torch.full((7, 1), 0.7)
    assert leaky.is_plain(node) and not leaky.is_plain(by_channel)
    assert not leaky.is_plain(neuron.LIFNode())

    class Own(neuron.LIFNode):
        pass

    assert not leaky.is_plain(Own(step_mode="m"))
    begun = node_of("lif", 0.0, True, True)
    begun.surrogate_function = FunctionRule(torch.ones_like)
    expected = begun(currents())  # leaves its state behind
    with leaky.in_place([begun]):
        later = begun(currents())
    assert not torch.equal(later, expected)


@pytest.mark.parametrize(("learns", "detached"), [(True, True), (False, False), (False, True)])
def test_a_plif_node_that_learns_or_whose_reset_is_differentiated_keeps_its_own_code(
    learns: bool, detached: bool
) -> None:
    node = neuron.ParametricLIFNode(2.7, step_mode="m", detach_reset=detached).requires_grad_(learns)
    with leaky.in_place([node]):
        spikes = node(currents().float().requires_grad_(True))
    assert ("_SequenceBackward" in _graph(spikes.sum())) == (not learns and detached)
