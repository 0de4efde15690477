"""Deliberately broken victims: each raises its flag or is refused; a healthy one raises none."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from fractions import Fraction
from typing import Any
from typing import ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ContractError
from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import SpikeRule
from robustspike.bench.api import Split
from robustspike.bench.api import Task
from robustspike.bench.api import check_victim
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.record.flags import SURROGATE_GAP
from robustspike.bench.training.weights import find_weights
from robustspike.leaderboard.flags import surrogate_gap
from robustspike.leaderboard.sections import build
from tests.support.measuring import SMALL
from tests.support.measuring import TENTH
from tests.support.measuring import Attacks
from tests.support.measuring import cell
from tests.support.measuring import measured

N = 40


@pytest.fixture(scope="module")
def data() -> Split:
    loaded: Split = registry("datasets").get("digits").load("test")[:N]
    return loaded


@pytest.mark.parametrize("name", ["lif_cnn.digits", "qcfs_cnn.digits", "ann_cnn.digits"])
def test_healthy_victims_raise_no_flag(name: str, data: Split) -> None:
    flags, row = measured(load_victim(name), data)
    assert flags == set()
    assert row["rank_low"] == 1


LONGER: Attacks = (
    ("pgd.linf", {"steps": 20}, TENTH),
    ("pgd.linf", {"steps": 20, "estimator": "atan(alpha=5)"}, TENTH),
    *SMALL[2:],
)
"""Ten steps are flagged as too few where many samples stand, and a surrogate with a bounded window as one
without a gradient where no potential falls into it: rightly, but whom they meet hangs on rounding."""

FLIPS: Attacks = (
    ("sda.l0", {}, None),
    ("rounded_pgd.l0", {}, None),
    ("flip.random", {}, None),
)
"""The same for binary event frames, where no budget is the check."""

COUNTS: Attacks = (("sda.l0", {}, None), ("scg.l0", {}, None), ("count.random", {}, None))
"""The same for event counts."""


def shipped() -> list[str]:
    """List the classifiers whose data and weights install with the package."""
    victims = registry("victims")
    recipes = [(name, victims.get(name)) for name in victims.names()]
    return [
        name
        for name, recipe in recipes
        if not recipe.data().needs_root
        and recipe.spec().task is Task.CLASSIFY
        and find_weights(recipe, "none", 0, None) is not None
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_no_shipped_victim_raises_a_flag(name: str) -> None:
    victim = load_victim(name)
    attacks = {Domain.STATIC: LONGER, Domain.SPIKES: FLIPS, Domain.EVENTS: COUNTS}[victim.spec.domain]
    data = registry("victims").get(name).data().load("test")[: N if attacks is LONGER else 12]
    flags, _ = measured(victim, data, attacks)
    assert flags <= ({"unconfirmed"} if victim.spec.stochastic else set())


class _Dead(SpikeRule):
    def slope(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


class _Needle(SpikeRule):
    def slope(self, u: Tensor) -> Tensor:
        return (u.abs() < 1e-6).to(u.dtype)


@pytest.mark.parametrize("rule", [_Dead, _Needle])
def test_a_zero_or_too_sharp_gradient_is_flagged(rule: type[SpikeRule], data: Split) -> None:
    victim = load_victim("lif_cnn.digits")
    for found in victim.neurons:
        found.module.surrogate_function = rule()
    flags, row = measured(victim, data)
    assert {"zero_gradient", "unbounded_attack_fails"} <= flags
    assert pd.isna(row["rank_low"])


class _Saturated(nn.Module):
    """Logits so large that cross-entropy has no gradient left."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) * 1e4
        return out


def test_saturated_logits_are_flagged(data: Split) -> None:
    victim = load_victim("ann_cnn.digits")
    flags, _ = measured(ModuleVictim(_Saturated(victim.module), victim.spec), data)
    assert flags & {"zero_gradient", "unbounded_attack_fails", "black_box_beats_white_box"}


class _Shattered(nn.Module):
    """Adds a fast, tiny wave to the logits: the gradient points anywhere, the answer hardly moves."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.directions = RowStreams.derive([0], "waves").sign((64, 10))[0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + 0.05 * torch.sin(1e4 * x.flatten(1) @ self.directions)
        return out


def test_shattered_gradients_are_flagged(data: Split) -> None:
    victim = load_victim("ann_cnn.digits")
    flags, _ = measured(ModuleVictim(_Shattered(victim.module), victim.spec), data)
    assert "shattered_gradient" in flags


def test_a_dead_layer_is_named(data: Split) -> None:
    victim = load_victim("lif_cnn.digits")
    first, second = victim.neurons
    first.module.surrogate_function = _Dead()
    record = cell(victim, registry("attacks").get("pgd.linf", steps=2), TENTH, data)
    assert "vanishing_layer" in record.flags
    assert record.measures[f"zero_layer:{first.name}"] == record.measures["layer_probed"] == 16
    assert record.measures[f"zero_layer:{second.name}"] == record.measures[f"sparse_layer:{second.name}"] == 0


class _Backwards(SpikeRule):
    """A slope of the wrong sign: the gradient leads away from the boundary."""

    def slope(self, u: Tensor) -> Tensor:
        return -1 / (1 + (3 * u) ** 2)


def backwards() -> ModuleVictim:
    victim = load_victim("lif_cnn.digits")
    victim.neurons[0].module.surrogate_function = _Backwards()
    return victim


def test_a_surrogate_that_hides_the_gradient_is_flagged(data: Split) -> None:
    pgd = [("pgd.linf", {"steps": 10, "estimator": e}, TENTH) for e in ("native", "atan(alpha=10)")]
    flags, _ = measured(backwards(), data, pgd)
    assert "surrogate_gap" in flags
    assert "single_surrogate" not in flags
    quick = registry("attacks").get("autoattack.snn", level="quick", only="pgd*")
    assert surrogate_gap([cell(backwards(), quick, TENTH, data)]) > SURROGATE_GAP
    assert surrogate_gap([cell(load_victim("lif_cnn.digits"), quick, TENTH, data)]) < SURROGATE_GAP


def test_a_single_surrogate_is_noted(data: Split) -> None:
    pgd = [("pgd.linf", {"steps": 5}, TENTH)]
    assert "single_surrogate" in measured(load_victim("lif_cnn.digits"), data, pgd)[0]
    assert "single_surrogate" not in measured(load_victim("ann_cnn.digits"), data, pgd)[0]
    quick = [("autoattack.snn", {"level": "quick", "only": "pgd*"}, TENTH)]
    assert "single_surrogate" not in measured(load_victim("lif_cnn.digits"), data, quick)[0]


def test_a_twin_that_breaks_what_the_own_gradient_misses_is_flagged(data: Split) -> None:
    fifth = Fraction(1, 5)
    alone = [("pgd.linf", {"steps": 10}, fifth), ("transfer.linf", {}, fifth)]
    flags, row = measured(backwards(), data, alone)
    assert {"transfer_beats_white_box", "black_box_beats_white_box"} <= flags
    assert pd.isna(row["rank_low"])
    assert "transfer_beats_white_box" not in measured(load_victim("lif_cnn.digits"), data, alone)[0]
    own = registry("attacks").get("autoattack.snn", level="quick", only="*native")
    cascade = registry("attacks").get("autoattack.snn", level="quick", only="*[nt][ar]*[vf]e*")
    assert "transfer_beats_white_box" not in cell(backwards(), own, fifth, data).flags
    assert "transfer_beats_white_box" in cell(backwards(), cascade, fifth, data).flags


@pytest.mark.parametrize(
    ("name", "params"), [("lif_cnn.digits", {"steps": 1}), ("ann_cnn.digits", {"steps": 10, "step": 0.02})]
)
def test_an_attack_that_stops_too_early_is_flagged(name: str, params: dict[str, Any], data: Split) -> None:
    victim = load_victim(name)
    params = params | {"random_start": False}
    flags, row = measured(victim, data, [("pgd.linf", params, TENTH)])
    assert "incomplete_optimisation" in flags
    assert pd.isna(row["rank_low"])
    stronger = [("pgd.linf", params, TENTH), ("pgd.linf", {"steps": 20}, TENTH)]
    assert "incomplete_optimisation" not in measured(victim, data, stronger)[0]


@dataclass(frozen=True)
class _Forgets:
    """Ascends, and returns the clean input whatever it found."""

    spec: ClassVar[AttackSpec] = AttackSpec(name="forgets", geometries=("linf",), source="test")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        registry("attacks").get("pgd.linf", steps=5).run(oracle, x0.clone(), y, rng=rng)
        return x0.clone()


def test_an_attack_that_forgets_its_success_is_marked_and_counted(data: Split) -> None:
    record = cell(load_victim("lif_cnn.digits"), _Forgets(), Fraction(1, 5), data)
    assert record.flags == ("silent_success",)
    assert record.measures["silent"] == record.counts["broken"] > 0
    (section,) = build([record])
    assert section.frame.iloc[0]["rank_low"] == 1


class _Noisy(nn.Module):
    """A healthy net behind noise that it draws as it should, or (with `seeded` false) as it should not."""

    def __init__(self, inner: nn.Module, scale: float, *, seeded: bool = True) -> None:
        super().__init__()
        self.inner, self.scale, self.draws_noise = inner, scale, seeded
        self.noise: RowStreams | None = None
        self.own = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.noise is not None:
            u = self.noise.uniform(x.shape[1:], dtype=x.dtype)
        else:
            u = torch.rand(x.shape, generator=self.own)
        out: Tensor = self.inner(x + self.scale * (2 * u - 1))
        return out


def noisy(scale: float, *, seeded: bool = True) -> ModuleVictim:
    inner = load_victim("ann_cnn.digits")
    return ModuleVictim(_Noisy(inner.module, scale, seeded=seeded), replace(inner.spec, stochastic=seeded))


def test_a_stochastic_victim_needs_averaged_gradients(data: Split) -> None:
    data = data[:16]
    single = [("pgd.linf", {"steps": 10, "draws": 1}, TENTH)]
    flags, row = measured(noisy(0.1), data, single)
    assert "stochastic_without_eot" in flags
    assert pd.isna(row["rank_low"])
    averaged = [("pgd.linf", {"steps": 4}, TENTH)]
    assert not {"stochastic_without_eot", "unstable"} & measured(noisy(0.1), data, averaged)[0]


def test_decisions_that_change_from_pass_to_pass_are_flagged(data: Split) -> None:
    pgd = [("pgd.linf", {"steps": 10}, TENTH)]
    for victim in (noisy(2.0), noisy(0.5, seeded=False)):
        flags, row = measured(victim, data, pgd)
        assert "unstable" in flags
        assert pd.isna(row["rank_low"])


class _Unseeded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] + torch.rand(len(x), 10)


class _NoReset(nn.Module):
    """A leaky integrator of its own making whose potential survives the call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.potential: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        current: Tensor = self.fc(x.flatten(1))
        out = current + (self.potential if isinstance(self.potential, float) else self.potential[: len(x)])
        self.potential = (0.5 * out).detach()
        return out


class _BatchStatistics(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return ((flat - flat.mean(dim=0)) / (flat.std(dim=0) + 1e-3))[:, :10]


class _CutInEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.flatten(1))
        return out if self.training else out.detach()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (_CutInEval(), "gradient"),
        (_Unseeded(), "two calls"),
        (_NoReset(), "two calls"),
        (_BatchStatistics(), "batch mates"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.LogSigmoid(), nn.Threshold(0, float("nan"))),
            "finite",
        ),
    ],
)
def test_victims_that_no_number_can_be_measured_on_are_refused(
    module: nn.Module, message: str, data: Split
) -> None:
    victim = wrap(module, name="broken", shape=(1, 8, 8), classes=10)
    with pytest.raises((ContractError, RuntimeError), match=message):
        check_victim(victim, data.x)


class _Frozen(nn.Module):
    """Declares noise but draws the same numbers for ever."""

    draws_noise = True
    noise: RowStreams | None = None

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        fixed = RowStreams.derive([0], "frozen").uniform(x.shape[1:])
        out: Tensor = self.fc((x > fixed).float().flatten(1) + x.flatten(1) - x.flatten(1).detach())
        return out


def test_frozen_noise_is_refused(data: Split) -> None:
    victim = wrap(_Frozen(), name="frozen", shape=(1, 8, 8), classes=10, stochastic=True)
    with pytest.raises(ContractError, match="noise"):
        check_victim(victim, data.x)


def test_integer_overflow_of_counts_is_an_error() -> None:
    class Overflows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            counts = (x.flatten(1)[:, :10].detach() * 200).to(torch.int8).to(x.dtype)
            return torch.sqrt(counts) + x.flatten(1)[:, :10] * 0

    victim = wrap(Overflows(), name="overflows", shape=(1, 8, 8), classes=10)
    with pytest.raises(ContractError, match="finite"):
        check_victim(victim, torch.ones(4, 1, 8, 8))
