"""TRADES and MART: clean accuracy traded against the stability of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import strongest_other
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.crafting import Start
from robustspike.defenses.crafting import in_eval_mode


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """Return KL(softmax clean || softmax other) per sample. Shape: [N, K], [N, K] -> [N]."""
    p = clean.log_softmax(dim=1)
    return (p.exp() * (p - other.log_softmax(dim=1))).sum(dim=1)


@dataclass(frozen=True)
class Trades(Adversarial):
    """Cross-entropy on clean points plus the divergence of the answer inside the ball.

    Args:
        beta: weight of the divergence; 0 gives plain training bit for bit.

    Cost: steps + 1.7 times plain training, twice its memory.
    """

    beta: float = 6.0
    start: Start = "normal"
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="trades",
        trains=True,
        adaptive=("wide_surrogate",),
        source="Zhang et al. 2019, arXiv:1901.08573, eq. 5. Differs: 5 steps of eps/2 at the suite's eps.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0:
            raise ConfigError(f"trades: beta must be 0 or more, got {self.beta}.")

    def points(self, step: Step) -> Tensor:
        return step.x

    def penalties(self, step: Step, x: Tensor, logits: Tensor) -> Terms:
        if not self.beta or not self.eps:
            return {}
        with torch.no_grad(), in_eval_mode(step.module):
            clean = step.logits(step.x)
        moved = self.attack(step, lambda z: divergence(clean, z))
        return {"trades": self.beta * divergence(logits, step.logits(moved)).mean()}


@dataclass(frozen=True)
class Mart(Adversarial):
    """Boosted cross-entropy on adversarial points plus a divergence weighted by the clean doubt.

    Args:
        beta: weight of the divergence term.
        boost: whether -log(1 - largest wrong probability) is added; False with beta=0 is PGD-AT.

    Cost: steps + 1.7 times plain training, twice its memory.
    """

    beta: float = 4.0
    boost: bool = True
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="mart",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Wang et al., ICLR 2020 (misclassification aware adversarial training). Differs: 5 steps of "
            "eps/2 at the suite's eps; beta=4 as in robust conversion's code."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0:
            raise ConfigError(f"mart: beta must be 0 or more, got {self.beta}.")

    def penalties(self, step: Step, x: Tensor, logits: Tensor) -> Terms:
        found: dict[str, Tensor] = {}
        if self.boost:
            wrong = strongest_other(logits.softmax(dim=1), step.y)
            found["boost"] = -(1.0001 - wrong).log().mean()
        if self.beta and self.eps:
            clean = step.logits(step.x)
            doubt = 1 - clean.softmax(dim=1).gather(1, step.y[:, None]).squeeze(1)
            found["mart"] = self.beta * (divergence(clean, logits) * doubt).mean()
        return found
