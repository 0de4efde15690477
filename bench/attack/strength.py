"""Equal strength: what an attack's change achieves once it is scaled to one PSNR, or to one SSIM."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping

import torch
from torch import Tensor

from robustspike.bench.attack.decide import decide
from robustspike.bench.numbers.image_quality import ssim
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.victim.module import ModuleVictim


def _lost_ssim(x0: Tensor, x: Tensor) -> Tensor:
    return 1 - ssim(x0, x)


def _mean_square(x0: Tensor, x: Tensor) -> Tensor:
    return (x - x0).square().flatten(1).mean(dim=1)


STRENGTHS: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "psnr40": (_mean_square, 10**-4.0),
    "psnr35": (_mean_square, 10**-3.5),
    "ssim99": (_lost_ssim, 0.01),
}
"""Name of a strength -> what a change costs, and how much of it is spent: PSNR 40 and 35 dB, SSIM 0.99."""

ROUNDS = 8
CLOSE = 0.02
"""Rounds of the search for a scale, and the share by which the cost may miss: 0.1 dB, or 0.0002 of SSIM."""


def scaled(
    x0: Tensor, x: Tensor, cost: Callable[[Tensor, Tensor], Tensor], spent: float, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Scale changes so that each costs what is to be spent: x0 + s (x - x0), cut to the bounds.

    A cost grows about with the square of the scale, so each round corrects by a root of what is missing; the
    brackets of a bisection catch it where cutting bends that.

    Returns: the scaled images, and which of them cost what they should. One that was not changed, or cannot
        be changed that much inside the bounds, does not.
    """

    def at(scale: Tensor) -> Tensor:
        return (x0 + scale.view(-1, 1, 1, 1) * (x - x0)).clamp(*bounds)

    scale = x0.new_ones(len(x0))
    low, high = torch.zeros_like(scale), torch.full_like(scale, torch.inf)
    for _ in range(ROUNDS):
        found = cost(x0, at(scale))
        low, high = torch.where(found <= spent, scale, low), torch.where(found > spent, scale, high)
        guess = scale * (spent / found.clamp(min=1e-12)).sqrt().clamp(max=100.0)
        middle = torch.where(torch.isfinite(high), (low + high) / 2, 2 * low)
        scale = torch.where((guess >= low) & (guess <= high), guess, middle)
    final = at(scale)
    return final, (cost(x0, final) / spent - 1).abs() <= CLOSE


def strength_extras(
    victim: ModuleVictim, x: Tensor, y: Tensor, x_adv: Tensor, streams: RowStreams
) -> dict[str, Tensor]:
    """Answer every attacked image afresh at each of `STRENGTHS`: score_NAME [N], NaN where there is none.

    Scaled images are not rounded to 8 bits. Cost: 3 forwards per image, not charged to the attack. Only for
    images of at least 16x16.
    """
    if x.dim() != 4 or min(x.shape[2:]) < 16:
        return {}
    found = {}
    for name, (cost, spent) in STRENGTHS.items():
        final, reached = scaled(x, x_adv, cost, spent, victim.spec.bounds)
        score = decide(victim, final, y, streams.fork(name)).score.double()
        found[f"score_{name}"] = torch.where(reached, score, torch.nan)
    return found
