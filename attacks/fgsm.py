"""FGSM: one signed gradient step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class Fgsm:
    """x + eps * sign(gradient of the loss), projected.

    Args:
        estimator: registry name of the gradient estimator.
        loss: name of the loss that is increased.

    Cost: 1 forward + 1 backward, and 1 forward to see the answer.
    """

    estimator: str = "native"
    loss: str = "ce"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="fgsm.linf",
        geometries=("linf",),
        source="Goodfellow et al. 2015, arXiv:1412.6572. Differs: none.",
        cost="2 forwards + 1 backward",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = x0.clone()
        rows = oracle.active(forwards=1, backwards=1)
        if not len(rows):
            return x
        gradient = oracle.loss_and_grad(x[rows], rows, self.loss, estimator=self.estimator).grad
        span = oracle.threat.bounds[1] - oracle.threat.bounds[0]
        eps = span if oracle.threat.eps is None else min(float(oracle.threat.eps), span)
        x[rows] = oracle.project(x[rows] + eps * gradient.sign(), rows)
        rows = oracle.active(forwards=1)
        if len(rows):
            oracle.logits(x[rows], rows)
        return x
