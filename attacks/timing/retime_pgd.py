"""Retiming by lazy projected gradients: the mean gradient so far, projected exactly onto the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.spikes.reduction import discrete
from robustspike.attacks.spikes.reduction import fooled
from robustspike.attacks.spikes.reduction import meets_goal
from robustspike.attacks.spikes.reduction import reduce_changes
from robustspike.attacks.timing.retime_lines import BUDGETS
from robustspike.attacks.timing.retime_lines import budget_of
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class RetimePgd:
    """Add up normalised gradients; the next frames are those, among all legal ones, that follow the sum best.

    A binary x of fixed spike counts that is nearest to a score tensor is also the one with the largest
    inner product with it, so the geometry's exact projection is the exact linear maximiser. For a
    minimum-norm threat the budget grows by a quarter after every `steps` / 4 steps, keeping the sum,
    and moves that the hit does not need are undone (not under L-inf, where that gains nothing).

    Args:
        steps: gradients; a quarter of them per budget of a minimum-norm threat.
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.

    Cost: steps forwards + steps backwards + 1 forward; minimum-norm: a quarter of that per budget tried, and
        the reduction.
    """

    steps: int = 40
    estimator: str = "native"
    loss: str = "margin"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="retime.pgd",
        geometries=BUDGETS,
        domains=(Domain.SPIKES, Domain.EVENTS),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        minimum_norm=True,
        source=(
            "Dual averaging (Nesterov 2009, Math. Program. 120:221) on the retiming sets of Yu et al. 2026, "
            "arXiv:2602.03284. Differs: own combination; the frames that maximise the mean gradient are "
            "exact for the L-inf and L0 budgets, up to the price of a step for L1."
        ),
        cost="41 forwards + 40 backwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"retime.pgd: steps must be at least 1, got {self.steps}.")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x, total = x0.clone(), torch.zeros_like(x0)
        found = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        least = oracle.threat.is_minimum_norm
        for eps in self._budgets(oracle, x0):
            for _ in range(max(1, self.steps // 4) if least else self.steps):
                rows = oracle.active(forwards=1, backwards=1)
                rows = rows[~found[rows]]
                if not len(rows):
                    break
                out = oracle.loss_and_grad(x[rows], rows, self.loss, estimator=self.estimator)
                wrong = meets_goal(oracle, out.logits.argmax(dim=1), rows, y)
                found[rows] = wrong
                rows, grad = rows[~wrong], out.grad[~wrong]
                size = grad.flatten(1).abs().amax(dim=1).clamp(min=1e-30)
                total[rows] += grad / size.view(-1, *[1] * (x0.dim() - 1))
                x[rows] = oracle.geometry.project(x0[rows], total[rows], eps=eps, bounds=oracle.threat.bounds)
        rows = oracle.active(forwards=1)
        rows = rows[~found[rows]]
        found[rows] = fooled(oracle, x[rows], rows, y)
        if least and oracle.geometry.name != "retime_linf":
            rows = found.nonzero().squeeze(1)
            x[rows] = reduce_changes(oracle, x0, x[rows], y, rows).x
        return x

    @staticmethod
    def _budgets(oracle: Oracle, x0: Tensor) -> list[float]:
        if not oracle.threat.is_minimum_norm:
            return [budget_of(oracle)]
        largest = discrete(oracle, "retime.pgd").largest(x0.shape[1:])
        sizes, size = [], 1
        while size < largest:
            sizes.append(float(size))
            size += max(1, size // 4)
        return [*sizes, float(largest)]
