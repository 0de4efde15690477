"""PGD: projected gradient ascent from a random start, the best iterate kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class Pgd:
    """Signed gradient steps inside the L-inf ball.

    Args:
        steps: gradient steps.
        step: step size as a share of eps; the default 1/4 is PDSG's setting.
        random_start: whether to start at a uniform point of the ball (else at x0).
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.

    Cost: steps forwards + steps backwards, and 1 forward for the last iterate.
    """

    steps: int = 20
    step: float = 0.25
    random_start: bool = True
    estimator: str = "native"
    loss: str = "ce"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="pgd.linf",
        geometries=("linf",),
        stochastic=True,
        source=(
            "Madry et al. 2018, arXiv:1706.06083. Differs: step is eps/4; the iterate with the largest "
            "loss is returned, and a sample stops at its first hit."
        ),
        cost="21 forwards + 20 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step > 0:
            raise ConfigError(
                f"pgd.linf: steps must be at least 1 and step above 0, got {self.steps} and {self.step}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        span = oracle.threat.bounds[1] - oracle.threat.bounds[0]
        eps = span if oracle.threat.eps is None else min(float(oracle.threat.eps), span)
        x, best = x0.clone(), x0.clone()
        top = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
        if self.random_start:
            everyone = torch.arange(len(x0), device=x0.device)
            x = oracle.sample(everyone, rng=rng)
        for _ in range(self.steps):
            rows = oracle.active(forwards=1, backwards=1)
            if not len(rows):
                break
            out = oracle.loss_and_grad(x[rows], rows, self.loss, estimator=self.estimator)
            better = rows[out.loss > top[rows]]
            best[better] = x[better]
            top[rows] = torch.maximum(top[rows], out.loss)
            x[rows] = oracle.project(x[rows] + self.step * eps * out.grad.sign(), rows)
        rows = oracle.active(forwards=1)
        if len(rows):
            oracle.logits(x[rows], rows)
        return best
