"""Quality models in the harness: rounding, verdicts, orientation, practice, records."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Budget
from robustspike.bench.api import BudgetExceeded
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import Task
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.saving import sample_records
from robustspike.bench.numbers.losses import score
from robustspike.bench.record.schema import decode_samples
from robustspike.bench.record.schema import encode_samples
from robustspike.bench.record.store import Store
from robustspike.bench.record.threat import decode_threat
from robustspike.bench.record.threat import encode_threat
from robustspike.bench.run.shards import pack_shard
from robustspike.bench.run.shards import read_shard
from robustspike.bench.run.shards import write_shard
from robustspike.bench.threats.geometry import on_grid

SHAPE = (3, 16, 16)
THREAT = ThreatModel(eps=Fraction(4, 255), goal=Goal.SHIFT, levels=255)


class LinearScore(nn.Module):
    """100 * mean brightness: every pixel pulls the same way."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * x.flatten(1).mean(dim=1, keepdim=True)


def victim(**changes: object) -> ModuleVictim:
    common = {"name": "toy", "shape": SHAPE, "classes": 1, "task": Task.QUALITY, "score_range": (0.0, 100.0)}
    return wrap(LinearScore(), **{**common, **changes})


def images(n: int = 6) -> Tensor:
    levels = RowStreams.derive(range(n), "quality images").integers(196, SHAPE) + 30
    return levels.float() / 255


@dataclass(frozen=True)
class Add:
    """Add a constant, as an attack."""

    amount: float = 0.0
    queries: int = 0
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="add", geometries=("linf",), tasks=(Task.QUALITY,), goals=(Goal.SHIFT,), source="test"
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        rows = oracle.active(forwards=1)
        if self.queries:
            oracle.logits(oracle.project(x0[rows] + 1, rows), rows)
        return x0 + self.amount


def judge(attack: object, threat: ThreatModel = THREAT, target: ModuleVictim | None = None):
    x = images()
    return evaluate_shard(
        target or victim(), attack, threat, x, torch.rand(len(x)).double(), torch.arange(len(x))
    )


@pytest.mark.parametrize("eps", [0.0, 0.5 / 255, 1 / 255, 0.01, 4 / 255])
def test_rounding_lands_on_the_grid_and_inside_the_budget(eps: float) -> None:
    geometry = registry("geometries").get("linf")
    x0 = images()
    x = geometry.sample(x0, eps=eps, bounds=(0, 1), rng=RowStreams.derive(range(6), 1), rows=torch.arange(6))
    out = on_grid(geometry, x0, x, eps=eps, bounds=(0.0, 1.0), levels=255)
    assert bool(geometry.legal(x0, out, eps=eps, bounds=(0.0, 1.0)).all())
    assert torch.equal((out * 255).round() / 255, out)
    if eps < 1 / 255:
        assert torch.equal(out, x0)
    corner = on_grid(geometry, x0, x0 + eps, eps=eps, bounds=(0.0, 1.0), levels=255)
    assert torch.equal(((corner - x0) * 255).round(), torch.full_like(x0, float(int(eps * 255 + 1e-6))))


def test_images_between_the_steps_of_the_grid_are_attacked_on_it_too() -> None:
    """Resized photographs are no 8-bit images; what comes of them in an attack is."""
    geometry, eps = registry("geometries").get("linf"), 4 / 255
    x0 = RowStreams.derive(range(6), "between").uniform(images().shape[1:])
    out = on_grid(geometry, x0, (x0 + eps).clamp(0, 1), eps=eps, bounds=(0.0, 1.0), levels=255)
    assert bool(geometry.legal(x0, out, eps=eps, bounds=(0.0, 1.0)).all())
    assert torch.allclose((out * 255).round() / 255, out, atol=1e-6)
    assert float((out - x0)[x0 < 0.9].min()) > 3 / 255


def test_an_l2_budget_survives_rounding() -> None:
    geometry = registry("geometries").get("l2")
    x0 = images()
    x = geometry.project(x0, 1 - x0, eps=0.5, bounds=(0.0, 1.0))
    out = on_grid(geometry, x0, x, eps=0.5, bounds=(0.0, 1.0), levels=255)
    assert bool(geometry.legal(x0, out, eps=0.5, bounds=(0.0, 1.0)).all())


def test_score_change_is_exact_and_broken_means_a_tenth_of_the_range() -> None:
    small = judge(Add(4 / 255))
    assert torch.allclose(
        small.adv_score - small.clean_score, torch.full((6,), 400 / 255).double(), atol=1e-4
    )
    assert small.count(Status.ROBUST) == 6 and small.distance.max() <= 4 / 255 + 1e-6
    large = judge(Add(25 / 255), replace(THREAT, eps=Fraction(30, 255)))
    assert large.count(Status.ROBUST) == 6  # 9.8 of 100
    assert judge(Add(-25.6 / 255), replace(THREAT, eps=Fraction(30, 255))).count(Status.BROKEN) == 6  # 10.2


def test_budgets_below_half_a_grey_level_vanish() -> None:
    result = judge(Add(0.4 / 255), replace(THREAT, eps=Fraction(4, 2550)))
    assert torch.equal(result.x_adv, images()) and torch.equal(result.adv_score, result.clean_score)
    kept = judge(Add(0.4 / 255), replace(THREAT, eps=Fraction(4, 2550), levels=0))
    assert bool((kept.adv_score > kept.clean_score).all())


@pytest.mark.parametrize(("goal", "sign"), [(Goal.RAISE, 1), (Goal.LOWER, -1)])
def test_a_move_the_wrong_way_is_not_submitted(goal: Goal, sign: int) -> None:
    threat = replace(THREAT, goal=goal)
    right = judge(Add(sign * 4 / 255), threat)
    assert bool((sign * (right.adv_score - right.clean_score) > 0).all())
    wrong = judge(Add(-sign * 4 / 255), threat)
    assert torch.equal(wrong.x_adv, images()) and torch.equal(wrong.adv_score, wrong.clean_score)


def test_what_is_returned_counts_before_what_was_queried() -> None:
    result = judge(Add(1 / 255, queries=1))
    assert result.distance.tolist() == pytest.approx([1 / 255] * 6, abs=1e-6)
    fallback = judge(Add(0.0, queries=1), replace(THREAT, goal=Goal.RAISE))
    assert result.errors == [] and bool((fallback.adv_score > fallback.clean_score).all())


def test_leaving_the_budget_is_an_error() -> None:
    result = judge(Add(5 / 255))
    assert result.count(Status.ERROR) == 6 and "leaves the threat model" in result.errors[0]


def test_lower_is_better_models_are_turned_round() -> None:
    turned = victim(score_range=(100.0, 0.0))
    assert turned.spec.score_range == (0.0, 100.0)
    x = images()
    assert torch.allclose(turned.logits(x), 100 - victim().logits(x))
    with pytest.raises(ConfigError, match="score_range"):
        victim(score_range=None)


def test_extras_say_how_visible_and_how_steep() -> None:
    result = judge(Add(4 / 255))
    assert result.extras["gradient_l1"].tolist() == pytest.approx([100.0] * 6, rel=1e-5)
    assert result.extras["slope"].tolist() == pytest.approx([100.0] * 6, rel=1e-2)
    assert bool((result.extras["psnr"] > 36).all()) and bool((result.extras["ssim"] < 1).all())


def test_extras_survive_the_store_and_the_record(tmp_path: Path) -> None:
    result = judge(Add(4 / 255))
    store = Store(tmp_path)
    write_shard(store.shards, "key", 0, pack_shard(result))
    again = read_shard(store.shards, "key", 0)
    assert again is not None and set(again.extras) == set(result.extras)
    assert torch.equal(again.extras["ssim"], result.extras["ssim"])
    rows = tuple(sample_records(again))
    assert decode_samples(encode_samples(rows), tmp_path) == rows
    assert decode_threat(encode_threat(THREAT)) == THREAT
    assert "levels" not in encode_threat(ThreatModel())


def test_practice_is_charged_to_every_attacked_sample() -> None:
    seen = {}

    @dataclass(frozen=True)
    class Practising(Add):
        def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
            seen["grad"] = oracle.practice(torch.rand(13, *SHAPE, generator=torch.Generator()), score).grad
            return x0

    result = judge(Practising())
    assert result.forwards.tolist() == [3] * 6 == result.backwards.tolist()  # ceil(13 / 6)
    assert seen["grad"].shape == (13, *SHAPE)
    poor = judge(Practising(), replace(THREAT, budget=Budget(forwards=2, backwards=9)))
    assert poor.count(Status.ERROR) == 6 and "allows 2" in poor.errors[0]
    assert issubclass(BudgetExceeded, Exception)


def test_an_answer_that_is_not_finite_is_an_error() -> None:
    class Broken(LinearScore):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return torch.where(out > 50, torch.nan, out)

    dark = 0.4 * torch.ones(2, *SHAPE)
    threat = replace(THREAT, eps=Fraction(1, 2), levels=0)
    target = wrap(Broken(), name="nan", shape=SHAPE, classes=1, task=Task.QUALITY, score_range=(0.0, 1.0))
    result = evaluate_shard(target, Add(0.2), threat, dark, torch.zeros(2).double(), torch.arange(2))
    assert result.count(Status.ERROR) == 2 and "not finite" in result.errors[0]
