"""The defense answers with the median over noisy copies, and attacks go through it."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import Goal
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Task
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.defenses.median_smoothing import MedianOverNoise
from robustspike.defenses.median_smoothing import MedianSmoothed

SHAPE = (3, 8, 8)


class Brightness(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 100 * x.flatten(1).mean(dim=1, keepdim=True)


def smoothed(draws: int = 5) -> MedianOverNoise:
    return MedianOverNoise(Brightness(), sigma=0.1, draws=draws, bounds=(0.0, 1.0))


def test_it_answers_with_the_median_of_its_draws_row_by_row() -> None:
    net, x = smoothed(), torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    net.noise = RowStreams.derive(range(3), "smooth")
    out = net(x)
    noise = RowStreams.derive(range(3), "smooth").normal((5, *SHAPE), dtype=x.dtype)
    each = torch.stack([Brightness()((x + 0.1 * noise[:, k]).clamp(0, 1)) for k in range(5)])
    assert torch.equal(out, each.median(dim=0).values)
    net.noise = RowStreams.derive([2], "smooth")
    assert torch.allclose(net(x[2:]), out[2:], atol=1e-4)
    net.noise = None
    with pytest.raises(ContractError, match="noise streams"):
        net(x)


def test_a_gradient_attack_goes_through_it() -> None:
    model = wrap(
        smoothed(),
        name="s",
        shape=SHAPE,
        classes=1,
        task=Task.QUALITY,
        stochastic=True,
        score_range=(0.0, 100.0),
    )
    x = torch.full((2, *SHAPE), 0.4)
    threat = ThreatModel(geometry="l2", eps=Fraction(1, 2), goal=Goal.RAISE)
    attack = registry("attacks").get("quality.pgd_l2", steps=4)
    result = evaluate_shard(model, attack, threat, x, torch.zeros(2).double(), torch.arange(2))
    best = 100 * 0.5 / 192**0.5  # the optimum of the score without noise
    assert result.errors == []
    assert (result.adv_score - result.clean_score).tolist() == pytest.approx([best] * 2, rel=0.2)


def test_it_is_for_quality_models_and_refuses_an_even_median() -> None:
    assert MedianSmoothed().fits(registry("victims").get("snn_iqa.photopatch")) is None
    assert MedianSmoothed().fits(registry("victims").get("lif_cnn.digits")) == "it is for quality models"
    with pytest.raises(ConfigError, match="odd"):
        MedianSmoothed(draws=4)


def test_a_shipped_spiking_model_is_reset_between_smoothed_passes() -> None:
    model = load_victim("snn_iqa.photopatch", defense="median_smoothing(draws=3)")
    x = registry("datasets").get("photopatch_iqa").load("test")[:1].x
    first, second = (model.logits(x, noise=RowStreams.derive([0], "reset")) for _ in range(2))
    assert model.spec.stochastic and torch.equal(first, second)
