"""What the attacks that render images do to them, and how well they do on scores with a known optimum."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.quality.blocks import Parsimonious
from robustspike.attacks.quality.blocks import blocks_of
from robustspike.attacks.quality.blocks import pasted
from robustspike.attacks.quality.l2 import QualityPgdL2
from robustspike.attacks.quality.rendered import ReColor
from robustspike.attacks.quality.rendered import StAdv
from robustspike.attacks.quality.rendered import low_band
from robustspike.attacks.quality.rendered import roughness
from robustspike.attacks.quality.rendered import warped
from robustspike.bench.api import Goal
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ShardResult
from robustspike.bench.api import Task
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import wrap

SHAPE = (3, 16, 16)


class Weighted(nn.Module):
    """A linear score around 50."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return 50 + ((x - 0.5) * self.weight.to(x)).flatten(1).sum(dim=1, keepdim=True)


def images(n: int = 4) -> Tensor:
    return RowStreams.derive(range(n), "rendered images").integers(193, SHAPE).double() / 256 + 0.125


def attacked(attack, weight: Tensor, *, geometry: str = "linf", eps=Fraction(1, 16)) -> ShardResult:
    threat = ThreatModel(geometry=geometry, eps=eps, goal=Goal.RAISE, access=attack.spec.access)
    model = wrap(
        Weighted(weight), name="w", shape=SHAPE, classes=1, task=Task.QUALITY, score_range=(0.0, 100.0)
    )
    result = evaluate_shard(model, attack, threat, images(), torch.zeros(4).double(), torch.arange(4))
    assert result.errors == []
    return result


def weight(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=generator("rendered", seed)).double()


def test_no_flow_leaves_every_pixel_and_a_whole_pixel_shifts_the_image() -> None:
    x = images()
    assert torch.allclose(warped(x, torch.zeros(4, 2, 16, 16).double()), x, atol=1e-12)
    right = torch.zeros(4, 2, 16, 16).double()
    right[:, 0] = 1
    moved = warped(x, right)
    assert torch.allclose(moved[..., :-1], x[..., 1:], atol=1e-12)
    assert torch.allclose(moved[..., -1], x[..., -1], atol=1e-12)  # beyond the border is the border


def test_a_constant_flow_is_smooth_and_a_step_is_not() -> None:
    flow = torch.ones(1, 2, 16, 16).double()
    assert float(roughness(flow)) < 1e-3
    flow[:, :, :8] = 0
    assert float(roughness(flow)) == pytest.approx(2**0.5 / 15, rel=1e-2)


def test_stadv_moves_pixels_and_nothing_in_a_flat_image() -> None:
    threat = ThreatModel(eps=Fraction(1, 4), goal=Goal.RAISE)
    model = wrap(
        Weighted(weight()), name="w", shape=SHAPE, classes=1, task=Task.QUALITY, score_range=(0.0, 100.0)
    )
    flat = torch.full((2, *SHAPE), 0.5).double()
    result = evaluate_shard(model, StAdv(), threat, flat, torch.zeros(2).double(), torch.arange(2))
    assert float((result.x_adv - flat).abs().max()) < 1e-9
    gain = attacked(StAdv(), weight(), eps=Fraction(1))
    assert bool((gain.adv_score > gain.clean_score + 1).all())


def test_recolor_gives_equal_colours_equal_colours() -> None:
    threat = ThreatModel(eps=Fraction(1, 8), goal=Goal.RAISE)
    model = wrap(
        Weighted(weight()), name="w", shape=SHAPE, classes=1, task=Task.QUALITY, score_range=(0.0, 100.0)
    )
    x = torch.where(torch.arange(16) < 8, 0.3, 0.7).double().expand(1, *SHAPE).clone()
    final = evaluate_shard(model, ReColor(), threat, x, torch.zeros(1).double(), torch.arange(1)).x_adv
    assert not torch.equal(final, x)
    for half in (final[..., :8], final[..., 8:]):
        assert torch.allclose(half, half[..., :1, :1].expand_as(half), atol=1e-12)
    assert "three" in str(ReColor.fits.__doc__)


def test_the_low_band_of_haar_is_the_mean_of_blocks_and_odd_sizes_have_one_too() -> None:
    x = torch.arange(25).double().view(1, 1, 5, 5)
    low = low_band(x)
    assert low.shape == x.shape
    assert low[0, 0, 0, 0] == low[0, 0, 1, 1] == 3.0 and low[0, 0, 4, 4] == 24.0


def test_pgd_in_l2_reaches_the_optimum_of_a_linear_score() -> None:
    w = weight() / 100
    for geometry, radius in (("rmse", 768**0.5 / 50), ("l2", 1 / 50)):
        result = attacked(QualityPgdL2(), w, geometry=geometry, eps=Fraction(1, 50))
        best = radius * float(w.norm())
        assert (result.adv_score - result.clean_score).tolist() == pytest.approx([best] * 4, rel=1e-3)


def test_parsimonious_finds_the_best_signs_of_blocks() -> None:
    coarse = torch.randn(3, 2, 2, generator=generator("coarse")).double()
    w = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    result = attacked(Parsimonious(queries=120, block=8), w, eps=Fraction(1, 32))
    best = float(w.abs().sum()) / 32
    assert (result.adv_score - result.clean_score).tolist() == pytest.approx([best] * 4, rel=1e-9)
    assert int(result.forwards.max()) == 120


def test_blocks_cover_every_pixel_once_whatever_the_size() -> None:
    count = torch.zeros(3, 7, 10)
    for block in blocks_of((3, 7, 10), 4):
        count[block] += 1
    assert torch.equal(count, torch.ones(3, 7, 10))


def test_a_patch_lands_where_it_should_and_nowhere_else() -> None:
    x, patch = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 2, 2)
    out = pasted(x, patch, torch.tensor([[0, 0], [6, 3]]))
    assert np.argwhere(out[1, 0].numpy()).tolist() == [[6, 3], [6, 4], [7, 3], [7, 4]]
    assert float(out[0, :, :2, :2].min()) == 1 and float(out.sum()) == 24 and float(x.sum()) == 0
