"""The spikes' verdict: the nearest of what its members find, at every level."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from robustspike.attacks.ensembles.autospikes import MEMBERS
from robustspike.attacks.ensembles.autospikes import AutoAttackSpikes
from robustspike.attacks.ensembles.members import LEVELS
from robustspike.attacks.spikes.sda import Sda
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import ShardResult
from robustspike.bench.api import Status
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry


def shard(attack: object, *, n: int = 6, eps: int | None = None, goal: Goal = Goal.UNTARGETED) -> ShardResult:
    split = registry("datasets").get("digits_events").load("validation")
    threat = ThreatModel(
        domain=Domain.SPIKES, geometry="l0", eps=None if eps is None else Fraction(eps), goal=goal
    )
    victim = load_victim("lif_cnn.digits_events")
    return evaluate(victim, attack, split.x[:n], split.y[:n], threat=threat).shards[0]  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_higher_level_never_needs_more_flips_and_beats_the_published_attack() -> None:
    found = [shard(AutoAttackSpikes(level=level)) for level in LEVELS]
    for less, more in pairwise(found):
        assert bool((more.distance <= less.distance).all())
        assert int(more.forwards.sum()) > int(less.forwards.sum())
    published = shard(Sda())
    assert bool((found[0].distance <= published.distance).all())
    assert float(found[0].distance.mean()) < float(published.distance.mean())


def test_members_are_booked_by_name_and_looked_up() -> None:
    names = [m.name for m in MEMBERS["quick"]]
    counts = shard(AutoAttackSpikes(level="quick"), n=2).counts
    assert [key.removeprefix("forwards:") for key in counts if key.startswith("forwards:")] == names
    for level in LEVELS:
        for attack in AutoAttackSpikes(level=level).uses()["attacks"]:
            registry("attacks").get(attack)


def test_a_budget_of_flips_and_a_target_are_kept() -> None:
    bounded = shard(AutoAttackSpikes(level="quick"), eps=12)
    assert 0 < bounded.count(Status.BROKEN) < 6
    assert float(bounded.distance.max()) <= 12
    aimed = shard(AutoAttackSpikes(level="quick"), n=3, goal=Goal.TARGETED)
    broken = aimed.status == 1
    assert bool(broken.any())
    assert torch.equal(aimed.adv[broken].double(), aimed.extras["target"][broken])


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(ConfigError, match="level must be"):
        AutoAttackSpikes(level="huge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no member"):
        AutoAttackSpikes(only="nothing")
