"""Victims on which no honest number can be measured are refused, and estimators that do not apply to one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any
from typing import ClassVar

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch import nn

from robustspike.bench.api import ContractError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimFailed
from robustspike.bench.api import adapt
from robustspike.bench.api import check_victim
from robustspike.bench.api import joint
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.victim.checks import refusal

X = RowStreams.derive(range(8), "inputs").uniform((1, 8, 8))


def linear(classes: int = 10) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    with torch.no_grad():
        net[1].weight.copy_(RowStreams.derive(range(classes), "weights").normal((64,)) / 8)
        net[1].bias.zero_()
    return net


def victim(module: nn.Module, classes: int = 10, **options: Any) -> ModuleVictim:
    return wrap(module, name="mine", shape=(1, 8, 8), classes=classes, **options)


class Before(nn.Module):
    """A layer before a linear classifier."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.net = first, linear()

    def forward(self, x: Tensor) -> Any:
        return self.net(self.first(x))


class Centred(nn.Module):
    """Takes a little of the batch's mean off: four samples hardly move, one is its own mean."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x - self.share * x.mean(dim=0, keepdim=True)


class FirstMate(nn.Module):
    """Scales by the batch's first sample, which itself moves by nothing that the others do."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x[:1].amax()


@pytest.mark.parametrize(
    "first", [nn.BatchNorm2d(1, track_running_stats=False), Centred(0.5), Centred(1e-3), FirstMate()]
)
@pytest.mark.parametrize("given", [None, 1, 4])
def test_a_victim_whose_rows_depend_on_each_other_is_refused(first: nn.Module, given: int | None) -> None:
    with pytest.raises(ContractError, match="batch mates"):
        check_victim(victim(Before(first)), None if given is None else X[:given])


def test_batch_normalisation_with_running_statistics_is_no_dependence() -> None:
    check_victim(victim(Before(nn.BatchNorm2d(1))), X)


class Leaks(nn.Module):
    """A leaky integrator whose potential of one input is there for the next."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.last: Tensor | None = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        before, self.last = self.last, x.detach().clone()
        if self.how == "buffer":
            self.calls += 1
            return x
        return x if before is None or before.shape != x.shape else x + 0.5 * before


@pytest.mark.parametrize(("how", "message"), [("potential", "two calls"), ("buffer", r"calls' in its state")])
def test_a_state_that_leaks_is_refused(how: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_victim(victim(Before(Leaks(how))), X)


def test_a_state_that_only_another_input_shows_is_refused() -> None:
    class Caches(nn.Module):
        kept: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.kept is None or not torch.equal(self.kept, x):
                out, self.kept = (x if self.kept is None else 0.9 * x), x.detach().clone()
                return out
            return x

    with pytest.raises(ContractError, match="two calls"):
        check_victim(victim(Before(Caches())), X)


def test_an_input_changed_in_place_is_refused() -> None:
    class Clamps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x.clamp_(max=0.5)
            return x

    with pytest.raises(ContractError, match="changes its input in place"):
        check_victim(victim(Before(Clamps())), X)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_in_one_line_that_names_it(kind: torch.dtype) -> None:
    with pytest.raises(ContractError, match=f"parameter '1.weight' is {kind}.*float\\(\\)"):
        check_victim(victim(linear().to(kind)), X)


def test_double_precision_takes_float32_inputs_and_gives_their_gradient() -> None:
    double, single = victim(linear().double()), victim(linear())
    check_victim(double, X)
    assert double.logits(X).dtype == torch.float64
    assert torch.allclose(double.logits(X).float(), single.logits(X), atol=1e-6)


@pytest.mark.parametrize(
    ("module", "classes", "message"),
    [
        (linear(1), 1, "2 or more classes, this one has 1"),
        (Before(nn.Identity()), 3, r"expected logits \[4, 3\], got \[4, 10\]"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(module: nn.Module, classes: int, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_victim(victim(module, classes), X)


@pytest.mark.parametrize("give", [lambda out: (out, out), lambda out: {"logits": out}, lambda out: None])
def test_outputs_that_are_no_tensor_are_refused(give: Any) -> None:
    class Wraps(Before):
        def forward(self, x: Tensor) -> Any:
            return give(super().forward(x))

    with pytest.raises(ContractError, match=r"expected logits \[4, 10\], got a (tuple|dict|NoneType)"):
        check_victim(victim(Wraps(nn.Identity())), X)


def test_an_exception_of_the_network_names_the_victim() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise LookupError("no table")

    with pytest.raises(VictimFailed, match="victim 'mine': its forward pass raised LookupError: no table"):
        check_victim(victim(Before(Breaks())), X)


def test_wrap_leaves_a_network_in_training_as_it_was() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), neuron.LIFNode(), nn.Linear(32, 10)).train()
    loss = nn.functional.cross_entropy(net(X), torch.zeros(8, dtype=torch.int64))  # leaves a potential
    before = net[2].v
    wrapped = victim(net)
    check_victim(wrapped, X)
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert net[2].v is before
    loss.backward()
    assert net[1].weight.grad is not None
    answer = wrapped.logits(X)
    with torch.no_grad():
        net[3].weight.zero_()
    assert torch.equal(wrapped.logits(X), answer)


def test_wrap_without_a_copy_freezes_the_module_itself() -> None:
    net = linear().train()
    wrapped = victim(net, copy=False)
    assert wrapped.module is net and not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_what_cannot_be_copied_is_told_with_the_way_out() -> None:
    net = linear()
    net.lock = threading.Lock()
    with pytest.raises(ContractError, match="copy=False"):
        victim(net)
    assert victim(net, copy=False).module is net


def test_a_victim_made_in_inference_mode_is_copied_out_of_it_or_refused() -> None:
    with torch.inference_mode():
        net = linear()
    check_victim(victim(net), X)
    with pytest.raises(ContractError, match="inference_mode"):
        victim(net, copy=False)
    with torch.inference_mode():
        check_victim(victim(linear()), X.clone())


def test_threads_take_turns_and_get_the_answers_of_one_thread() -> None:
    shared = load_victim("lif_cnn.digits")
    data = registry("datasets").get("digits").load("test")[:16]
    estimators = [registry("estimators").get(name) for name in ("native", "atan(alpha=10)", "pdsg")]

    def gradient(rule: GradientEstimator) -> Tensor:
        return shared.loss_and_grad(data.x, data.y, nn.CrossEntropyLoss(reduction="none"), rule).grad

    expected = [gradient(rule) for rule in estimators]
    wrong: list[int] = []

    def repeat(place: int) -> None:
        for _ in range(4):
            if not torch.equal(gradient(estimators[place]), expected[place]):
                wrong.append(place)

    threads = [threading.Thread(target=repeat, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def spiking(node: nn.Module, mode: str = "m") -> ModuleVictim:
    net = nn.Sequential(layer.Flatten(), layer.Linear(64, 32), node, layer.Linear(32, 10))
    for place, part in enumerate((net[1], net[3])):
        with torch.no_grad():
            part.weight.copy_(RowStreams.derive(range(len(part.weight)), place).normal(part.weight.shape[1:]))
    functional.set_step_mode(net, mode)
    time = "repeat" if mode == "m" else "loop"
    return adapt(net, name="mine", shape=(1, 8, 8), classes=10, steps=4, time=time)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_neurons_with_more_than_one_spike_a_step_are_refused_by_rules_of_one(mode: str) -> None:
    many = spiking(neuron.ILIFNode(), mode)
    assert refusal(many, registry("estimators").get("native")) is None
    for name in ("pdsg", "atan(alpha=5)", "assg"):
        assert refusal(many, registry("estimators").get(name)) is not None


@dataclass(frozen=True)
class Rounds(GradientEstimator):
    """Changes the forward pass a little."""

    name: ClassVar[str] = "rounds"

    def loss_and_grad(self, module: Any, call: Any, x: Tensor, loss: Any, **rest: Any) -> Any:
        return super().loss_and_grad(module, lambda inputs: call(inputs) + 2.0**-10, x, loss, **rest)


def test_an_estimator_that_changes_the_forward_pass_is_refused() -> None:
    reason = refusal(load_victim("lif_cnn.digits"), Rounds())
    assert reason is not None and "the logits move by up to 0.0009" in reason


def test_a_reset_that_cannot_be_switched_is_a_refusal() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v_threshold = 1.0
            self.surrogate_function = registry("estimators").get("atan").rule(None, None)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.surrogate_function(x - self.v_threshold)
            return out

    own = spiking(Own())
    switched = registry("estimators").get("native(detach_reset=true)")
    assert "no attribute `detach_reset`" in str(refusal(own, switched))
    assert refusal(own, registry("estimators").get("native")) is None
    assert refusal(spiking(neuron.LIFNode()), switched) is None
    assert "no spiking neurons" in str(refusal(load_victim("ann_cnn.digits"), switched))


class Twice(nn.Module):
    """Answer with the mean over two copies of an image, in one batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(torch.cat([x, x], dim=1))
        return (out[:, : x.shape[1]] + out[:, x.shape[1] :]) / 2


def test_an_estimator_that_remembers_samples_is_refused_where_neurons_see_copies_of_them() -> None:
    inner = nn.Sequential(layer.Flatten(), layer.Linear(64, 32), neuron.LIFNode(), layer.Linear(32, 10))
    functional.set_step_mode(inner, "m")
    copies = adapt(Twice(inner), name="twice", shape=(1, 8, 8), classes=10, steps=4, time="repeat")
    reason = str(refusal(copies, registry("estimators").get("assg")))
    assert "it remembers each sample, and neuron" in reason and "sees 4 inputs for 2 samples" in reason
    for name in ("native", "atan(alpha=5)", "pdsg"):
        assert refusal(copies, registry("estimators").get(name)) is None


def test_a_joint_victim_needs_an_estimator_that_applies_to_every_member() -> None:
    both = joint(load_victim("lif_cnn.digits"), load_victim("ann_cnn.digits"))
    assert "no spiking neurons" in str(refusal(both, registry("estimators").get("pdsg")))
    assert refusal(both, registry("estimators").get("native")) is None
    assert refusal(both.members[0], registry("estimators").get("pdsg")) is None


@pytest.mark.parametrize("name", ["lif_cnn.digits", "qcfs_cnn.digits", "poisson_cnn.digits"])
def test_every_estimator_that_says_it_fits_a_shipped_victim_does(name: str) -> None:
    shipped = load_victim(name)
    for estimator in registry("estimators").names():
        rule = registry("estimators").get(estimator)
        assert refusal(shipped, rule) == rule.fits(shipped.module, shipped.neurons)
