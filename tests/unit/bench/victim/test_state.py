"""Whatever changes a victim is seen, and what can be put back is put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import find_neurons
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.victim.state import Pristine
from robustspike.bench.victim.state import build_of


def scale(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).mul_(0.5)


def behind_the_version(module: nn.Module) -> None:
    next(module.parameters()).data.mul_(0.5)


def exchange_weights(module: nn.Module) -> None:
    for child in module.modules():
        if "weight" in child._parameters:
            child.weight = nn.Parameter(torch.zeros_like(child.weight))  # type: ignore[arg-type]
            return


def statistics(module: nn.Module) -> None:
    next(b for b in module.buffers() if b.is_floating_point()).add_(1)


def hook(module: nn.Module) -> None:
    next(module.children()).register_forward_hook(lambda *_: None)


def method(module: nn.Module) -> None:
    node = find_neurons(module)[0].module
    node.__dict__["forward"] = node.forward


def surrogate(module: nn.Module) -> None:
    find_neurons(module)[0].module.surrogate_function = nn.Hardtanh()


def slope(module: nn.Module) -> None:
    find_neurons(module)[0].module.surrogate_function.alpha = 50.0  # type: ignore[union-attr]


def threshold(module: nn.Module) -> None:
    find_neurons(module)[0].module.v_threshold = 0.5  # type: ignore[assignment]


def detach(module: nn.Module) -> None:
    find_neurons(module)[0].module.detach_reset = False  # type: ignore[assignment]


def mode(module: nn.Module) -> None:
    next(module.children()).train()


def attribute(module: nn.Module) -> None:
    module.steps = 1  # type: ignore[assignment]


BUILDS = (hook, method, surrogate, slope, threshold, detach, mode)
CHANGES = (*BUILDS, scale, behind_the_version, exchange_weights, statistics, attribute)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_victim_is_seen(change: Callable[[nn.Module], None]) -> None:
    victim = load_victim("lif_cnn.digits")
    before = Pristine.of(victim)
    assert before.changed() is None
    change(victim.module)
    assert before.changed() is not None


@pytest.mark.parametrize("change", BUILDS)
def test_hooks_methods_surrogates_and_settings_are_put_back(change: Callable[[nn.Module], None]) -> None:
    victim = load_victim("lif_cnn.digits")
    before, build = Pristine.of(victim), build_of(victim)
    change(victim.module)
    assert build.differs() is not None
    build.restore()
    assert build.differs() is None and before.changed() is None


@pytest.mark.parametrize(
    "name", ["lif_cnn.digits", "plif_cnn.digits", "poisson_cnn.digits", "ttfs_b1.digits"]
)
def test_use_changes_nothing(name: str) -> None:
    victim = load_victim(name)
    before = Pristine.of(victim)
    data = registry("datasets").get("digits").load("test")[:40]
    attack = registry("attacks").get("pgd.linf", steps=2, estimator="triangle")
    evaluate_shard(victim, attack, ThreatModel(), data.x, data.y, data.ids)
    assert before.changed() is None


class Stateful(nn.Module):
    """Keeps its potential in a buffer of the batch's shape, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.calls = 0
        self.register_buffer("v", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.v = torch.zeros(len(x), 3) + self.inner(x)
        return self.v


def test_state_of_the_last_batch_and_counters_are_no_change() -> None:
    victim: ModuleVictim = wrap(Stateful(), name="mine", shape=(4,), classes=3)
    before = Pristine.of(victim)
    victim.logits(torch.rand(7, 4))
    assert before.changed() is None
