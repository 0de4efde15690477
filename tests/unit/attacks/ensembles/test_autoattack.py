"""The cascade: its verdict, its order, its accounts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustspike.attacks.ensembles.autoattack import FULL
from robustspike.attacks.ensembles.autoattack import NOISY
from robustspike.attacks.ensembles.autoattack import QUICK
from robustspike.attacks.ensembles.autoattack import SMOOTH
from robustspike.attacks.ensembles.autoattack import AutoAttackSnn
from robustspike.attacks.ensembles.sweep import iterations
from robustspike.attacks.gradients.grids import SURROGATE_SWEEP
from robustspike.bench.api import BLACK_BOX_STAGE
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Evaluation
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
    for member in QUICK:
        if member.name == "pgd-10/twin":
            continue
        alone = evaluate(
            victim, AutoAttackSnn(level="quick", only=f"{member.name}*"), x, y, eps="1/20"
        ).shards[0]
        standing &= alone.status != 1
        passes += int((alone.forwards + alone.backwards).sum())
        assert quick.robust <= int((alone.status == 0).sum())
    cascade = quick.shards[0]
    assert torch.equal(cascade.status != 1, standing)
    assert int((cascade.forwards + cascade.backwards).sum()) < passes


def test_every_member_is_booked_and_the_books_balance(quick: Evaluation) -> None:
    shard = quick.shards[0]
    names = [m.name for m in QUICK if m.name != "pgd-10/twin"]  # a directly trained victim has no twin
    assert [k.removeprefix("hits:") for k in shard.counts if k.startswith("hits:")] == names
    for what, total in (("forwards", shard.forwards), ("backwards", shard.backwards)):
        assert sum(shard.counts[f"{what}:{name}"] for name in names) == int(total.sum())
    assert sum(shard.counts[f"hits:{name}"] for name in names) == shard.count(Status.BROKEN)


def test_black_box_members_run_last_and_their_share_is_the_alarm() -> None:
    for listed in (FULL, QUICK, NOISY, *SMOOTH.values()):
        black = [m.name.startswith(BLACK_BOX_STAGE) for m in listed]
        assert black == sorted(black) and any(black)

    def flags(n: int, attacked: int) -> tuple[str, ...]:
        measures = {"attacked": attacked, "hits:pgd": 500, f"hits:{BLACK_BOX_STAGE}square": n}
        return cell_flags(measures, {"errors": 0})

    assert flags(3, 1000) == ("black_box_beats_white_box",)
    assert flags(2, 1000) == ()
    assert flags(1, 100) == (), "one sample is no evidence"


def test_the_full_list_holds_every_fixed_surrogate_and_resolves() -> None:
    names = [m.name for m in FULL]
    assert len(set(names)) == len(names)
    for surrogate in SURROGATE_SWEEP:
        assert f"pgd-20/{surrogate}" in names
    for member in (*FULL, *QUICK, *NOISY, *SMOOTH["full"], *SMOOTH["quick"]):
        attack = registry("attacks").get(member.attack)
        if hasattr(attack, "estimator"):
            registry("estimators").get(attack.estimator)


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
    with pytest.raises(ConfigError, match="level must be 'quick' or 'full'"):
        AutoAttackSnn(level="huge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no member"):
        AutoAttackSnn(only="nothing")


@pytest.mark.slow
def test_the_full_list_fits_into_the_default_budget() -> None:
    """A sample that nothing breaks at eps = 1/1000 pays for every member."""
    x, y = digits(3)
    for name in ("lif_cnn.digits", "qcfs_cnn.digits"):
        shard = evaluate(load_victim(name), AutoAttackSnn(), x, y, eps="1/1000").shards[0]
        assert shard.count(Status.ROBUST) == 3
        assert shard.counts[f"forwards:{BLACK_BOX_STAGE}square"] == 3 * 5000
        assert 9000 < int(shard.forwards.max()) <= 9700
        assert int(shard.backwards.max()) <= 4600


def test_more_iterations_never_lose_a_sample_beyond_noise() -> None:
    victim, (x, y) = load_victim("lif_cnn.digits"), digits(20)
    found = iterations(victim, x, y, eps="1/10", steps=(2, 20))
    assert list(found) == [2, 20]
    assert found[20].robust < found[2].robust
    with pytest.raises(ConfigError, match="no parameter 'steps'"):
        iterations(victim, x, y, eps="1/10", attack="fgsm.linf")
