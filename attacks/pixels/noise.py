"""Random noise: the control that every gradient attack must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Domain
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class Noise:
    """The worst of several random legal points.

    Args:
        draws: points tried per sample.

    Cost: `draws` forwards at most.
    """

    draws: int = 10
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="noise",
        geometries=("linf", "l2", "l0", "count_l0", "count_l1"),
        domains=(Domain.STATIC, Domain.SPIKES, Domain.EVENTS),
        access=Access.LABEL,
        stochastic=True,
        source="Control: uniform in the ball (l0: uniform flips of exactly eps elements; counts: eps "
        "random cells or events). Differs: none.",
        cost="10 forwards",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x = x0.clone()
        for _ in range(self.draws):
            rows = oracle.active(forwards=1)
            if not len(rows):
                break
            x[rows] = oracle.sample(rows, rng=rng)
            oracle.labels(x[rows], rows)
        return x
