"""Any attack on spikes, followed by the reducer."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from robustspike.attacks.spikes.reduction import discrete
from robustspike.attacks.spikes.reduction import fooled
from robustspike.attacks.spikes.reduction import reduce_changes
from robustspike.bench.api import Access
from robustspike.bench.api import Attack
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import needs_of
from robustspike.bench.api import registry


@dataclass(frozen=True)
class Reduced:
    """Run an attack, then undo the changes that its results do not need.

    Compare a cell of this attack with one of the attack alone for the figures before and after.

    Args:
        attack: the attack to reduce, or its registry name.
        order: "score" orders the changes by the margins they leave; "random" needs labels only.

    Cost: the attack's, then see `reduce_changes`.
    """

    attack: Attack | str = "flip.random"
    order: Literal["score", "random"] = "score"

    def __post_init__(self) -> None:
        if self.order not in ("score", "random"):
            raise ConfigError(f"reduced: order must be 'score' or 'random', got '{self.order}'.")

    @property
    def inner(self) -> Attack:
        """The attack whose results are reduced."""
        found: Attack = registry("attacks").get(self.attack) if isinstance(self.attack, str) else self.attack
        return found

    def uses(self) -> dict[str, tuple[str, ...]]:
        return {"attacks": (self.attack,)} if isinstance(self.attack, str) else {}

    def needs(self) -> tuple[GradientEstimator | str, ...]:
        return needs_of(self.inner)

    @property
    def spec(self) -> AttackSpec:
        """The inner attack's, with a new name; SCORE access is needed to order by scores."""
        inner = self.inner.spec
        access = Access.SCORE if inner.access is Access.LABEL and self.order == "score" else inner.access
        return replace(
            inner,
            name=f"reduced.{inner.name}",
            access=access,
            stochastic=inner.stochastic or self.order == "random",
            source=f"{inner.source} Then reduced to 1-minimality.",
            cost=f"{inner.cost}; reduction: at most about (2 + passes) * changes forwards",
        )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        geometry = discrete(oracle, self.spec.name)
        returned = self.inner.run(oracle, x0, y, rng=rng)
        best, hit = oracle.best()
        eps = torch.inf if oracle.threat.eps is None else float(oracle.threat.eps)
        nearer = geometry.legal(x0, returned, eps=eps, bounds=oracle.threat.bounds) & (
            (geometry.distance(x0, returned) < geometry.distance(x0, best)) | ~hit
        )
        rows = nearer.nonzero().squeeze(1)
        rows = rows[torch.isin(rows, oracle.active(with_hits=True))]
        good = rows[fooled(oracle, returned[rows], rows, y)]
        x = best
        x[good] = returned[good]
        hit[good] = True
        rows = hit.nonzero().squeeze(1)
        shuffle = rng.fork("reduction") if self.order == "random" else None
        out = torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), x, returned)
        out[rows] = reduce_changes(oracle, x0, x[rows], y, rows, rng=shuffle).x
        return out
