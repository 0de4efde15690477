"""The classical quality model: what its features are, and that it is attacked through its scores alone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustspike.bench.api import Access
from robustspike.bench.api import ContractError
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import check_victim
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.attack.evaluate import evaluate_shard
from robustspike.bench.attack.fitting import misfit
from robustspike.bench.contract.specs import Goal
from robustspike.bench.numbers.losses import LOSSES
from robustspike.bench.snn.estimators import Native
from robustspike.victims.quality.brisque import SceneStatistics


@pytest.mark.parametrize(("kind", "shape"), [("normal", 2.0), ("laplace", 1.0)])
def test_the_fit_finds_the_shape_and_both_variances(kind: str, shape: float) -> None:
    rng = np.random.default_rng(0)
    size = np.abs(getattr(rng, kind)(size=(1, 200_000)))
    on_the_left = rng.random(size.shape) < 2 / 3  # twice as wide, and so twice as heavy
    z = torch.from_numpy(np.where(on_the_left, -2 * size, size))
    found, mean, left, right = (float(part) for part in SceneStatistics()._asymmetric(z))
    scale = float(z[z > 0].square().mean())
    assert found == pytest.approx(shape, rel=0.05)
    assert (left, right) == pytest.approx((4 * scale, scale), rel=0.03)
    assert mean < 0


def test_features_are_finite_on_flat_images_and_know_no_batch() -> None:
    statistics = SceneStatistics()
    x = torch.cat([torch.full((1, 3, 64, 64), 0.5), torch.rand(3, 3, 64, 64)])
    found = statistics(x)
    assert found.shape == (4, 36) and bool(torch.isfinite(found).all())
    assert torch.equal(statistics(x[2:3])[0], found[2])


def test_it_is_a_checked_victim_whose_gradient_is_refused() -> None:
    victim = load_victim("brisque_like.photopatch")
    check_victim(victim)
    x = torch.rand(2, 3, 64, 64)
    assert victim.spec.black_box and victim.neurons == ()
    with pytest.raises(ContractError, match="gradients are refused"):
        victim.loss_and_grad(x, torch.zeros(2), LOSSES["score"], Native())
    threat = ThreatModel(goal=Goal.SHIFT)
    attacks = registry("attacks")
    assert "black box" in str(misfit(attacks.get("quality.ifgsm"), threat, victim.spec))
    assert misfit(attacks.get("quality.square"), threat, victim.spec) is None


def test_an_attack_through_its_scores_moves_it_more_than_noise() -> None:
    victim = load_victim("brisque_like.photopatch")
    split = registry("datasets").get("photopatch_iqa").first("test", 4)
    threat = ThreatModel(eps=Fraction(4, 255), goal=Goal.SHIFT, levels=255, access=Access.SCORE)
    moved = []
    for name, params in (("quality.square", {"queries": 60}), ("quality.random_sign", {})):
        attack = registry("attacks").get(name, **params)
        found = evaluate_shard(victim, attack, threat, split.x, split.y, split.ids)
        assert not found.errors
        moved.append(float((found.adv_score - found.clean_score).abs().mean()))
    assert moved[0] > moved[1] + 2


def test_published_images_are_ordered_as_their_raters_did(shared_data: Path) -> None:
    """Two pairs of TID2013: strong JPEG (MOS 1.66) is told from its original and from weak desaturation."""
    victim = load_victim("brisque_like.photopatch")

    def mean_score(kind: str, name: str) -> float:
        image = torch.from_numpy(np.array(Image.open(shared_data / "iqa/tid2013_pairs" / kind / name)))
        x = image.permute(2, 0, 1).float() / 255
        patches = x.unfold(1, 64, 64).unfold(2, 64, 64).permute(1, 2, 0, 3, 4).flatten(0, 1)
        with torch.no_grad():
            return float(victim.logits(patches, noise=RowStreams.derive(range(len(patches)), "t")).mean())

    assert mean_score("dist_dir", "I19.bmp") < mean_score("ref_dir", "I19.bmp") - 10
    assert mean_score("dist_dir", "I19.bmp") < mean_score("dist_dir", "I06.bmp") - 10
