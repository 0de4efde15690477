"""The cascade: its verdict, its order, its accounts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.ensembles.autoattack import LISTS
from robustspike.attacks.ensembles.autoattack import SMOOTH
from robustspike.attacks.ensembles.autoattack import SPIKING
from robustspike.attacks.ensembles.autoattack import AutoAttackSnn
from robustspike.attacks.ensembles.members import LEVELS
from robustspike.attacks.ensembles.members import Level
from robustspike.attacks.ensembles.sweep import iterations
from robustspike.attacks.gradients.assg import Assg
from robustspike.attacks.pixels.pgd import Pgd
from robustspike.bench.api import BLACK_BOX_STAGE
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import EstimatorRefused
from robustspike.bench.api import Evaluation
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.record.flags import cell_flags


def digits(n: int) -> tuple[Tensor, Tensor]:
    test = registry("datasets").get("digits").load("test")
    return test.x[:n], test.y[:n]


@pytest.fixture(scope="module")
def quick() -> Evaluation:
    return evaluate(load_victim("lif_cnn.digits"), AutoAttackSnn(level="quick"), *digits(24), eps="1/20")


def test_the_verdict_is_the_worst_case_over_the_members_run_alone(quick: Evaluation) -> None:
    victim = load_victim("lif_cnn.digits")
    x, y = digits(24)
    standing = torch.ones(len(x), dtype=torch.bool)
    passes = 0
    for member in SPIKING["quick"]:
        alone = evaluate(victim, AutoAttackSnn(level="quick", only=member.name), x, y, eps="1/20").shards[0]
        passes += int((alone.forwards + alone.backwards).sum())
        assert quick.robust <= int((alone.status == 0).sum())
        if not member.goes_on:  # what goes on from the others' best is another attack alone
            standing &= alone.status != 1
    cascade = quick.shards[0]
    assert not bool((cascade.status != 1)[~standing].any())
    onward = sum(cascade.counts[f"hits:{m.name}"] for m in SPIKING["quick"] if m.goes_on)
    assert cascade.count(Status.BROKEN) == int((~standing).sum()) + onward
    assert int((cascade.forwards + cascade.backwards).sum()) < passes


def test_every_member_is_booked_and_the_books_balance(quick: Evaluation) -> None:
    shard = quick.shards[0]
    names = [m.name for m in SPIKING["quick"]]
    assert [k.removeprefix("hits:") for k in shard.counts if k.startswith("hits:")] == names
    for what, total in (("forwards", shard.forwards), ("backwards", shard.backwards)):
        assert sum(shard.counts[f"{what}:{name}"] for name in names) == int(total.sum())
    assert sum(shard.counts[f"hits:{name}"] for name in names) == shard.count(Status.BROKEN)


def test_black_box_members_follow_the_first_gradient_members_and_their_share_is_the_alarm() -> None:
    for lists in LISTS:
        steep = sum(m.is_steep for m in lists["quick"])
        black = sum(m.is_black_box for m in lists["quick"])
        for level in LEVELS:
            assert all(m.is_steep for m in lists[level][:steep])
            assert all(m.name.startswith(BLACK_BOX_STAGE) for m in lists[level][steep : steep + black])
            assert not any(m.is_black_box for m in lists[level][steep + black :])

    def flags(n: int, attacked: int) -> tuple[str, ...]:
        measures = {"attacked": attacked, "hits:pgd": 500, f"hits:{BLACK_BOX_STAGE}square": n}
        return cell_flags(measures, {"errors": 0})

    assert flags(3, 1000) == ("black_box_beats_white_box",)
    assert flags(2, 1000) == ()
    assert flags(1, 100) == (), "one sample is no evidence"


class Cut(nn.Module):
    """Answers like the network inside, with a gradient that is zero everywhere."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.detach() + 0 * x)
        return out


@pytest.mark.parametrize("name", ["ann_cnn.digits", "lif_cnn.digits"])
def test_the_quick_control_is_strong_enough_to_raise_its_flag(name: str) -> None:
    victim = load_victim(name)
    masked = ModuleVictim(Cut(victim.module), victim.spec)
    shard = evaluate(masked, AutoAttackSnn(level="quick"), *digits(24), eps="1/10").shards[0]
    assert "black_box_beats_white_box" in cell_flags(shard.counts, {"errors": 0})


def test_names_are_unique_and_members_resolve() -> None:
    for listed in (lists[level] for lists in LISTS for level in LEVELS):
        assert len({m.name for m in listed}) == len(listed)
        for member in listed:
            attack = registry("attacks").get(member.attack)
            if hasattr(attack, "estimator"):
                registry("estimators").get(attack.estimator)
                assert member.name.endswith(f"/{attack.estimator}")


def test_every_level_contains_the_lower_one() -> None:
    for lists in LISTS:
        for lower, higher in pairwise(LEVELS):
            assert lists[higher][: len(lists[lower])] == lists[lower]


@pytest.mark.slow
def test_a_higher_level_leaves_nothing_that_a_lower_one_broke() -> None:
    victim = load_victim("lif_cnn.digits")
    found = [
        evaluate(victim, AutoAttackSnn(level=level), *digits(30), eps="1/15").shards[0] for level in LEVELS
    ]
    for less, more in pairwise(found):
        assert bool((more.status[less.status == 1] == 1).all())


@pytest.mark.parametrize(
    ("level", "most"),
    [
        ("quick", 800),
        pytest.param("standard", 4000, marks=pytest.mark.slow),
        pytest.param("full", 9000, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("name", "defense"),
    [("lif_cnn.digits", "none"), ("ann_cnn.digits", "none"), ("lif_cnn.digits", "rate_smoothing")],
)
def test_a_sample_that_stands_costs_no_more_than_its_level_says(
    name: str, defense: str, level: Level, most: int
) -> None:
    """At eps = 1/1000 every member is paid."""
    victim = load_victim(name, defense=defense)
    shard = evaluate(victim, AutoAttackSnn(level=level), *digits(1), eps="1/1000").shards[0]
    assert shard.count(Status.ROBUST) == 1
    assert most / 4 < int((shard.forwards + shard.backwards).max()) <= most


def test_a_member_that_raises_costs_no_hit_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    victim, attack = load_victim("lif_cnn.digits"), AutoAttackSnn(level="quick")
    whole = evaluate(victim, attack, *digits(24), eps="1/10").shards[0]
    assert "failed:pgd-10/native" not in whole.counts

    def run(self: Pgd, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        raise ValueError("out of ideas")

    monkeypatch.setattr(Pgd, "run", run)
    shard = evaluate(victim, attack, *digits(24), eps="1/10").shards[0]
    assert shard.count(Status.ERROR) == 0
    assert shard.count(Status.BROKEN) > 10
    assert shard.counts["failed:pgd-10/native"] == 1
    assert shard.errors[0] == "pgd-10/native: ValueError: out of ideas"
    assert "member_failed" in cell_flags(shard.counts, {"errors": 0})
    assert "few_members" not in cell_flags(shard.counts, {"errors": 0})


def refuse(*_: object) -> str:
    return "not for these neurons"


def refuse_late(*_: object) -> str:
    raise EstimatorRefused("not for these neurons")


@pytest.mark.parametrize(("method", "refusal"), [("fits", refuse), ("rule", refuse_late)])
def test_a_verdict_with_few_of_its_members_says_so_and_follows_the_own_gradient(
    monkeypatch: pytest.MonkeyPatch, method: str, refusal: Callable[..., str]
) -> None:
    monkeypatch.setattr(Assg, method, refusal)
    victim = load_victim("lif_cnn.digits")
    shard = evaluate(victim, AutoAttackSnn(level="quick"), *digits(24), eps="1/10").shards[0]
    refused = {key for key in shard.counts if key.startswith("refused:")}
    assert refused == {f"refused:{m.name}" for m in SPIKING["quick"] if "assg" in m.name}
    assert shard.counts["members"] == sum(m.is_steep for m in SPIKING["quick"])
    assert 2 * shard.counts["members_applied"] < shard.counts["members"]
    assert "few_members" in cell_flags(shard.counts, {"errors": 0})
    assert shard.errors == []
    for member in SMOOTH["quick"]:
        assert f"forwards:{member.name}" in shard.counts
    whole = evaluate(victim, AutoAttackSnn(level="quick", only="*native"), *digits(24), eps="1/10").shards[0]
    assert whole.counts["members"] == whole.counts["members_applied"] == 1, "not asked for, not missed"


def test_victims_without_spiking_neurons_get_the_gradient_they_have() -> None:
    x, y = digits(12)
    shard = evaluate(load_victim("ann_cnn.digits"), AutoAttackSnn(level="quick"), x, y, eps="1/20").shards[0]
    booked = {k.removeprefix("forwards:") for k in shard.counts if k.startswith("forwards:")}
    assert booked == {m.name for m in SMOOTH["quick"]}


@pytest.mark.parametrize("spend", [0, 1, 7, 40])
def test_any_budget_ends_gracefully(spend: int) -> None:
    x, y = digits(6)
    threat = ThreatModel(budget=Budget(forwards=spend, backwards=spend))
    result = evaluate(load_victim("lif_cnn.digits"), AutoAttackSnn(), x, y, threat=threat)
    assert result.errors == 0
    assert int(result.shards[0].forwards.max()) <= spend


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(ConfigError, match="level must be 'quick', 'standard' or 'full'"):
        AutoAttackSnn(level="huge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no member"):
        AutoAttackSnn(only="nothing")


def test_more_iterations_never_lose_a_sample_beyond_noise() -> None:
    victim, (x, y) = load_victim("lif_cnn.digits"), digits(20)
    found = iterations(victim, x, y, eps="1/10", steps=(2, 20))
    assert list(found) == [2, 20]
    assert found[20].robust < found[2].robust
    with pytest.raises(ConfigError, match="no parameter 'steps'"):
        iterations(victim, x, y, eps="1/10", attack="fgsm.linf")
