"""Measurements beside the verdict: what the attack cannot see or influence, and nothing is decided by."""

from __future__ import annotations

import torch
from torch import Tensor

from robustspike.bench.errors import ContractError
from robustspike.bench.fullref import haarpsi
from robustspike.bench.fullref import psnr
from robustspike.bench.fullref import ssim
from robustspike.bench.gradients import GradientEstimator
from robustspike.bench.losses import LOSSES
from robustspike.bench.rng import RowStreams
from robustspike.bench.victim import ModuleVictim

SLOPE_STEP = 1 / 255
"""Length of the finite difference beside the gradient norm: the smallest step an 8-bit attack can take."""


def quality_extras(
    victim: ModuleVictim, x: Tensor, y: Tensor, x_adv: Tensor, streams: RowStreams
) -> dict[str, Tensor]:
    """Measure how visible the attack is, and how steep the score is at the clean input: [N] each.

    Returns: gradient_l1, the l1 norm of the score's own input gradient (for a spiking victim a surrogate
        quantity); slope, |score(x + h sign(gradient)) - score(x)| / h at h = 1/255; for images of one or
        three channels and at least 16x16, ssim, psnr and haarpsi of the final against the clean input.
    """
    found: dict[str, Tensor] = {}
    try:
        noise = streams.fork("slope")
        out = victim.loss_and_grad(x, y, LOSSES["score"], GradientEstimator(), noise=noise)
        moved = (x + SLOPE_STEP * out.grad.sign()).clamp(*victim.spec.bounds)
        with torch.no_grad():
            there = victim.logits(moved, noise=streams.fork("slope")).squeeze(1)
        found["gradient_l1"] = out.grad.flatten(1).double().abs().sum(dim=1)
        found["slope"] = (there.double() - out.loss.double()).abs() / SLOPE_STEP
    except ContractError:
        pass  # a victim without a gradient has no slope; black-box attacks may still be run on it
    if x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= 16:
        for name, metric in (("ssim", ssim), ("psnr", psnr), ("haarpsi", haarpsi)):
            found[name] = metric(x.double(), x_adv.double())
    return found


PROBED, PROBE_RADIUS = 16, 1e-3
"""Samples of a shard whose gradient is probed, and how far away (share of the domain)."""


def probe_gradient(victim: ModuleVictim, x: Tensor, y: Tensor, streams: RowStreams) -> dict[str, int]:
    """Measure whether the gradient still points the same way a thousandth of the domain away.

    Cost: 2 forwards + 2 backwards on at most `PROBED` samples, not charged to the attack.
    Returns: probed (samples whose two gradients are not zero), and cosine_milli, the sum of the cosines
        between the two gradients in thousandths.
    """
    low, high = victim.spec.bounds
    x, y = x[:PROBED], y[:PROBED]
    rows = torch.arange(len(x), device=x.device)
    step = (streams.uniform(x.shape[1:], rows=rows, dtype=x.dtype) * 2 - 1) * PROBE_RADIUS * (high - low)
    try:
        here, there = (
            victim.loss_and_grad(
                point, y, LOSSES["margin"], GradientEstimator(), noise=streams.fork("noise", rows=rows)
            ).grad.flatten(1)
            for point in (x, (x + step).clamp(low, high))
        )
    except ContractError:
        return {"probed": 0, "cosine_milli": 0}  # no gradient of its own; an estimator may still give one
    alive = (here != 0).any(dim=1) & (there != 0).any(dim=1)
    agreement = torch.nn.functional.cosine_similarity(here, there, dim=1)
    return {"probed": int(alive.sum()), "cosine_milli": int((agreement[alive] * 1000).round().sum())}


def spike_extras(x0: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Count what became of the spikes of binary frames: [N] float64 each.

    Returns: spikes (of the clean input), added and removed (cells that x has and x0 has not, and the other
        way round; a moved spike is one of each).
    """
    before, after = (x0 != 0).flatten(1), (x != 0).flatten(1)
    return {
        "spikes": before.sum(dim=1).double(),
        "added": (after & ~before).sum(dim=1).double(),
        "removed": (before & ~after).sum(dim=1).double(),
    }
