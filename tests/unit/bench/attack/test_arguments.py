"""What a user hands to `evaluate` is checked before the first pass, and failures are never numbers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import BenchError
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import Domain
from robustspike.bench.api import EstimatorRefused
from robustspike.bench.api import Goal
from robustspike.bench.api import LossGrad
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Native
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import Task
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import ThreatViolation
from robustspike.bench.api import VictimFailed
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.arguments import exact
from robustspike.bench.testing.reference import reference

X = torch.linspace(0, 1, 8 * 64).view(8, 1, 8, 8)


class Counting(nn.Module):
    """A linear classifier that counts its passes in a list shared with its copies."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        weights = RowStreams.derive(range(classes), "counting").normal((64,))
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        PASSES.append(len(x))
        out: Tensor = x.flatten(1) @ self.weights.T
        return out


PASSES: list[int] = []


@pytest.fixture
def victim() -> ModuleVictim:
    made = wrap(Counting(), name="linear", shape=(1, 8, 8), classes=10)
    PASSES.clear()
    return made


def labels(victim: ModuleVictim, x: Tensor = X) -> Tensor:
    y = victim.logits(x).argmax(dim=1)
    PASSES.clear()
    return y


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("8/255", Fraction(8, 255)),
        (" 8 / 255 ", Fraction(8, 255)),
        (Fraction(8, 255), Fraction(8, 255)),
        ("0.1", Fraction(1, 10)),
        (0.1, Fraction(1, 10)),
        (np.float32(0.1), Fraction(1, 10)),
        (np.float64(0.1), Fraction(1, 10)),
        (np.array(0.1), Fraction(1, 10)),
        (torch.tensor(0.1), Fraction(1, 10)),
        (torch.tensor(0.5, dtype=torch.bfloat16), Fraction(1, 2)),
        (torch.tensor(3), Fraction(3)),
        (np.int64(1), Fraction(1)),
        (Decimal("0.1"), Fraction(1, 10)),
        (0, Fraction(0)),
        ("1e-3", Fraction(1, 1000)),
    ],
)
def test_sizes_are_exact_however_they_are_written(value: Any, expected: Fraction) -> None:
    assert exact(value, "eps") == expected


@pytest.mark.parametrize(
    "value",
    [
        *("0,1", "eight", "", "/", "1/0", "1/2/3", "min", "nan", "inf", "-1/10", "1" + "0" * 400),
        *(-0.1, float("nan"), float("inf"), True, None, [0.1], 0.1j),
        *(np.array([0.1]), torch.tensor([0.1]), torch.tensor(torch.nan)),
    ],
)
def test_sizes_that_are_no_number_are_one_line_that_names_them(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^eps: expected .*, got "):
        exact(value, "eps")


def test_wrong_sizes_stop_before_the_first_pass(victim: ModuleVictim) -> None:
    y = labels(victim)
    for eps in ("0,1", float("nan"), -1, "min"):
        with pytest.raises(ConfigError, match="eps"):
            evaluate(victim, "fgsm.linf", X, y, eps=eps)
    with pytest.raises(ConfigError, match="either `threat`"):
        evaluate(victim, "fgsm.linf", X, y, eps=0.1, threat=ThreatModel())
    assert not PASSES


def bad(values: Tensor, at: int, value: float) -> Tensor:
    out = values.clone()
    out.view(len(out), -1)[at, 0] = value
    return out


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X * 255, "values from 0 to 255, expected 0 to 1"),
        (X * 2 - 1, "values from -1 to 1"),
        (bad(X, 5, torch.nan), "1 of 8 samples hold NaN or infinity, the first in row 5"),
        (bad(X, 3, torch.inf), "the first in row 3"),
        ((X * 255).to(torch.uint8), r"torch.uint8. Divide 8-bit images by 255"),
        (X.long(), "torch.int64"),
        (X > 0.5, "torch.bool"),
        (X.flatten(1), r"expected \[N, 1, 8, 8\], got \[8, 64\]"),
        (X[0], r"got \[1, 8, 8\]"),
        (X[:0], "empty"),
    ],
)
def test_inputs_that_the_victim_does_not_take_are_named(x: Any, message: str, victim: ModuleVictim) -> None:
    y = labels(victim)
    with pytest.raises(ContractError, match=message) as caught:
        evaluate(victim, "fgsm.linf", x, y, eps="1/10")
    assert "evaluate: x for victim 'linear'" in str(caught.value)
    assert "fgsm" not in str(caught.value)
    assert not PASSES


def test_frames_that_are_not_binary_are_no_spikes() -> None:
    victim = reference(Domain.SPIKES)
    x = torch.full((4, *victim.spec.shape), 0.5)
    with pytest.raises(ContractError, match="binary"):
        evaluate(victim, "flip.random", x, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_labels_may_be_of_any_integer_type(kind: torch.dtype, victim: ModuleVictim) -> None:
    y = labels(victim)
    plain = evaluate(victim, "pgd.linf(steps=2)", X, y, eps="1/100")
    again = evaluate(victim, "pgd.linf(steps=2)", X, y.to(kind), eps="1/100")
    assert (plain.clean, plain.robust) == (again.clean, again.robust)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, None], r"got \[8, 1\]"),
        (lambda y: nn.functional.one_hot(y, 10), "one-hot"),
        (lambda y: y[:5], r"expected \[8\]"),
        (lambda y: bad(y, 3, 10), "labels from 0 to 10, expected 0 to 9|labels from . to 10"),
        (lambda y: bad(y, 3, -1), "labels from -1"),
        (lambda y: y + 0.5, "float32"),
        (lambda y: y > 3, "torch.bool"),
        (lambda y: y.tolist(), "got list"),
    ],
)
def test_labels_that_are_no_classes_are_named(change: Any, message: str, victim: ModuleVictim) -> None:
    y = change(labels(victim))
    with pytest.raises(ContractError, match=message) as caught:
        evaluate(victim, "fgsm.linf", X, y, eps="1/10")
    assert "y for victim 'linear'" in str(caught.value)
    assert not PASSES


@pytest.mark.parametrize("shard", [0, -1, 2.0, True, "8"])
def test_shards_are_whole_numbers_from_1(shard: Any, victim: ModuleVictim) -> None:
    with pytest.raises(ConfigError, match=r"shard: expected a whole number of 1 or more"):
        evaluate(victim, "fgsm.linf", X, labels(victim), eps="1/10", shard=shard)
    with pytest.raises(ConfigError, match="seed"):
        evaluate(victim, "fgsm.linf", X, labels(victim), eps="1/10", seed=-1)
    assert not PASSES


def test_what_does_not_exist_or_apply_is_told_before_the_first_attack(victim: ModuleVictim) -> None:
    y = labels(victim)
    for attack, message in (
        ("pgd.linff", "Did you mean 'pgd.linf'"),
        ("pgd.linf(loss='xe')", "unknown loss 'xe'"),
        ("pgd.linf(loss='score')", "does not apply"),
        ("pgd.linf(estimator='pdsgg')", "Did you mean 'pdsg'"),
        ("sda.l0", "domain spikes or events, not static"),
        ("quality.fgsm", "task quality, not classify"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(victim, attack, X, y, eps="1/10")
    with pytest.raises(ConfigError, match="geometry"):
        evaluate(victim, "pgd.linf", X, y, threat=ThreatModel(geometry="l2"))
    with pytest.raises(ConfigError, match="unknown geometry 'l7'"):
        evaluate(victim, "pgd.linf", X, y, threat=ThreatModel(geometry="l7"))
    with pytest.raises(ConfigError, match="goal"):
        evaluate(victim, "pgd.linf", X, y, threat=ThreatModel(goal=Goal.RAISE))
    with pytest.raises(ContractError, match="an instance"):
        evaluate(victim, type(registry("attacks").get("pgd.linf")), X, y)  # type: ignore[arg-type]
    two = wrap(Counting(2), name="two", shape=(1, 8, 8), classes=2)
    with pytest.raises(ConfigError, match="at least 3 classes"):
        evaluate(two, "pgd.linf(loss='dlr')", X, labels(two), eps="1/10")


def test_only_linf_has_a_usual_radius(victim: ModuleVictim) -> None:
    y = labels(victim)
    assert evaluate(victim, "fgsm.linf", X, y).errors == 0
    with pytest.raises(ConfigError, match="without a usual radius"):
        evaluate(victim, "pgd.l2", X, y)
    nearest = evaluate(victim, "cw.l2(steps=5, searches=1)", X, y)
    assert nearest.errors == 0
    assert ThreatModel(geometry="l2", eps=None).label == "l2 min"


@dataclass(frozen=True)
class Fails:
    """An attack that breaks its contract in a chosen way."""

    how: str = "raises"
    spec: ClassVar[AttackSpec] = AttackSpec(name="fails", geometries=("linf",), source="test")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        if self.how == "raises":
            raise KeyError("slip")
        if self.how == "rows":
            oracle.loss_and_grad(x0, torch.arange(len(x0) - 1))
        return x0 + 1


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("raises", ContractError, "KeyError: 'slip'"),
        ("leaves", ThreatViolation, "leaves the threat model"),
        ("rows", ContractError, "8 inputs for 7 rows"),
    ],
)
def test_an_attack_that_fails_raises_unless_errors_are_kept(
    how: str, kind: type[BenchError], message: str, victim: ModuleVictim
) -> None:
    y = labels(victim)
    with pytest.raises(kind, match=message):
        evaluate(victim, Fails(how), X, y, eps="1/10")
    kept = evaluate(victim, Fails(how), X, y, eps="1/10", keep_errors=True)
    assert (kept.errors, kept.robust) == (8, 0)
    assert message in kept.shards[0].errors[0]
    assert "errors" in kept.flags


@dataclass(frozen=True)
class Scales(Native):
    """A gradient that also shrinks the weights."""

    def loss_and_grad(self, module: nn.Module, *given: Any, **named: Any) -> LossGrad:
        out = super().loss_and_grad(module, *given, **named)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.5)
        return out


@dataclass(frozen=True)
class Vandal:
    """An attack through a gradient that changes the victim."""

    spec: ClassVar[AttackSpec] = AttackSpec(name="vandal", geometries=("linf",), source="test")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        oracle.loss_and_grad(x0, torch.arange(len(x0)), estimator=Scales())
        return x0


def test_an_attack_that_leaves_the_victim_changed_raises(victim: ModuleVictim) -> None:
    with pytest.raises(ContractError, match="vandal: left the victim changed"):
        evaluate(victim, Vandal(), X, labels(victim), eps="1/10")


class Fragile(nn.Module):
    """Raises, or answers NaN, for inputs off a grid of sixteenths."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.inner, self.raises = Counting(), raises

    def forward(self, x: Tensor) -> Tensor:
        off = ((x * 16 - (x * 16).round()).abs().flatten(1) > 1e-4).any(dim=1)
        if self.raises and len(x) == 8 and bool(off.any()):
            raise IndexError("an embedding without such a row")
        return torch.where(off[:, None] & (not self.raises), torch.nan, self.inner(x))


def test_a_victim_that_answers_nan_near_the_data_has_errors_and_no_robust_sample() -> None:
    victim = wrap(Fragile(raises=False), name="fragile", shape=(1, 8, 8), classes=10)
    x = (X * 16).round() / 16
    result = evaluate(victim, "pgd.linf(steps=2)", x, labels(victim, x), eps="1/10")
    assert (result.errors, result.robust) == (8, 0)
    assert {"errors", "non_finite"} <= set(result.flags)
    assert "victim 'fragile'" in result.shards[0].errors[0]


def test_a_victim_that_raises_is_named_and_no_attack_is() -> None:
    victim = wrap(Fragile(raises=True), name="fragile", shape=(1, 8, 8), classes=10)
    x = (X * 16).round() / 16
    with pytest.raises(
        VictimFailed, match="'fragile': its forward pass raised IndexError: an embedding"
    ) as caught:
        evaluate(victim, "pgd.linf(steps=2)", x, labels(victim, x), eps="1/10")
    assert "pgd" not in str(caught.value)


def test_numbers_carry_their_flags_and_print_them() -> None:
    class Saturated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Counting()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x) * 1e6
            return out

    victim = wrap(Saturated(), name="saturated", shape=(1, 8, 8), classes=10)
    result = evaluate(victim, "pgd.linf", X, labels(victim), eps="1/100")
    assert "zero_gradient" in result.flags
    assert "zero_gradient: half of the gradients or more were all-zero" in str(result)
    healthy = wrap(Counting(), name="healthy", shape=(1, 8, 8), classes=10)
    clean = evaluate(healthy, "pgd.linf", X, labels(healthy), eps="1/100")
    assert clean.flags == () and "flags: none" in repr(clean)
    assert f"robust={clean.robust}" in str(clean)


def test_an_estimator_that_does_not_apply_is_refused_and_never_the_nets_own_gradient() -> None:
    victim = load_victim("ann_cnn.digits")
    data = registry("datasets").get("digits").load("test")[:4]
    with pytest.raises(EstimatorRefused, match="'pdsg' does not apply: the network has no spiking neurons"):
        evaluate(victim, "pgd.linf(estimator='pdsg')", data.x, data.y, eps="1/10")

    @dataclass(frozen=True)
    class Hidden:
        spec: ClassVar[AttackSpec] = AttackSpec(name="hidden", geometries=("linf",), source="test")

        def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
            oracle.loss_and_grad(x0, torch.arange(len(x0)), estimator="atan(alpha=5)")
            return x0

    with pytest.raises(EstimatorRefused, match=r"atan\(alpha=5\)"):
        evaluate(victim, Hidden(), data.x, data.y, eps="1/10")


def test_scores_of_a_quality_model_are_labels_of_any_type() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).mean(dim=1, keepdim=True)

    victim = wrap(Mean(), name="mean", shape=(1, 8, 8), classes=1, task=Task.QUALITY, score_range=(0.0, 1.0))
    assert evaluate(victim, "quality.fgsm", X, torch.arange(8)).errors == 0
    with pytest.raises(ContractError, match="finite scores"):
        evaluate(victim, "quality.fgsm", X, torch.full((8,), torch.nan))


def test_evaluate_works_inside_inference_mode() -> None:
    with torch.inference_mode():
        victim = wrap(Counting(), name="linear", shape=(1, 8, 8), classes=10)
        x = X.clone()
        y = victim.logits(x).argmax(dim=1)
        inside = evaluate(victim, "pgd.linf(steps=2)", x, y, eps="1/100")
    outside = evaluate(victim, "pgd.linf(steps=2)", X, y.clone(), eps="1/100")
    assert (inside.clean, inside.robust, inside.errors) == (outside.clean, outside.robust, 0)
    assert inside.clean == inside.shards[0].count(Status.ROBUST) + inside.shards[0].count(Status.BROKEN)
