"""The root mean square budget is a PSNR."""

from __future__ import annotations

import pytest
import torch

from robustspike.bench.api import RowStreams
from robustspike.bench.api import psnr
from robustspike.bench.api import registry

BOUNDS = (0.0, 1.0)


@pytest.mark.parametrize("size", [8, 24])
def test_a_change_at_the_budget_has_the_psnr_of_the_budget_at_any_size(size: int) -> None:
    streams = RowStreams.derive(range(5), "rmse")
    x0 = streams.uniform((3, size, size)) * 0.6 + 0.2
    x = x0 + streams.normal((3, size, size))
    rule = registry("geometries").get("rmse")
    near = rule.project(x0, x, eps=0.01, bounds=BOUNDS)
    assert psnr(x0, near).tolist() == pytest.approx([40.0] * 5, abs=1e-3)
    assert bool(rule.legal(x0, near, eps=0.01, bounds=BOUNDS).all())
    assert not bool(rule.legal(x0, x0 + 1.01 * (near - x0), eps=0.01, bounds=BOUNDS).any())
    drawn = rule.sample(x0, eps=0.01, bounds=BOUNDS, rng=streams, rows=torch.arange(5))
    assert float(rule.distance(x0, drawn).max()) <= 0.01 + 1e-6
    assert float(rule.distance(x0, drawn).min()) > 0
