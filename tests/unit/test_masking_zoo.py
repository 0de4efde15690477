"""Deliberately broken victims: each raises its flag or is refused; a healthy one raises none."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Access
from robustspike.bench.api import Budget
from robustspike.bench.api import ContractError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import SpikeRule
from robustspike.bench.api import Split
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import check_victim
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.flags import cell_flags
from robustspike.bench.records import CellRecord
from robustspike.bench.records import count
from robustspike.bench.runner import sample_records
from robustspike.leaderboard.table import sections
from tests.support.records import make_record

N = 40


@pytest.fixture(scope="module")
def data() -> Split:
    loaded: Split = registry("datasets").get("digits").load("test")[:N]
    return loaded


def measured(victim: ModuleVictim, data: Split) -> tuple[set[str], Any]:
    """Attack a victim as a small suite would; return the flags of its row, and the row."""
    records: list[CellRecord] = []
    plan = [("pgd.linf", {"steps": 10}, Fraction(1, 10)), ("noise", {}, Fraction(1, 10))]
    plan += [("square.linf", {}, Fraction(1, 10)), ("pgd.linf", {"steps": 20}, Fraction(1))]
    for name, params, eps in plan:
        attack = registry("attacks").get(name, **params)
        budget = Budget(forwards=150, backwards=100)
        threat = ThreatModel(eps=eps, access=attack.spec.access, budget=budget)
        shard = evaluate_shard(victim, attack, threat, data.x, data.y, data.ids)
        rows = tuple(sample_records(shard))
        counts = count(rows)
        base = make_record("r" * N, victim="v", attack=name, eps=eps, access=Access(attack.spec.access))
        records.append(
            replace(
                base,
                rows=rows,
                counts=counts,
                measures=shard.counts,
                flags=cell_flags(shard.counts, counts),
                cost={"attacked": shard.counts.get("attacked", 0), "forwards": 1, "backwards": 1},
            )
        )
    (section,) = sections(records)
    row = section.frame.iloc[0]
    return set(str(row["flags"]).split()), row


@pytest.mark.parametrize("name", ["lif_cnn.digits", "qcfs_cnn.digits", "ann_cnn.digits"])
def test_healthy_victims_raise_no_flag(name: str, data: Split) -> None:
    flags, row = measured(load_victim(name), data)
    assert flags == set()
    assert row["rank"] == 1


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
    assert pd.isna(row["rank"])


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
