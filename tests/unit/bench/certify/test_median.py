"""Bounds on smoothed scores: exact ranks, tight on a linear score, left by no attack inside the radius."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.stats import binom
from scipy.stats import norm
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import Task
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.certify.base import cannot_certify
from robustspike.bench.certify.base import certify_shard
from robustspike.bench.certify.base import radius_needed
from robustspike.bench.certify.median import MedianSmoothing
from robustspike.bench.certify.median import denoised
from robustspike.bench.certify.scores import CertifiedScores
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.run.verify import verify
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan
from robustspike.leaderboard.sections import build

SHAPE = (3, 12, 12)


class Wavy(nn.Module):
    """A steep, bent score of small images: what attacks love."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SHAPE, generator=generator("wavy")))

    def forward(self, x: Tensor) -> Tensor:
        z = ((x - 0.5) * self.weight).flatten(1).sum(dim=1, keepdim=True)
        return 50 + 30 * torch.sin(z) + 10 * torch.tanh(3 * z)


class Linear(Wavy):
    def forward(self, x: Tensor) -> Tensor:
        return 50 + ((x - 0.5) * self.weight).flatten(1).sum(dim=1, keepdim=True)


def victim(module: nn.Module) -> ModuleVictim:
    return wrap(module, name="toy", shape=SHAPE, classes=1, task=Task.QUALITY, score_range=(0.0, 100.0))


def images(n: int = 4) -> Tensor:
    return 0.4 + 0.2 * RowStreams.derive(range(n), "median images").uniform(SHAPE)


def certified(
    module: nn.Module, x: Tensor, radius: float, seed: int = 0, **params: object
) -> CertifiedScores:
    rule = MedianSmoothing(**{"sigma": 0.05, "draws": 300, **params})
    streams = RowStreams.derive(range(len(x)), seed, "median test")
    return rule.certify(victim(module), x, torch.zeros(len(x)), radii=[radius], streams=streams)


@pytest.mark.parametrize("radius", [0.0, 0.02, 0.05, 0.1])
def test_ranks_miss_a_percentile_at_most_as_often_as_stated(radius: float) -> None:
    rule = MedianSmoothing(sigma=0.05, draws=300, error=0.001)
    rank, share = rule.rank(radius), norm.cdf(-radius / 0.05)
    # the rank-th smallest draw is above the percentile if fewer than rank draws are below it
    assert rank == 0 or binom.cdf(rank - 1, 300, share) <= 0.0005
    assert binom.cdf(rank, 300, share) > 0.0005  # and no larger rank would do


def test_bounds_of_a_linear_score_hold_and_are_nearly_tight() -> None:
    radius, steep = 0.05, float(Linear().weight.detach().norm())
    found = certified(Linear(), images(), radius, draws=2000)
    exact = victim(Linear()).logits(images()).squeeze(1).double()
    most = radius * steep  # what an attack within the radius achieves, exactly
    assert bool((found.high >= exact + most).all() and (found.low <= exact - most).all())
    assert bool((found.change() <= 1.4 * most).all())
    assert bool(((found.score - exact).abs() < 0.2 * most).all())


def attacked(x: Tensor, radius: float, sign: float, side: int) -> Tensor:
    """Attack the smoothed score within the radius: gradient steps on the mean over draws."""
    model, start = victim(Wavy()), x
    noise = RowStreams.derive(range(len(x)), "attack noise")
    for _ in range(15):
        total = torch.zeros_like(x)
        for _ in range(8):
            leaf = (x + 0.05 * noise.normal(SHAPE)).requires_grad_(True)
            total += torch.autograd.grad(model.module(denoised(leaf, side)).sum(), leaf)[0]
        x = x + sign * radius / 4 * total / total.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        change = x - start
        size = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        x = start + change * (radius / size).clamp(max=1.0)
    return x


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_attack_on_the_smoothed_score_leaves_its_bounds(side: int, sign: float) -> None:
    radius = 0.04
    x = images(8)
    found = certified(Wavy(), x, radius, denoise=side)
    moved = certified(Wavy(), attacked(x, radius, sign, side), 0.0, seed=1, denoise=side)
    assert bool((moved.score >= found.low).all() and (moved.score <= found.high).all())
    assert float((sign * (moved.score - found.score)).mean()) > 0.05 * float(found.change().mean())


def test_too_few_draws_for_a_radius_bound_nothing_and_say_so() -> None:
    found = certified(Wavy(), images(), 0.3, draws=50)
    assert bool(torch.isinf(found.low).all() and torch.isinf(found.high).all())
    threat = ThreatModel(geometry="l2", eps=Fraction(3, 10), goal=Goal.SHIFT)
    rule = MedianSmoothing(sigma=0.05, draws=50)
    result = certify_shard(victim(Wavy()), rule, threat, images(), torch.zeros(4).double(), torch.arange(4))
    assert result.count(Status.UNCERTIFIED) == 4
    assert bool(torch.isnan(result.extras["certified_low"]).all())
    assert result.extras["radius"].tolist() == [-1.0] * 4 and result.forwards.tolist() == [50] * 4


def test_a_goal_asks_for_one_bound_and_shift_for_both() -> None:
    ends = [torch.tensor([value]).double() for value in (50.0, 45.0, 62.0)]
    found = CertifiedScores("median", "l2", 0.1, *ends, draws=10, confidence=0.999)
    assert [float(found.change(goal)) for goal in (Goal.RAISE, Goal.LOWER, Goal.SHIFT)] == [12, 5, 12]


def test_budgets_of_images_have_an_l2_radius() -> None:
    def threat(geometry: str) -> ThreatModel:
        return ThreatModel(geometry=geometry, eps=Fraction(1, 100), goal=Goal.SHIFT)

    assert radius_needed(threat("l2"), "l2", 432) == 0.01
    assert radius_needed(threat("rmse"), "l2", 10000) == pytest.approx(1.0)
    assert radius_needed(threat("linf"), "l2", 10000) == pytest.approx(1.0)
    assert cannot_certify(MedianSmoothing(), threat("l2"), victim(Wavy()).spec) is None
    digits = registry("victims").get("lif_cnn.digits").spec()
    assert cannot_certify(MedianSmoothing(), threat("l2"), digits) == "it answers no score"
    for name in ("smoothing", "intervals"):
        rule = registry("certifiers").get(name)
        assert cannot_certify(rule, threat("linf"), victim(Wavy()).spec) == "it is no classifier"


def test_the_median_filter_is_that_of_scipy() -> None:
    x = images(2)
    for side in (3, 5):
        wanted = np.stack(
            [[median_filter(c.numpy(), size=side, mode="nearest") for c in image] for image in x]
        )
        assert np.array_equal(denoised(x, side).numpy(), wanted)
    assert denoised(x, 1) is x


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"draws": 0}, {"error": 1.0}, {"denoise": 2}])
def test_wrong_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="median"):
        MedianSmoothing(**wrong)


SUITE = """
samples = 4
shard = 4
[[threats]]
geometry = "rmse"
eps = "1/2000"
goal = "shift"
[[victims]]
name = "cnn_iqa.photopatch"
[[attacks]]
name = "quality.random_gauss"
[[certify]]
name = "median"
params = { draws = 40, sigma = 0.2 }
"""


def test_a_suite_certifies_scores_in_a_table_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "proofs.toml"
    path.write_text(SUITE)
    settings = Settings(tmp_path / "out")
    records = run(make_plan(read_suite(str(path))), settings)
    assert [(r.attack, r.task) for r in records] == [
        ("quality.random_gauss", Task.QUALITY),
        ("median", Task.CERTIFY),
    ]
    sections = {section.kind.name: section for section in build(records)}
    assert set(sections) == {"quality", "strength", "scores"}
    row = sections["scores"].frame.iloc[0]
    assert row["certified_by"] == "median[draws=40,sigma=0.2]" and row["draws"] == 40
    assert 0 < row["change"] < 100 and row["unbounded"] == 0
    assert row["change_share"] == row["change"] / 100 and row["norm"] == "l2"
    assert row["radius"] == pytest.approx((3 * 64 * 64) ** 0.5 / 2000)
    assert "no_noise_control" not in sections["quality"].frame.iloc[0]["flags"]
    place = tmp_path / "out" / "records" / records[1].key
    assert verify(place, settings).problems == ()
    shifted = [replace(r, extras={**r.extras, "certified_high": 1e9}) for r in records[1].rows]
    forged = replace(records[1], rows=tuple(shifted))
    assert build([forged])[0].frame.iloc[0]["change"] > 1e8


@pytest.mark.slow
def test_no_attack_on_a_shipped_model_leaves_its_bounds() -> None:
    model = load_victim("cnn_iqa.photopatch")
    data = registry("datasets").get("photopatch_iqa").load("test")[:3]
    rule, radius, x = MedianSmoothing(sigma=0.1, draws=200), 0.12, data.x
    streams = RowStreams.derive(data.ids, "shipped")
    found = rule.certify(model, x, data.y, radii=[radius], streams=streams)
    for sign in (1.0, -1.0):
        moved, noise = x.clone(), RowStreams.derive(data.ids, "shipped attack")
        for _ in range(5):
            total = torch.zeros_like(x)
            for _ in range(4):
                leaf = (moved + 0.1 * noise.normal(x.shape[1:])).clamp(0, 1).requires_grad_(True)
                total += torch.autograd.grad(model.module(leaf).sum(), leaf)[0]
            step = total / total.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            change = moved + sign * radius / 3 * step - x
            size = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            moved = x + change * (radius / size).clamp(max=1.0)
        again = rule.certify(model, moved, data.y, radii=[0.0], streams=streams.fork("again"))
        assert bool((again.score >= found.low).all() and (again.score <= found.high).all())
        assert float((sign * (again.score - found.score)).mean()) > 0
