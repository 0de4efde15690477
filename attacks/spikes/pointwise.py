"""The pointwise attack: start from any adversarial input, go back change by change. Labels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.spikes.reduction import discrete
from robustspike.attacks.spikes.reduction import fooled
from robustspike.attacks.spikes.reduction import reduce_changes
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams


@dataclass(frozen=True)
class Pointwise:
    """Random changes of growing number until the label is wrong, then undo all that can go.

    Flips for the geometry "l0", moves for the retiming geometries. Blind to gradients and scores, so it
    cannot be fooled by masked ones. The start may lie outside a bounded threat model; only inputs
    inside it count.

    Args:
        restarts: independent starts; the nearest result is kept.
        tries: random inputs per size of the start.

    Cost: per restart tries * log2(cells) forwards for the start, about 2 * changes for the way back.
    """

    restarts: int = 2
    tries: int = 4
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="pointwise",
        geometries=("l0", "retime_l0", "retime_l1", "retime_linf"),
        domains=(Domain.STATIC, Domain.SPIKES),
        access=Access.LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Schott et al. 2019, arXiv:1805.09190 (pointwise attack). Differs: starts from random flips "
            "of doubling number instead of noise or another image; blocks of changes are undone before "
            "single ones; the same for moved spikes."
        ),
        cost="per restart: tens of forwards for the start, about 2 * changes for the way back",
    )

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.tries < 1:
            raise ConfigError(
                f"pointwise: restarts and tries must be at least 1, got {self.restarts} and {self.tries}."
            )

    def start(self, oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> tuple[Tensor, Tensor]:
        """Find random adversarial inputs: the rows that have one, and the inputs."""
        x, found = x0.clone(), torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        limit = discrete(oracle, "pointwise").largest(x0.shape[1:])
        size, last = 1, False
        while not last:
            last = size >= limit
            for _ in range(self.tries):
                rows = oracle.active(forwards=1)
                rows = rows[~found[rows]]
                if not len(rows):
                    break
                x[rows] = oracle.geometry.sample(
                    x0[rows], eps=float(size), bounds=oracle.threat.bounds, rng=rng, rows=rows
                )
                found[rows] = fooled(oracle, x[rows], rows, y)
            size = min(2 * size, max(limit, 1))
        rows = found.nonzero().squeeze(1)
        return rows, x[rows]

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        geometry = discrete(oracle, "pointwise")
        eps = torch.inf if oracle.threat.eps is None else float(oracle.threat.eps)
        out = x0.clone()
        size = torch.full((len(x0),), torch.inf, dtype=torch.float64, device=x0.device)
        if not len(x0) or eps == 0:
            return out
        for restart in range(self.restarts):
            streams = rng.fork("restart", restart)
            rows, x = self.start(oracle, x0, y, streams)
            reduced = reduce_changes(oracle, x0, x, y, rows, rng=streams).x
            distance = geometry.distance(x0[rows], reduced)
            better = (distance < size[rows]) & (distance <= eps)
            out[rows[better]] = reduced[better]
            size[rows[better]] = distance[better]
        return out
