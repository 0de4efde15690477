"""Lowered labels and JPEG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Step
from robustspike.bench.api import check_victim
from robustspike.bench.api import find_neurons
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.data.quality.photos import photograph
from robustspike.defenses.iqa_at import QualityAdversarialTraining
from robustspike.defenses.jpeg import Jpeg
from robustspike.defenses.jpeg import compressed


def patches(n: int = 2) -> Tensor:
    image = photograph("coffee")[100:164, : 64 * n].reshape(64, n, 64, 3).transpose(1, 3, 0, 2)
    return torch.from_numpy(np.ascontiguousarray(image)).float() / 255


@dataclass
class Recorder:
    """A loss that remembers what it was asked."""

    seen: list[tuple[Tensor, Tensor]]

    def __call__(self, net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append((x.detach().clone(), y.clone()))
        out = net(x.flatten(1))
        return (out.squeeze(1) - y / 100).square().mean(), out


def test_labels_are_lowered_by_visibility_and_stay_in_range() -> None:
    x, y = patches(), torch.tensor([90.0, 0.01], dtype=torch.float64)
    net = nn.Linear(x[0].numel(), 1)
    loss = Recorder([])
    step = Step(net, x, y, generator("at"), 0, loss)
    terms = QualityAdversarialTraining(eps=8 / 255, step=10 / 255).terms(step)
    (clean, adversarial) = loss.seen
    assert torch.equal(clean[0], x) and torch.equal(clean[1], y)
    assert float((adversarial[0] - x).abs().max()) == pytest.approx(8 / 255, abs=1e-6)
    assert 60 < float(adversarial[1][0]) < 90 and float(adversarial[1][1]) == 0
    assert float(terms["adversarial"].detach()) > float(terms["clean"].detach())
    assert (step.forwards, step.backwards) == (2 * 2, 3 * 2)


def test_no_budget_is_plain_training_and_classifiers_are_refused() -> None:
    loss = Recorder([])
    x = patches()
    step = Step(nn.Linear(x[0].numel(), 1), x, torch.ones(2).double(), generator("at"), 0, loss)
    assert set(QualityAdversarialTraining(eps=0).terms(step)) == {"loss"} and len(loss.seen) == 1
    for defense in (QualityAdversarialTraining(), Jpeg()):
        assert defense.fits(registry("victims").get("lif_cnn.digits"))
        assert defense.fits(registry("victims").get("cnn_iqa.photopatch")) is None
    with pytest.raises(ConfigError, match="iqa_at"):
        QualityAdversarialTraining(eps=-1)
    with pytest.raises(ConfigError, match="jpeg"):
        Jpeg(quality=0)


def test_jpeg_compresses_and_lets_the_gradient_through() -> None:
    x = patches()
    low, high = (float((compressed(x, q) - x).square().mean()) for q in (10, 90))
    assert low > high > 0
    grey = x.mean(dim=1, keepdim=True)
    assert compressed(grey, 90).shape == grey.shape
    plain = load_victim("cnn_iqa.photopatch")
    hard = load_victim("cnn_iqa.photopatch", defense="jpeg")
    check_victim(hard, x)
    assert torch.equal(hard.logits(x), plain.logits(compressed(x, 70)))
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(hard.logits(leaf).sum(), leaf)
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("defense", ["none", "nt"])
@pytest.mark.parametrize("kind", ["cnn", "snn"])
def test_shipped_regressors_keep_their_contract(kind: str, defense: str) -> None:
    victim = load_victim(f"{kind}_iqa.photopatch", defense=defense)
    x = patches()
    check_victim(victim, x)
    scores = victim.logits(x)
    assert bool(((scores >= 0) & (scores <= 100)).all()) and victim.spec.score_range == (0.0, 100.0)
    assert len(find_neurons(victim.module)) == (4 if kind == "snn" else 0)
    assert float(victim.logits(compressed(x, 5)).mean()) < float(scores.mean()) - 10


def test_shipped_regressors_judge_images_of_other_sizes() -> None:
    whole = load_victim("snn_iqa.koniq10k")
    assert whole.spec.shape == (3, 224, 224)
    image = torch.from_numpy(photograph("chelsea")[:224, :224].transpose(2, 0, 1).copy()).float()[None] / 255
    assert float(whole.logits(image)) > float(whole.logits(compressed(image, 5))) + 10
