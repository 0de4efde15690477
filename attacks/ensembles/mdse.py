"""MDSE: fool several victims at once, each with the most harmful of several gradient estimators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor

from robustspike.attacks.pixels.climbing import check
from robustspike.attacks.pixels.climbing import last_of_starts
from robustspike.attacks.pixels.climbing import start
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import margin

Rule = Literal["best", "sum"]


def unsolved(logits: Tensor, y: Tensor) -> Tensor:
    """Return the margin up to zero: a member that is wrong already asks for nothing more."""
    return margin(logits, y).clamp(max=0)


@dataclass(frozen=True)
class Mdse:
    """Signed steps along sum_m alpha_m * G_m, the gradients G_m of the members and learned weights alpha.

    The weights have the shape of the input, one for every member, and follow the gradient of the summed
    margins of the members that are still right, through a smooth stand-in for the sign.

    Args:
        steps: moves.
        step: step size as a share of eps.
        estimators: registry names of the gradient estimators; those that apply to a member are tried for it
            at every step.
        rule: "best" takes per sample the estimator whose step raises the member's loss most; "sum" adds
            up their gradients, which is what the released code does.
        sharpness: c of tanh(c v), the stand-in for sign(v).
        rate: learning rate of the weights; 0 keeps them at 1 (SAGA with equal weights).
        restarts: starts, each run on the samples still standing: the clean input, then random points.

    Cost: per start, for M members and S estimators per step M * S gradients, M * S forwards to compare
        them if S > 1 and rule is "best", one gradient of all members if M > 1; then 1 forward.
    """

    steps: int = 40
    step: float = 0.3
    estimators: tuple[str, ...] = ("atan(alpha=2)", "damped_triangle", "native")
    rule: Rule = "best"
    sharpness: float = 50.0
    rate: float = 1e5
    restarts: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="mdse.linf",
        geometries=("linf",),
        source=(
            "Xu et al. 2025, arXiv:2209.03358 (Auto-SAGA with dynamic estimation). Differs: the estimator is "
            "chosen per sample by the loss after its step; step is 0.3 eps (theirs: 0.01 at 0.031); no "
            "attention maps; wrong classes are masked with -inf; 1 - tanh^2 for sech^2, which overflows in "
            "the release; starts at x0, stops at a sample's first joint hit."
        ),
        cost="3 estimators, one victim: 241 forwards + 120 backwards",
    )

    def __post_init__(self) -> None:
        check(
            self.spec.name, steps=self.steps, step=self.step, sharpness=self.sharpness, restarts=self.restarts
        )
        if self.rule not in ("best", "sum") or not self.estimators or self.rate < 0:
            raise ConfigError(
                f"{self.spec.name}: rule must be 'best' or 'sum', at least one estimator given, rate 0 or "
                f"more; got '{self.rule}', {list(self.estimators)}, {self.rate}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        def climb(number: int) -> Tensor:
            return self._climb(oracle, start(oracle, x0, random=number > 0, rng=rng))

        return last_of_starts(oracle, climb, restarts=self.restarts)

    def _climb(self, oracle: Oracle, x: Tensor) -> Tensor:
        """Move from one start; return the last iterate."""
        count = oracle.members
        size = self.step * oracle.radius
        weights = torch.ones(count, *x.shape, dtype=x.dtype, device=x.device)
        for _ in range(self.steps):
            rows = self._paying(oracle)
            if not len(rows):
                break
            gradients = torch.stack([self._gradient(oracle, x[rows], rows, m, size) for m in range(count)])
            if count > 1 and self.rate:
                blend = (weights[:, rows] * gradients).sum(dim=0)
                trial = oracle.project(x[rows] + size * blend.sign(), rows)
                pull = oracle.loss_and_grad(trial, rows, unsolved).grad * count  # of the sum, not the mean
                bend = 1 - torch.tanh(self.sharpness * blend).square()
                weights[:, rows] += self.rate * pull * (self.sharpness * size) * gradients * bend
            blend = (weights[:, rows] * gradients).sum(dim=0)
            x[rows] = oracle.project(x[rows] + size * blend.sign(), rows)
            if count > 1:
                still = rows[torch.isin(rows, oracle.active(forwards=1))]
                if len(still):
                    oracle.logits(x[still], still)
        rows = oracle.active(forwards=1)
        if len(rows):
            oracle.logits(x[rows], rows)
        return x

    def _paying(self, oracle: Oracle) -> Tensor:
        """Return the rows that stand and can pay for one more step, counted in passes of all members.

        Two passes are set aside for every gradient: no estimator costs more.
        """
        tried = len(self.estimators)
        compared = tried if tried > 1 and self.rule == "best" else 0
        joint = 2 if oracle.members > 1 else 0
        return oracle.active(forwards=2 * tried + compared + joint, backwards=2 * tried + joint)

    def _gradient(self, oracle: Oracle, x: Tensor, rows: Tensor, member: int, size: float) -> Tensor:
        """Return one member's gradient by the rule."""
        asked = member if oracle.members > 1 else None
        applying = [name for name in self.estimators if oracle.refusal(name, member=asked) is None]
        found = [
            oracle.loss_and_grad(x, rows, "ce", estimator=name, member=asked).grad
            for name in applying or self.estimators[:1]  # none applies: the oracle says why
        ]
        if len(found) == 1 or self.rule == "sum":
            return torch.stack(found).sum(dim=0)
        after = [
            oracle.loss(oracle.project(x + size * g.sign(), rows), rows, "ce", member=asked)[0] for g in found
        ]
        best = torch.stack(after).argmax(dim=0)
        return torch.stack(found)[best, torch.arange(len(rows), device=rows.device)]
