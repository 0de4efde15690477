"""Verdicts come from the harness alone, whatever an attack or a victim does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import BudgetExceeded
from robustspike.bench.api import ContractError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import check_victim
from robustspike.bench.api import evaluate
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.testing.reference import reference
from robustspike.bench.testing.reference import samples

THREAT = ThreatModel(eps=Fraction(1, 4))
Move = Callable[[Oracle, Tensor, Tensor, RowStreams], Tensor]


@dataclass(frozen=True)
class Scripted:
    """An attack that does what the test says."""

    move: Move
    spec: ClassVar[AttackSpec] = AttackSpec(name="scripted", geometries=("linf",), source="test")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        return self.move(oracle, x0, y, rng)


def judge(move: Move, victim: ModuleVictim | None = None) -> tuple[Tensor, list[str], Tensor]:
    victim = victim or reference(THREAT.domain)
    x = samples(THREAT.domain)
    y = victim.logits(x).argmax(dim=1)
    result = evaluate_shard(victim, Scripted(move), THREAT, x, y, torch.arange(len(x)))
    return result.status, result.errors, result.x_adv


def _in_place(oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Tensor:
    return x0.add_(0.01)


def _global_torch(oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Tensor:
    torch.rand(1)
    return x0


def _global_numpy(oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Tensor:
    np.random.rand()  # noqa: NPY002
    return x0


def _global_python(oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Tensor:
    random.random()
    return x0


def _raises(oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Tensor:
    raise KeyError("broken")


def _over_budget(oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Tensor:
    raise BudgetExceeded("oracle: too many")


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda o, x, y, r: x + 1.0, "leaves the threat model"),
        (lambda o, x, y, r: x + 0.2501, "distance"),
        (lambda o, x, y, r: x * torch.nan, "NaN"),
        (lambda o, x, y, r: x.double(), "float64"),
        (lambda o, x, y, r: x[:2], "must return"),
        (lambda o, x, y, r: None, "must return a tensor"),
        (_in_place, "in place"),
        (_global_torch, "global random"),
        (_global_numpy, "global random"),
        (_global_python, "global random"),
        (_raises, "KeyError"),
        (_over_budget, "too many"),
        (lambda o, x, y, r: o.victim, "victim"),
    ],
)
def test_a_misbehaving_attack_is_an_error_and_never_robust(move: Move, message: str) -> None:
    status, errors, _ = judge(move)
    assert (status == 3).all()
    assert message in errors[0]


def test_global_generators_are_put_back() -> None:
    before = torch.get_rng_state()
    judge(_global_torch)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_candidate_that_does_not_fool_is_robust() -> None:
    status, errors, x_adv = judge(lambda o, x, y, r: x)
    assert not errors
    assert (status == 0).all()
    assert torch.equal(x_adv, samples(THREAT.domain))


def test_a_hit_that_was_not_returned_still_counts() -> None:
    def forgetful(oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Tensor:
        pgd = registry("attacks").get("pgd.linf")
        pgd.run(oracle, x0, y, rng=rng)
        return x0

    status, errors, _ = judge(forgetful)
    assert not errors
    assert (status == 1).any()


class Poisoned(nn.Module):
    """Answers NaN wherever a pixel is saturated."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = reference(THREAT.domain).module

    def forward(self, x: Tensor) -> Tensor:
        saturated = x.flatten(1).amax(dim=1, keepdim=True) > 0.99
        return torch.where(saturated, torch.nan, self.inner(x))


def test_nan_logits_are_errors_on_clean_and_on_perturbed_inputs() -> None:
    victim = wrap(Poisoned(), name="nan", shape=(1, 4, 4), classes=3)
    x = samples(THREAT.domain) * 0.8
    y = victim.logits(x).argmax(dim=1)
    jump = Scripted(lambda o, x0, _y, r: torch.ones_like(x0))
    result = evaluate_shard(victim, jump, ThreatModel(eps=Fraction(1)), x, y, torch.arange(len(x)))
    assert (result.status == 3).all()
    assert "not finite" in result.errors[0]
    clean = evaluate_shard(victim, jump, THREAT, torch.ones_like(x), y, torch.arange(len(x)))
    assert (clean.status == 3).all()


class Launderer(nn.Module):
    """A spiking victim: a NaN input gives NaN potentials, no spikes, and finite logits."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = (x.flatten(1) >= 0.5).to(x.dtype) + 0 * torch.nan_to_num(x.flatten(1))
        return torch.stack([spikes.sum(1), 8 - spikes.sum(1)], dim=1)


def test_a_nan_input_is_never_an_adversarial_example() -> None:
    victim = wrap(Launderer(), name="launderer", shape=(1, 4, 4), classes=2)
    x = torch.ones(3, 1, 4, 4)
    y = victim.logits(x).argmax(dim=1)
    assert torch.isfinite(victim.logits(x * torch.nan)).all()

    def nan(oracle: Oracle, x0: Tensor, labels: Tensor, rng: RowStreams) -> Tensor:
        oracle.labels(x0 * torch.nan, torch.arange(len(x0)))
        return x0

    result = evaluate_shard(victim, Scripted(nan), ThreatModel(eps=Fraction(1)), x, y, torch.arange(3))
    assert result.count(Status.BROKEN) == 0


class EvalTrap(nn.Module):
    """Drops its gradient in evaluation mode, as SpikingJelly 0.0.0.0.14's LIF nodes did."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = reference(THREAT.domain).module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x if self.training else x.detach())
        return out


def test_a_victim_without_gradient_in_eval_mode_is_refused() -> None:
    class Cut(EvalTrap):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    victim = wrap(Cut(), name="trap", shape=(1, 4, 4), classes=3)
    with pytest.raises(ContractError, match="gradient"):
        check_victim(victim)
    with pytest.raises(ContractError, match="gradient"):
        evaluate(victim, "pgd.linf", samples(THREAT.domain), torch.zeros(12, dtype=torch.int64))


def test_wrong_shapes_and_outputs_are_refused() -> None:
    victim = reference(THREAT.domain)
    with pytest.raises(ContractError, match="expected inputs"):
        victim.logits(torch.rand(2, 3, 4, 4))
    wrong = wrap(reference(THREAT.domain).module, name="wrong", shape=(1, 4, 4), classes=5)
    with pytest.raises(ContractError, match="expected logits"):
        check_victim(wrong)


def test_batch_dependence_and_state_are_refused() -> None:
    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return (flat - flat.mean(dim=0))[:, :3] * 4

    with pytest.raises(ContractError, match="batch mates"):
        check_victim(wrap(Mixes(), name="mixes", shape=(1, 4, 4), classes=3))

    class Remembers(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.flatten(1)[:, :3] * self.calls

    with pytest.raises(ContractError, match="two calls"):
        check_victim(wrap(Remembers(), name="remembers", shape=(1, 4, 4), classes=3))


def test_empty_data_is_refused() -> None:
    with pytest.raises(ContractError, match="empty"):
        evaluate(
            reference(THREAT.domain), "noise", torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)
        )


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    split = registry("datasets").get("digits").load("test")[:60]
    return split.x, split.y


@pytest.mark.parametrize("name", ["lif_cnn.digits", "qcfs_cnn.digits", "qcfs_cnn_t8.digits"])
def test_accuracy_falls_with_eps_from_clean_to_chance(name: str, digits: tuple[Tensor, Tensor]) -> None:
    victim, (x, y) = load_victim(name), digits
    robust = [evaluate(victim, "pgd.linf", x, y, eps=eps).robust for eps in ("0", "1/20", "1/10", "1/5", "1")]
    clean = int((victim.logits(x).argmax(dim=1) == y).sum())
    assert robust[0] == clean
    assert all(later <= earlier + 2 for earlier, later in itertools.pairwise(robust))
    assert robust[-1] <= len(x) // 10


def test_one_step_from_the_library_is_a_record_of_counts(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    result = evaluate(load_victim("lif_cnn.digits"), "fgsm.linf", x[:20], y[:20], eps="1/10", shard=8)
    assert (result.n, len(result.shards)) == (20, 3)
    low, high = result.interval
    assert low <= result.robust_accuracy <= high
    assert result.clean >= result.robust and result.errors == 0


@pytest.mark.parametrize("n", [1, 2])
def test_tiny_batches(n: int, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    victim = load_victim("lif_cnn.digits")
    for params in ({}, {"estimator": "pdsg"}):
        result = evaluate(victim, registry("attacks").get("pgd.linf", **params), x[:n], y[:n], eps="1/10")
        assert result.errors == 0
