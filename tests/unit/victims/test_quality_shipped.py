"""The shipped quality models against the specification: clean ranks, what NT buys, and no sign of masking."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import pytest
import torch

from robustspike.bench.api import Goal
from robustspike.bench.api import ShardResult
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import spearman
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import read_certificate

# SROCC of patches and of their images as measured for methods/nr-iqa.md, section 9, one seed each. Seeds of
# one recipe lie about 0.03 apart (there: 0.764 and 0.794 for the CNN), so a single one is held to that.
SPECIFIED = {
    ("cnn", "none"): (0.764, 0.860),
    ("snn", "none"): (0.752, 0.846),
    ("cnn", "nt"): (0.693, 0.809),
    ("snn", "nt"): (0.678, 0.779),
}
MODELS = sorted(SPECIFIED)
SEEDS_APART = 0.03


@pytest.mark.parametrize(("kind", "defense"), MODELS)
def test_clean_rank_correlation_is_the_specified_one_within_seeds(kind: str, defense: str) -> None:
    recipe = registry("victims").get(f"{kind}_iqa.photopatch")
    weights = find_weights(recipe, defense, 0, None)
    assert weights is not None
    certificate = read_certificate(weights)
    assert certificate["test"]["n"] == 1824 and certificate["recipe"]["schedule"]["keep"] == "last"
    patches, images = SPECIFIED[kind, defense]
    assert certificate["test"]["srocc"] >= patches - SEEDS_APART
    assert certificate["test"]["image_srocc"] >= images - SEEDS_APART


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "defense"), MODELS)
def test_the_certificate_is_right(kind: str, defense: str) -> None:
    recipe = registry("victims").get(f"{kind}_iqa.photopatch")
    victim = load_victim(recipe.name, defense=defense)
    stated = read_certificate(find_weights(recipe, defense, 0, None))["test"]  # type: ignore[arg-type]
    found = recipe.figures(victim.module, recipe.data().load("test"))
    assert found == pytest.approx({name: stated[name] for name in found}, abs=2e-3)


@lru_cache
def attacked(kind: str, defense: str, attack: str, eps: int, n: int, **params: int) -> ShardResult:
    rule = registry("attacks").get(attack, **params)
    threat = ThreatModel(eps=Fraction(eps, 255), goal=Goal.SHIFT, levels=255, access=rule.spec.access)
    data = registry("datasets").get("photopatch_iqa").load("test")[:n]
    victim = load_victim(f"{kind}_iqa.photopatch", defense=defense)
    result = evaluate_shard(victim, rule, threat, data.x, data.y, data.ids)
    assert result.errors == []
    return result


def change(result: ShardResult) -> float:
    return float((result.adv_score - result.clean_score).abs().mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cnn", "snn"])
def test_small_perturbations_destroy_the_ranking_and_nt_slows_them(kind: str) -> None:
    plain = attacked(kind, "none", "quality.ifgsm", 4, 64)
    mos = registry("datasets").get("photopatch_iqa").load("test")[:64].y.numpy()
    assert spearman(mos, plain.clean_score.numpy()) > 0.5
    assert spearman(mos, plain.adv_score.numpy()) < 0
    before, after = (attacked(kind, defense, "quality.ifgsm", 2, 64) for defense in ("none", "nt"))
    assert change(after) <= 0.9 * change(before)
    slopes = [float(result.extras["slope"].mean()) for result in (before, after)]
    assert slopes[1] <= 0.85 * slopes[0]
    norms = [float(result.extras["gradient_l1"].mean()) for result in (before, after)]
    assert norms[1] < norms[0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "defense"), MODELS)
def test_attacks_that_see_less_move_the_score_less(kind: str, defense: str) -> None:
    white = attacked(kind, defense, "quality.ifgsm", 4, 24)
    noise = attacked(kind, defense, "quality.random_sign", 4, 24)
    for name, params in (("quality.square", {"queries": 200}), ("quality.transfer", {})):
        assert change(attacked(kind, defense, name, 4, 24, **params)) < change(white), name
    assert change(noise) < 0.5 * change(white)
    assert torch.equal(noise.clean_score, white.clean_score)
