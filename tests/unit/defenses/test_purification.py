"""Purification before quality models: what each layer does, and that attacks go through it."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import check_victim
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.attack.evaluate import evaluate_shard
from robustspike.bench.data.quality.photos import photograph
from robustspike.defenses.purification import Blur
from robustspike.defenses.purification import Median
from robustspike.defenses.purification import Quantise
from robustspike.defenses.purification import Turn
from robustspike.defenses.purification import Zoom

FAMILY = registry("defenses").names("purify_*")
DETERMINISTIC = [name for name in FAMILY if name != "purify_noise"]


def patches(n: int = 2) -> Tensor:
    image = photograph("coffee")[100:164, : 64 * n].reshape(64, n, 64, 3).transpose(1, 3, 0, 2)
    return torch.from_numpy(np.ascontiguousarray(image)).float() / 255


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_gradient_goes_through_and_is_that_of_the_whole(name: str) -> None:
    x = patches()
    victim = load_victim("cnn_iqa.photopatch", defense=name)
    check_victim(victim, x)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(victim.logits(leaf).sum(), leaf)
    assert float(gradient.abs().sum()) > 0
    assert not torch.equal(victim.logits(x), load_victim("cnn_iqa.photopatch").logits(x))


def test_noise_needs_streams_and_its_average_gradient() -> None:
    defense = registry("defenses").get("purify_noise")
    assert defense.spec.stochastic and defense.spec.adaptive == ("eot",)
    assert load_victim("cnn_iqa.photopatch", defense="purify_noise").spec.stochastic


def test_each_layer_does_what_it_is_called() -> None:
    x = patches()
    assert torch.allclose(Turn(90)(x), x.rot90(1, (2, 3)), atol=1e-4) or torch.allclose(
        Turn(90)(x), x.rot90(-1, (2, 3)), atol=1e-4
    )
    assert torch.allclose(Turn(0)(x), x, atol=1e-5)
    for crop in (True, False):
        assert torch.allclose(Zoom(1.0, crop=crop)(x), x, atol=1e-6)
    from scipy.ndimage import gaussian_filter
    from scipy.ndimage import median_filter

    middle = (..., slice(8, -8), slice(8, -8))
    wanted = gaussian_filter(x[0].numpy(), (0, 1, 1), truncate=3)
    assert np.allclose(Blur(1.0)(x)[0].numpy()[middle], wanted[middle], atol=1e-4)
    assert np.array_equal(Median(3)(x)[0].numpy()[middle], median_filter(x[0].numpy(), (1, 3, 3))[middle])
    assert len(Quantise(4)(x).unique()) <= 4


@pytest.mark.parametrize("name", FAMILY)
def test_they_are_for_quality_models_alone(name: str) -> None:
    defense = registry("defenses").get(name)
    assert defense.fits(registry("victims").get("lif_cnn.digits"))
    assert defense.fits(registry("victims").get("snn_iqa.photopatch")) is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("crop", {"share": 0.0}),
        ("resize", {"share": 1.5}),
        ("rotate", {"degrees": 200.0}),
        ("blur", {"sigma": 0.0}),
        ("unsharp", {"amount": -1.0}),
        ("median", {"side": 2}),
        ("quantise", {"levels": 1}),
        ("noise", {"sigma": 0.0}),
    ],
)
def test_strengths_out_of_range_are_refused(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"purify_{name}: "):
        registry("defenses").get(f"purify_{name}", **wrong)


def test_an_attack_that_does_not_know_of_the_change_moves_less_than_one_through_it() -> None:
    """What mirroring saves is ignorance alone; without a defense the unaware attack is I-FGSM itself."""
    split = registry("datasets").get("photopatch_iqa").first("test", 4)

    def moved(attack: str, defense: str) -> float:
        threat = ThreatModel(
            eps=Fraction(2, 255),
            goal=Goal.SHIFT,
            levels=255,
            access=registry("attacks").get(attack).spec.access,
        )
        victim = load_victim("cnn_iqa.photopatch", defense=defense)
        found = evaluate_shard(victim, registry("attacks").get(attack), threat, split.x, split.y, split.ids)
        assert not found.errors
        return float((found.adv_score - found.clean_score).abs().mean())

    assert moved("quality.unaware", "none") == pytest.approx(moved("quality.ifgsm", "none"), abs=1e-3)
    assert moved("quality.unaware", "purify_flip") < 0.7 * moved("quality.ifgsm", "purify_flip")


def test_the_unaware_attack_needs_the_undefended_network() -> None:
    attack = registry("attacks").get("quality.unaware")
    victims = registry("victims")
    assert "black box" in attack.fits(victims.get("brisque_like.photopatch").spec())
    assert attack.fits(victims.get("cnn_iqa.photopatch").spec()) is None
    nobody = dataclasses.replace(victims.get("cnn_iqa.photopatch").spec(), name="nobody")
    assert "not registered" in attack.fits(nobody)
