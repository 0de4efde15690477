"""What a certifier says of the scores of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustspike.bench.contract.specs import Goal


@dataclass(frozen=True)
class CertifiedScores:
    """Bounds on scores within a radius.

    Args:
        method, norm: name of the certifier, and the norm of its radius.
        radius: how far an input may be moved.
        score: the certified model's answers [N] float64: of smoothing the median, and not the plain score.
        low, high: bounds on its answer to any input within the radius [N], infinite where there is none.
        draws: forwards that each sample took.
        confidence: probability that both bounds of a sample hold.
    """

    method: str
    norm: str
    radius: float
    score: Tensor
    low: Tensor
    high: Tensor
    draws: int
    confidence: float

    def change(self, goal: Goal = Goal.SHIFT) -> Tensor:
        """Return how far the answer can be from `score` within the radius, the way a goal wants it: [N]."""
        up, down = self.high - self.score, self.score - self.low
        return {Goal.RAISE: up, Goal.LOWER: down}.get(goal, torch.maximum(up, down))
