"""Several victims at once, MDSE, and the votes that decide on stochastic victims."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.ensembles.mdse import Mdse
from robustspike.bench.api import Attack
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import joint
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.decide import VERIFICATION_DRAWS
from robustspike.bench.attack.decide import VERIFICATION_WRONG
from robustspike.bench.attack.decide import decide
from robustspike.bench.attack.meter import Meter
from robustspike.bench.attack.result import STATUS
from robustspike.bench.contract.specs import Status

SHAPE, CLASSES = (1, 3, 4), 4


class Tanh(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, CLASSES))
        for i, p in enumerate(self.body.parameters()):
            p.data.copy_(0.5 * RowStreams.derive([i], "weights", seed).normal(tuple(p.shape))[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1))


def smooth(seed: int = 0) -> ModuleVictim:
    return wrap(Tanh(seed), name=f"smooth{seed}", shape=SHAPE, classes=CLASSES)


def inputs(*victims: ModuleVictim, n: int = 200) -> tuple[Tensor, Tensor]:
    """Inputs on which all victims agree, labelled by what they say."""
    x = RowStreams.derive(range(n), "x").uniform(SHAPE)
    labels = torch.stack([v.logits(x).argmax(dim=1) for v in victims])
    same = (labels == labels[0]).all(dim=0)
    return x[same], labels[0][same]


def meter_for(victim: ModuleVictim, x: Tensor, y: Tensor, eps: str, *, keeps_going: bool = True) -> Meter:
    return Meter(
        victim,
        ThreatModel(eps=Fraction(eps)),
        registry("geometries").get("linf"),
        x,
        y,
        noise=RowStreams.derive(range(len(x)), "noise"),
        clean=torch.zeros(len(x), CLASSES),
        estimators=registry("estimators").get,
        keeps_going=keeps_going,
    )


def queries(attack: Attack, victim: ModuleVictim, x: Tensor, y: Tensor, eps: str = "1/10") -> list[Tensor]:
    """The inputs at which an attack asks for gradients of a single victim."""
    seen: list[Tensor] = []
    original = victim.loss_and_grad

    def spy(at: Tensor, *args: object, **kwargs: object) -> object:
        seen.append(at.clone())
        return original(at, *args, **kwargs)  # type: ignore[arg-type]

    victim.loss_and_grad = spy  # type: ignore[method-assign, assignment]
    attack.run(Oracle(meter_for(victim, x, y, eps)), x.clone(), y, rng=RowStreams.derive(range(len(x)), "r"))
    victim.loss_and_grad = original  # type: ignore[method-assign]
    return seen


def test_mdse_with_one_estimator_and_one_model_moves_as_pgd() -> None:
    victim = smooth()
    x, y = inputs(victim, n=16)
    pgd: Attack = registry("attacks").get("pgd.linf(steps=6, step=0.1, random_start=false)")
    ours = queries(Mdse(steps=6, step=0.1, estimators=("native",)), victim, x, y)
    theirs = queries(pgd, victim, x, y)
    assert len(ours) == len(theirs) == 6
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.equal(mine, reference)


def test_mdse_takes_the_estimator_whose_step_raises_the_loss_most() -> None:
    victim = load_victim("lif_cnn.digits")
    test = registry("datasets").get("digits").load("test")
    x, y = test.x[:12], test.y[:12]
    names = ("atan(alpha=2)", "triangle(gamma=0.3)", "rectangle(a=1)")
    attack = Mdse(steps=1, estimators=names)
    oracle = Oracle(meter_for(victim, x, y, "1/10"))
    moved = attack.run(oracle, x, y, rng=RowStreams.derive(range(12), "r"))
    rows = torch.arange(12)
    each = []
    for name in names:
        gradient = oracle.loss_and_grad(x, rows, "ce", estimator=name).grad
        each.append(oracle.loss(oracle.project(x + 0.03 * gradient.sign(), rows), rows, "ce")[0])
    losses = torch.stack(each)
    assert len(set(losses.argmax(dim=0).tolist())) > 1, "no estimator is best everywhere"
    value = oracle.loss(moved, rows, "ce")[0]
    assert (value >= losses.amax(dim=0) - 1e-6).all() or bool(oracle.best()[1].any())
    still = ~oracle.best()[1]
    assert torch.allclose(value[still], losses.amax(dim=0)[still], atol=1e-6)


def test_mdse_with_fixed_weights_is_the_sum_of_the_members_gradients() -> None:
    a, b = smooth(0), smooth(1)
    x, y = inputs(a, b)
    both = joint(a, b)
    meter = meter_for(both, x, y, "1/50")
    moved = Mdse(steps=1, estimators=("native",), rate=0.0).run(
        Oracle(meter), x, y, rng=RowStreams.derive(range(len(x)), "r")
    )
    total = torch.zeros_like(x)
    for member in (a, b):
        at = x.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(member.module(at), y, reduction="sum")
        total += torch.autograd.grad(loss, at)[0]
    expected = (x + 0.3 * 0.02 * total.sign()).clamp(0, 1)
    same = ~meter.hit
    assert torch.allclose(moved[same], expected[same], atol=1e-6)


@pytest.mark.parametrize("rule", ["best", "sum"])
@pytest.mark.parametrize("sharpness", [50.0, 1e8])
def test_mdse_stays_finite_where_the_release_overflows(rule: str, sharpness: float) -> None:
    a, b = smooth(0), smooth(1)
    x, y = inputs(a, b, n=40)
    attack = Mdse(steps=3, estimators=("native", "atan"), rule=rule, sharpness=sharpness)  # type: ignore[arg-type]
    assert evaluate(joint(a, b), attack, x, y, eps="1/10").errors == 0


def test_a_joint_sample_is_broken_only_where_every_member_is_wrong() -> None:
    a, b = smooth(0), smooth(1)
    x, y = inputs(a, b)
    both = joint(a, b)
    attack = Mdse(estimators=("native",))
    threat = ThreatModel(eps=Fraction(1, 10))
    together = evaluate_shard(both, attack, threat, x, y, torch.arange(len(x)))
    wrong = torch.stack([v.logits(together.x_adv).argmax(dim=1) != y for v in (a, b)])
    assert torch.equal(together.status == 1, wrong.all(dim=0))
    assert 0 < int((together.status == 1).sum()) < len(x)
    alone = min(evaluate(v, "pgd.linf", x, y, eps="1/10").robust for v in (a, b))
    assert int((together.status == 0).sum()) >= alone


def test_a_clean_sample_counts_as_right_where_every_member_is_right() -> None:
    a, b = smooth(0), smooth(1)
    x = RowStreams.derive(range(100), "x").uniform(SHAPE)
    y = a.logits(x).argmax(dim=1)
    right = b.logits(x).argmax(dim=1) == y
    result = evaluate(joint(a, b), "noise", x, y, eps="0").shards[0]
    assert torch.equal(result.status == 0, right)
    assert 0 < int(right.sum()) < 100


@pytest.mark.parametrize(
    "attack",
    [
        "pgd.linf",
        "apgd.ce(steps=5)",
        "apgd.targeted(steps=3)",
        "square.linf(queries=9)",
        "rays.linf(queries=9)",
    ],
)
def test_any_attack_runs_on_a_joint_victim(attack: str) -> None:
    a, b = smooth(0), smooth(1)
    x, y = inputs(a, b, n=40)
    result = evaluate(joint(a, b), attack, x, y, eps="1/10")
    assert result.errors == 0
    shard = result.shards[0]
    assert (shard.forwards % 2 == 0).all(), "a pass through two members is two passes"


@pytest.mark.parametrize("spend", [0, 1, 7, 30])
def test_mdse_respects_any_budget(spend: int) -> None:
    a, b = smooth(0), smooth(1)
    x, y = inputs(a, b, n=100)
    threat = ThreatModel(eps=Fraction(1, 100), budget=Budget(forwards=spend, backwards=spend))
    result = evaluate(joint(a, b), Mdse(), x, y, threat=threat)
    assert result.errors == 0
    assert int(result.shards[0].forwards.max()) <= spend


def test_joint_refuses_victims_that_do_not_go_together() -> None:
    other = wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), name="other", shape=(1, 2, 2), classes=4)
    with pytest.raises(ContractError, match="same inputs"):
        joint(smooth(), other)
    with pytest.raises(ContractError, match="at least two"):
        joint(smooth())


def test_mdse_names_wrong_parameters() -> None:
    with pytest.raises(ConfigError, match="rule must be"):
        Mdse(rule="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least one estimator"):
        Mdse(estimators=())


class Coin(nn.Module):
    """A stochastic victim: class 1 with the probability that the first pixel says, else class 0."""

    draws_noise = True
    noise: RowStreams | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.noise is not None
        p = x.flatten(1)[:, :1]
        heads = (self.noise.uniform((1,)) < p).to(x.dtype)
        hum = 1e-3 * self.noise.normal((1,))  # no two draws are the same
        return torch.cat([1 - heads, heads * 5], dim=1) + hum + 0 * p


def coin() -> ModuleVictim:
    return wrap(Coin(), name="coin", shape=(1, 2, 2), classes=2, stochastic=True)


def test_a_stochastic_victim_is_decided_by_votes_and_not_by_mean_logits() -> None:
    """Heads is worth five times as much as tails: at 1/3 the mean logits say 1 and the votes 0."""
    x = torch.full((400, 1, 2, 2), 1 / 3)
    y = torch.zeros(400, dtype=torch.int64)
    answer = decide(coin(), x, y, RowStreams.derive(range(400), "verify"))
    assert len(answer.draws) == VERIFICATION_DRAWS
    wrong = (answer.draws.argmax(dim=2) != y).sum(dim=0)
    assert torch.equal(answer.label == 1, wrong >= VERIFICATION_WRONG)
    assert float((answer.logits.argmax(dim=1) == 1).double().mean()) > 0.9
    assert float((answer.label == 1).double().mean()) < 0.1


def test_a_lucky_draw_is_no_success() -> None:
    """The attack sees class 1 now and then at p = 0.1; fresh draws do not confirm it."""
    x = torch.full((64, 1, 2, 2), 0.1)
    y = torch.zeros(64, dtype=torch.int64)
    result = evaluate(coin(), "noise(draws=30)", x, y, eps="1/100")
    assert result.robust == 64
    assert int((result.shards[0].first_hit >= 0).sum()) > 50, "the attack did see successes"


def test_verification_draws_are_not_those_of_the_attack() -> None:
    x = torch.full((64, 1, 2, 2), 0.45)
    y = torch.zeros(64, dtype=torch.int64)
    first = evaluate(coin(), "noise(draws=30)", x, y, eps="1/20")
    assert 0 < first.robust < 64
    again = evaluate(coin(), "noise(draws=30)", x, y, eps="1/20")
    assert torch.equal(first.shards[0].status, again.shards[0].status)


def test_what_one_draw_gets_right_is_kept_beside_the_vote() -> None:
    """At p = 0.3 the vote says 0 nearly always, one draw in seven of ten cases; a legal push lowers both."""
    x = torch.full((200, 1, 2, 2), 0.3)
    y = torch.zeros(200, dtype=torch.int64)
    result = evaluate(coin(), "noise(draws=30)", x, y, eps="1/20", shard=200)
    (shard,) = result.shards
    right, held = shard.extras["right_clean"], shard.extras["right_attacked"]
    assert result.clean > 185 and float(right.mean()) == pytest.approx(0.7, abs=0.03)
    wrong = shard.status == STATUS.index(Status.WRONG_CLEAN)
    assert torch.equal(right[wrong], held[wrong])
    assert torch.equal(shard.status == STATUS.index(Status.ROBUST), ~wrong & (held > 9 / 20))
    assert float(held.mean()) < float(right.mean()) - 0.05
    fixed = wrap(nn.Flatten(), name="fixed", shape=(1, 2, 2), classes=4)
    assert not evaluate(fixed, "noise", x, y, eps="1/20").shards[0].extras
