"""Attacks of other libraries behind the oracle."""

from __future__ import annotations

import sys
import types
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.pixels.foreign import Adapted
from robustspike.attacks.pixels.foreign import Foreign
from robustspike.bench.api import Attack
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry


class FakePgd:
    """Follows torchattacks' convention: made with the model, called with images and labels."""

    def __init__(self, model: nn.Module, eps: float = 0.3, alpha: float = 0.02, steps: int = 10) -> None:
        self.model, self.eps, self.alpha, self.steps = model, eps, alpha, steps
        self.device = next(model.parameters()).device

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images + torch.empty_like(images).uniform_(-self.eps, self.eps)  # global generator
        x = x.clamp(0, 1)
        for _ in range(self.steps):
            x.requires_grad_(True)
            loss = nn.CrossEntropyLoss()(self.model(x), labels)
            gradient = torch.autograd.grad(loss, x)[0]
            moved = x.detach() + self.alpha * gradient.sign()
            x = torch.clamp(images + (moved - images).clamp(-self.eps, self.eps), 0, 1).detach()
        return x


@pytest.fixture
def fake_library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torchattacks")
    module.PGD = FakePgd  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace(name="torchattacks")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "torchattacks", module)


def digits(n: int = 10) -> tuple[Tensor, Tensor]:
    test = registry("datasets").get("digits").load("test")
    return test.x[:n], test.y[:n]


@pytest.mark.usefixtures("fake_library")
def test_a_foreign_attack_is_metered_verified_and_repeatable() -> None:
    victim, (x, y) = load_victim("lif_cnn.digits"), digits()
    attack = Foreign(attack="PGD(steps=6)")
    first = evaluate(victim, attack, x, y, eps="1/10")
    shard = first.shards[0]
    assert first.errors == 0 and 0 < first.robust < len(x)
    standing = shard.status == 0
    assert (shard.forwards[standing] == 6 * 2 + 1).all(), "a gradient is a query and a query with gradient"
    assert (shard.backwards[standing] == 6).all()
    assert float(shard.distance.max()) <= 0.1 + 1e-6
    again = evaluate(victim, attack, x, y, eps="1/10").shards[0]
    assert torch.equal(shard.x_adv, again.x_adv)


@pytest.mark.usefixtures("fake_library")
def test_gradients_of_a_foreign_attack_come_from_the_chosen_estimator() -> None:
    victim, (x, y) = load_victim("lif_cnn.digits"), digits()
    sharp = evaluate(victim, Foreign(attack="PGD(steps=6)", estimator="atan(alpha=10)"), x, y, eps="1/10")
    flat = evaluate(victim, Foreign(attack="PGD(steps=6)", estimator="straight_through"), x, y, eps="1/10")
    assert sharp.robust < flat.robust


def test_a_function_is_enough_and_equals_our_own_pgd() -> None:
    def call(model: nn.Module, x0: Tensor, y: Tensor, eps: float) -> Tensor:
        x = x0.clone()
        for _ in range(5):
            x.requires_grad_(True)
            gradient = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)[0]
            moved = x.detach() + 0.25 * eps * gradient.sign()
            x = torch.minimum(torch.maximum(moved, x0 - eps), x0 + eps).clamp(0, 1).detach()
        return x

    victim, (x, y) = load_victim("ann_cnn.digits"), digits()
    ours: Attack = registry("attacks").get("pgd.linf(steps=5, random_start=false)")
    mine = evaluate(victim, Adapted(call), x, y, eps="1/10", shard=1)
    theirs = evaluate(victim, ours, x, y, eps="1/10", shard=1)
    assert [s.status.item() for s in mine.shards] == [s.status.item() for s in theirs.shards]
    assert 0 < mine.robust < mine.clean


@pytest.mark.usefixtures("fake_library")
@pytest.mark.parametrize("spend", [0, 1, 2, 5])
def test_a_foreign_attack_ends_when_the_budget_does(spend: int) -> None:
    victim, (x, y) = load_victim("lif_cnn.digits"), digits(4)
    threat = ThreatModel(eps=Fraction(1, 100), budget=Budget(forwards=spend, backwards=spend))
    result = evaluate(victim, Foreign(), x, y, threat=threat)
    assert result.errors == 0
    assert int(result.shards[0].forwards.max()) <= spend


def test_a_missing_library_or_attack_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="library must be one of"):
        Foreign(library="cleverhans")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    victim, (x, y) = load_victim("ann_cnn.digits"), digits(2)
    assert "not installed" in str(Foreign(library="art").fits(victim.spec))
    with pytest.raises(ConfigError, match="pip install adversarial-robustness-toolbox"):
        evaluate(victim, Foreign(library="art"), x, y)


@pytest.mark.usefixtures("fake_library")
def test_an_unknown_attack_of_a_library_is_named() -> None:
    victim, (x, y) = load_victim("ann_cnn.digits"), digits(2)
    with pytest.raises(ConfigError, match="no attack 'PDG'"):
        evaluate(victim, Foreign(attack="PDG"), x, y)


@pytest.mark.parametrize(
    ("library", "attack"),
    [
        ("torchattacks", "PGD(steps=10, alpha=0.05)"),
        ("torchattacks", "Square(n_queries=20)"),
        ("foolbox", "LinfPGD(steps=10, rel_stepsize=0.25)"),
        ("art", "ProjectedGradientDescentPyTorch(max_iter=5, verbose=False)"),
    ],
)
def test_real_libraries(library: str, attack: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    victim, (x, y) = load_victim("lif_cnn.digits"), digits(8)
    result = evaluate(victim, Foreign(library=library, attack=attack), x, y, eps="1/5")
    assert result.shards[0].errors == []
    assert result.robust < result.clean
    assert int(result.shards[0].forwards.max()) > 0


class TakesApart(FakePgd):
    """Asks about one image after the other, of which a model of the batch does not know whose it is."""

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return torch.cat(
            [super(TakesApart, self).__call__(i[None], y[None]) for i, y in zip(images, labels, strict=True)]
        )


@pytest.mark.usefixtures("fake_library")
def test_a_batch_breaks_what_single_samples_break_and_counts_what_they_cost() -> None:
    victim, (x, y) = load_victim("ann_cnn.digits"), digits(20)
    together, alone = (
        evaluate(victim, Foreign(attack="PGD(steps=6)", batched=batched), x, y, eps="1/10").shards[0]
        for batched in (True, False)
    )
    standing = (together.status == 0) & (alone.status == 0)
    assert bool(standing.any())
    assert torch.equal(together.forwards[standing], alone.forwards[standing])
    assert int((together.status != alone.status).sum()) <= 2  # other random starts


@pytest.mark.usefixtures("fake_library")
def test_an_attack_that_takes_the_batch_apart_is_run_sample_by_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["torchattacks"], "PGD", TakesApart)
    victim, (x, y) = load_victim("ann_cnn.digits"), digits(6)
    one, other = (
        evaluate(victim, Foreign(attack="PGD(steps=4)", batched=batched), x, y, eps="1/10").shards[0]
        for batched in (True, False)
    )
    assert torch.equal(one.x_adv, other.x_adv) and not one.errors


@pytest.mark.usefixtures("fake_library")
def test_rows_out_of_budget_are_masked_and_the_others_go_on() -> None:
    victim, (x, y) = load_victim("lif_cnn.digits"), digits(8)
    threat = ThreatModel(eps=Fraction(1, 50), budget=Budget(forwards=7, backwards=3))
    shard = evaluate(victim, Foreign(attack="PGD(steps=20)"), x, y, threat=threat).shards[0]
    assert not shard.errors
    assert int(shard.forwards.max()) <= 7 and int(shard.backwards.max()) == 3
