"""Attacks on event counts: whole events inside the bounds, in the right direction."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.spikes.scg import turnover
from robustspike.attacks.spikes.sda import Sda
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.fitting import misfit

SHAPE, HIGH = (4, 2, 3, 3), 6.0
BUDGETS = {"count_l0": 12, "count_l1": 12, "retime_l0": 8, "retime_l1": 12, "retime_linf": 2}
ATTACKS = [
    ("sda.l0", {"estimator": "native"}, "count_l1", True),
    ("sda.l0", {"estimator": "native", "events": 3}, "count_l0", True),
    ("scg.l0", {}, "count_l0", True),
    ("count.pgd", {}, "count_l1", False),
    ("count.pgd", {}, "count_l0", False),
    ("count.random", {}, "count_l1", True),
    ("count.random", {}, "count_l0", True),
    ("noise", {}, "count_l1", False),
    ("retime.pil", {}, "retime_linf", False),
    ("retime.pil", {}, "retime_l1", False),
    ("retime.greedy", {}, "retime_l0", True),
    ("retime.greedy", {}, "retime_linf", True),
    ("retime.pgd", {}, "retime_l0", True),
    ("retime.pgd", {}, "retime_l1", True),
    ("retime.random", {}, "retime_l0", True),
]


class Linear(nn.Module):
    """Logits (b + w x, 0): what fools it is known."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weight).flatten(1).sum(dim=1)
        return torch.stack([score, torch.zeros_like(score)], dim=1)


def counts(n: int, seed: int = 0) -> Tensor:
    u = RowStreams.derive(range(n), "counts", seed).uniform(SHAPE)
    return (u * 8 - 3).floor().clamp(min=0)


def victim(seed: int = 0):
    weight = RowStreams.derive([seed], "weights").uniform(SHAPE)[0] - 0.5
    return wrap(Linear(weight), name="w", shape=SHAPE, classes=2, domain=Domain.EVENTS, bounds=(0.0, HIGH))


def attacked(name: str, params: dict, geometry: str, eps: int | None):
    threat = ThreatModel(
        domain=Domain.EVENTS,
        geometry=geometry,
        eps=None if eps is None else Fraction(eps),
        bounds=(0.0, HIGH),
        access=registry("attacks").get(name).spec.access,
    )
    target, x = victim(), counts(12)
    y = target.logits(x).argmax(dim=1)
    return (
        x,
        target,
        evaluate_shard(target, registry("attacks").get(name, **params), threat, x, y, torch.arange(12)),
    )


@pytest.mark.parametrize(("name", "params", "geometry", "least"), ATTACKS)
def test_results_are_legal_counts_within_the_budget(
    name: str, params: dict, geometry: str, least: bool
) -> None:
    rule = registry("geometries").get(geometry)
    for eps in (BUDGETS[geometry], *([None] if least else [])):
        x, _, result = attacked(name, params, geometry, eps)
        assert not result.errors
        assert bool(
            rule.legal(x, result.x_adv, eps=float("inf") if eps is None else eps, bounds=(0, HIGH)).all()
        )
        assert torch.equal(result.distance, rule.distance(x, result.x_adv))
        assert bool((result.extras["spikes"] == x.flatten(1).sum(dim=1)).all())
        change = (result.extras["added"] - result.extras["removed"]).float()
        assert torch.equal(change, (result.x_adv - x).flatten(1).sum(dim=1))
    assert name in ("noise", "count.random", "retime.random") or int((result.status == 1).sum()) >= 3


@pytest.mark.parametrize("events", [1, 2])
def test_sda_needs_the_fewest_events_of_a_linear_network(events: int) -> None:
    x, target, result = attacked("sda_greedy.l0", {"estimator": "native", "events": events}, "count_l0", None)
    weight = target.module.weight
    for row in range(len(x)):
        score = float((x[row] * weight).sum())
        toward = -torch.sign(weight) * (1 if score > 0 else -1)
        aim = (x[row] + events * toward).clamp(0, HIGH)
        gains = ((aim - x[row]) * weight).abs().flatten().sort(descending=True).values.cumsum(dim=0)
        fewest = int((gains <= abs(score)).sum()) + 1
        assert result.distance[row] == fewest


def test_random_turnover_adds_to_empty_cells_and_takes_from_full_ones() -> None:
    s = counts(40)
    draw = RowStreams.derive(range(40), "draw").uniform(SHAPE)
    change = turnover(s, draw, gamma=0.5, most=HIGH)
    assert set(change.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert bool(((s + change >= 0) & (s + change <= HIGH)).all())
    free = (s > 0) & (s < HIGH) & (change != 0)
    assert 0.3 < float((change[free] > 0).float().mean()) < 0.7


def test_flips_of_binary_frames_and_changes_of_counts_are_told_apart() -> None:
    spec = victim().spec
    flips = ThreatModel(domain=Domain.EVENTS, geometry="l0", eps=None, bounds=(0.0, HIGH))
    assert "not events" in str(misfit(Sda(), flips, spec))
    assert misfit(Sda(), ThreatModel(domain=Domain.EVENTS, geometry="count_l0", eps=None), spec) is None
    with pytest.raises(ConfigError, match="events"):
        Sda(events=0)
