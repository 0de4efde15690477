"""Defenses that hide gradients on purpose and protect nothing: flags catch each, and no number is inflated.

Each is put on the weights of lif_cnn.digits and measured like any defense: PGD under its own surrogate, the
quick ensemble, a black box, random noise, and PGD over the whole domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import pandas as pd
import pytest
from torch import Tensor
from torch import nn

from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import SpikeRule
from robustspike.bench.api import Split
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import find_neurons
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from tests.support.measuring import TENTH
from tests.support.measuring import Attacks
from tests.support.measuring import measured

OWN: Attacks = (("pgd.linf", {"steps": 20}, TENTH),)
CONTROLS: Attacks = (
    ("square.linf", {}, TENTH),
    ("noise", {}, TENTH),
    ("pgd.linf", {"steps": 20}, Fraction(1)),
)
ENSEMBLE: Attacks = (
    ("pgd.linf", {"steps": 20, "estimator": "assg"}, TENTH),
    ("autoattack.snn", {"level": "quick"}, TENTH),
)


class Narrow(SpikeRule):
    """A triangular surrogate of half-width 0.02."""

    def slope(self, u: Tensor) -> Tensor:
        return (1 - u.abs() / 0.02).clamp(min=0) / 0.02


@dataclass(frozen=True)
class SharpSurrogate(DefenseBase):
    """Exchange the surrogate for one so narrow that hardly a neuron has a slope."""

    spec: ClassVar[DefenseSpec] = DefenseSpec(name="sharp", trains=False, source="A trap.")

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        for neuron in find_neurons(module):
            neuron.module.surrogate_function = Narrow()
        return module


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@dataclass(frozen=True)
class LowLeak(DefenseBase):
    """Forget the potential at every step, and measure it in units that keep it far from the threshold."""

    spec: ClassVar[DefenseSpec] = DefenseSpec(name="low_leak", trains=False, source="A trap.")

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        layers: list[nn.Module] = []
        nodes = {id(neuron.module): neuron.module for neuron in find_neurons(module)}
        for layer in module.body:  # type: ignore[union-attr]
            node = nodes.get(id(layer))
            if node is not None:
                node.tau, node.v_threshold = 1.0 + 1e-6, 100.0 * float(node.v_threshold)  # type: ignore
                layers.append(Times(100.0))
            layers.append(layer)
        module.body = nn.Sequential(*layers)
        return module


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * 1e3
        return out


@dataclass(frozen=True)
class SaturatedLogits(DefenseBase):
    """Multiply the logits until cross-entropy has no gradient left."""

    spec: ClassVar[DefenseSpec] = DefenseSpec(name="saturated", trains=False, source="A trap.")

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        return Scaled(module)


class Gate(nn.Module):
    """Let every spike through with probability 1/2."""

    draws_noise = True

    def __init__(self) -> None:
        super().__init__()
        self.noise: RowStreams | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.noise is not None
        return x * (self.noise.uniform((len(x), *x.shape[2:]), dtype=x.dtype).transpose(0, 1) < 0.5)


@dataclass(frozen=True)
class RandomGates(DefenseBase):
    """Drop half of the first layer's spikes at random at test time, and say nothing about it."""

    spec: ClassVar[DefenseSpec] = DefenseSpec(name="gates", trains=False, stochastic=True, source="A trap.")

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        layers = list(module.body)  # type: ignore[arg-type]
        first = next(i for i, layer in enumerate(layers) if hasattr(layer, "surrogate_function"))
        module.body = nn.Sequential(*layers[: first + 1], Gate(), *layers[first + 1 :])
        return module


def hardened(rule: DefenseBase) -> ModuleVictim:
    victim = load_victim("lif_cnn.digits")
    spec = rule.describe(victim.spec)
    return ModuleVictim(rule.transform(victim.module, spec), spec)


@pytest.fixture(scope="module")
def data() -> Split:
    loaded: Split = registry("datasets").get("digits").load("test")[:24]
    return loaded


EVERYTHING: Attacks = (*OWN, *CONTROLS, *ENSEMBLE)


@pytest.fixture(scope="module")
def undefended(data: Split) -> tuple[set[str], pd.Series]:
    return measured(load_victim("lif_cnn.digits"), data, EVERYTHING)


@pytest.mark.parametrize("rule", [SharpSurrogate(), LowLeak()])
def test_a_gain_that_another_surrogate_takes_away_is_flagged_and_not_in_the_table(
    rule: DefenseBase, data: Split, undefended: tuple[set[str], pd.Series]
) -> None:
    flags, row = measured(hardened(rule), data, EVERYTHING)
    plain_flags, plain = undefended
    own_flags, own = measured(hardened(rule), data, OWN)
    assert "surrogate_gap" in flags and "surrogate_gap" not in plain_flags
    assert own["worst_case"] >= row["worst_case"] + 0.35  # what its own surrogate promises
    assert row["worst_case"] <= plain["worst_case"] + 0.05
    assert "single_surrogate" in own_flags  # nothing else was tried


def test_saturated_logits_are_flagged_and_lose_their_rank(
    data: Split, undefended: tuple[set[str], pd.Series]
) -> None:
    flags, row = measured(hardened(SaturatedLogits()), data, (*OWN, *CONTROLS))
    assert {"zero_gradient", "unbounded_attack_fails"} <= flags - undefended[0]
    assert pd.isna(row["rank_low"])


def test_random_gates_without_averaged_gradients_are_flagged_and_lose_their_rank(data: Split) -> None:
    victim = hardened(RandomGates())
    single, averaged = (
        measured(victim, data[:12], (("pgd.linf", {"steps": 5, "draws": draws}, TENTH),)) for draws in (1, 10)
    )
    assert "stochastic_without_eot" in single[0] - averaged[0]
    assert pd.isna(single[1]["rank_low"])
