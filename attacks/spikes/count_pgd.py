"""PGD on event counts: the mean gradient so far, projected onto the budget as whole events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class CountPgd:
    """Add up normalised gradients; the next counts are the legal ones nearest to the input plus their sum.

    The sum is real-valued, so that steps too small for one event add up; the victim only ever sees whole
    counts inside the budget.

    Args:
        steps: gradients.
        step: how many events the cell of the largest gradient gains or loses in one step, before projection.
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.

    Cost: steps forwards + steps backwards + 1 forward.
    """

    steps: int = 40
    step: float = 0.5
    estimator: str = "native"
    loss: str = "margin"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="count.pgd",
        geometries=("count_l1", "count_l0"),
        domains=(Domain.EVENTS,),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        source=(
            "Madry et al. 2018, arXiv:1706.06083, as dual averaging (Nesterov 2009, Math. Program. "
            "120:221) "
            "on counts. Differs: own combination; L1 and L0 budgets in events and cells; the iterate with "
            "the largest loss is returned, and a sample stops at its first hit."
        ),
        cost="41 forwards + 40 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step > 0:
            raise ConfigError(
                f"count.pgd: steps must be at least 1 and step above 0, got {self.steps} and {self.step}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x, best, total = x0.clone(), x0.clone(), torch.zeros_like(x0)
        top = torch.full((len(x0),), -torch.inf, dtype=torch.float64, device=x0.device)

        def keep(rows: Tensor, loss: Tensor) -> None:
            better = rows[loss > top[rows]]
            best[better] = x[better]
            top[rows] = torch.maximum(top[rows], loss.double())

        for _ in range(self.steps):
            rows = oracle.active(forwards=1, backwards=1)
            if not len(rows):
                break
            out = oracle.loss_and_grad(x[rows], rows, self.loss, estimator=self.estimator)
            keep(rows, out.loss)
            size = out.grad.flatten(1).abs().amax(dim=1).clamp(min=1e-30)
            total[rows] += self.step * out.grad / size.view(-1, *[1] * (x0.dim() - 1))
            x[rows] = oracle.project(x0[rows] + total[rows], rows)
        rows = oracle.active(forwards=1)
        if len(rows):
            keep(rows, oracle.loss(x[rows], rows, self.loss)[0])
        found, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), found, best)
