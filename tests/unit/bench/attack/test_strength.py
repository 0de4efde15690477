"""Attacked images are scaled to one PSNR or SSIM before they are compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import RowStreams
from robustspike.bench.api import Task
from robustspike.bench.api import psnr
from robustspike.bench.api import ssim
from robustspike.bench.api import wrap
from robustspike.bench.attack.strength import STRENGTHS
from robustspike.bench.attack.strength import scaled
from robustspike.bench.attack.strength import strength_extras

SHAPE = (3, 24, 24)


class Brightness(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 100 * x.flatten(1).mean(dim=1, keepdim=True)


def images(n: int = 5) -> Tensor:
    return RowStreams.derive(range(n), "strength").uniform(SHAPE)


def changed(x: Tensor, size: float) -> Tensor:
    noise = RowStreams.derive(range(len(x)), "strength change").normal(SHAPE)
    return (x + size * noise).clamp(0, 1)


@pytest.mark.parametrize("size", [0.0005, 0.01, 0.3])
def test_weak_and_strong_changes_end_at_the_same_psnr_and_ssim(size: float) -> None:
    x = images()
    for name, metric, wanted, within in (
        ("psnr40", psnr, 40.0, 0.1),
        ("psnr35", psnr, 35.0, 0.1),
        ("ssim99", ssim, 0.99, 2e-4),
    ):
        final, reached = scaled(x, changed(x, size), *STRENGTHS[name], (0.0, 1.0))
        assert bool(reached.all()), name
        assert metric(x, final).tolist() == pytest.approx([wanted] * 5, abs=within), name
        assert float(final.min()) >= 0 and float(final.max()) <= 1


def test_an_image_that_was_not_changed_or_cannot_be_reaches_no_strength() -> None:
    x = images()
    assert not bool(scaled(x, x.clone(), *STRENGTHS["psnr40"], (0.0, 1.0))[1].any())
    white = torch.ones(1, *SHAPE)
    one = white.clone()
    one[0, 0, 0, 0] = 0.99  # at most one value of 1728 can fall to 0: PSNR 32 dB and no less
    assert not bool(scaled(white, one, cost_of("psnr35"), 1e-2, (0.0, 1.0))[1].any())
    assert bool(scaled(white, one, *STRENGTHS["psnr35"], (0.0, 1.0))[1].all())


def cost_of(name: str):
    return STRENGTHS[name][0]


def test_the_scaled_image_is_answered_afresh_and_unmoved_ones_have_no_score() -> None:
    model = wrap(Brightness(), name="b", shape=SHAPE, classes=1, task=Task.QUALITY, score_range=(0.0, 100.0))
    x = images() * 0.5 + 0.2
    brighter = x + 0.001
    brighter[0] = x[0]
    found = strength_extras(model, x, torch.zeros(5).double(), brighter, RowStreams.derive(range(5), "s"))
    clean = 100 * x.double().flatten(1).mean(dim=1)
    assert set(found) == {"score_psnr40", "score_psnr35", "score_ssim99"}
    assert (found["score_psnr40"] - clean)[1:].tolist() == pytest.approx([1.0] * 4, rel=0.02)  # rmse 1/100
    assert (found["score_psnr35"] - clean)[1:].tolist() == pytest.approx([10**0.25] * 4, rel=0.02)
    assert bool(torch.isnan(found["score_psnr40"][0]))


def test_images_too_small_for_a_window_have_none() -> None:
    small = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = wrap(
        Brightness(), name="b", shape=(3, 8, 8), classes=1, task=Task.QUALITY, score_range=(0.0, 100.0)
    )
    streams = RowStreams.derive(range(2), "s")
    assert strength_extras(model, small, torch.zeros(2).double(), small, streams) == {}
