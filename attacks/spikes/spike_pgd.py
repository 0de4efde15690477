"""PGD on spike probabilities, and the flips it suggests: Bernoulli-PGD and rounded PGD."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Goal
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

_EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1 where their logarithm is taken."""


@dataclass(frozen=True)
class BernoulliPgd:
    """Gradient ascent on the probability of every spike, through relaxed Bernoulli samples.

    The elements are then flipped one after the other, those whose probability moved most first, until
    the decision changes.

    Args:
        steps: gradient steps.
        draws: relaxed samples averaged in one gradient.
        temperature: of the relaxation.
        step: L2 length of a step.
        reach: largest L2 distance of the probabilities from the input.
        start: largest initial distance of a probability from its spike.
        most: most elements flipped.
        stride: flips tried in one query; the first that works counts, all are charged.
        loss: name of the loss that is increased.
        estimator: registry name of the gradient estimator.
        restarts: random starts, each run on the samples still standing (all of them, without a budget).

    Cost: per start steps * draws forwards and backwards, and 1 forward per flip.
    """

    steps: int = 50
    draws: int = 5
    temperature: float = 0.01
    step: float = 0.3
    reach: float = 1.5
    start: float = 0.01
    most: int = 1000
    stride: int = 16
    loss: str = "ce"
    estimator: str = "native"
    restarts: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="bernoulli_pgd.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Prob. PGA of Buechel et al. 2022, arXiv:2110.02929. Differs: flips are tried in blocks; only "
            "elements whose probability moved toward the flip are tried."
        ),
        cost="250 forwards + 250 backwards, 1 forward per flip",
    )

    def __post_init__(self) -> None:
        if min(self.steps, self.draws, self.stride, self.most, self.restarts) < 1 or not self.temperature > 0:
            raise ConfigError(
                f"{self.spec.name}: expected steps, draws, stride, most, restarts >= 1 and temperature > 0, "
                f"got {self.steps}, {self.draws}, {self.stride}, {self.most}, {self.restarts} and "
                f"{self.temperature}."
            )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        rule: GradientEstimator = registry("estimators").get(self.estimator)
        x = self._attempt(oracle, x0, rule, rng)
        for _ in range(1, self.restarts):
            if not len(oracle.active()):
                break
            oracle.forget()
            again = self._attempt(oracle, x0, rule, rng)
            best, hit = oracle.best()
            x = torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), best, again)
        return x

    def _attempt(self, oracle: Oracle, x0: Tensor, rule: GradientEstimator, rng: RowStreams) -> Tensor:
        """Search from one start; return the flips found, or the last ones tried."""
        low, high = oracle.threat.bounds
        s = (x0 - low) / (high - low)
        u = self.start * rng.uniform(x0.shape[1:], dtype=x0.dtype)
        p = s * (1 - u) + (1 - s) * u
        for _ in range(self.steps):
            rows = oracle.active(forwards=self.draws * rule.forwards, backwards=self.draws * rule.backwards)
            if not len(rows):
                break
            grad = self._gradient(oracle, p[rows], rows, rule, rng)
            length = grad.flatten(1).norm(dim=1)
            scale = self.step / torch.where(length > 0, length, torch.inf)
            p[rows] = self._near(s[rows], p[rows] + scale.view(-1, *[1] * (s.dim() - 1)) * grad)
        return _flip_in_order(oracle, x0, s, p, most=self.most, stride=self.stride)

    def _near(self, s: Tensor, p: Tensor) -> Tensor:
        """Project onto the ball around the input and the unit box."""
        away = p - s
        length = away.flatten(1).norm(dim=1).view(-1, *[1] * (s.dim() - 1))
        return (s + away * (self.reach / length.clamp(min=_EDGE)).clamp(max=1)).clamp(0, 1)

    def _gradient(
        self, oracle: Oracle, p: Tensor, rows: Tensor, rule: GradientEstimator, rng: RowStreams
    ) -> Tensor:
        """Return the gradient with respect to the probabilities, averaged over relaxed samples."""
        low, high = oracle.threat.bounds
        shape = (self.draws, *p.shape[1:])
        u = rng.uniform(shape, rows=rows, dtype=p.dtype).clamp(_EDGE, 1 - _EDGE)
        inside = p.clamp(_EDGE, 1 - _EDGE)[:, None]
        soft = torch.sigmoid((torch.logit(u) + torch.logit(inside)) / self.temperature)
        x = low + (high - low) * soft.flatten(0, 1)
        out = oracle.loss_and_grad(x, rows.repeat_interleave(self.draws), self.loss, estimator=rule)
        slope = soft * (1 - soft) / (self.temperature * inside * (1 - inside))
        return (out.grad.reshape(soft.shape) * slope).mean(dim=1)


@dataclass(frozen=True)
class RoundedPgd(BernoulliPgd):
    """The same search with the gradient taken at one stochastically rounded copy (binary spikes).

    Cost: steps forwards and backwards, and 1 forward per flip. `draws` copies are averaged.
    """

    draws: int = 1
    spec: ClassVar[AttackSpec] = replace(
        BernoulliPgd.spec,
        name="rounded_pgd.l0",
        source=(
            "PGA of Buechel et al. 2022, arXiv:2110.02929. Differs: flips are tried in blocks; only "
            "elements whose probability moved toward the flip are tried."
        ),
        cost="50 forwards + 50 backwards, 1 forward per flip",
    )

    def _gradient(
        self, oracle: Oracle, p: Tensor, rows: Tensor, rule: GradientEstimator, rng: RowStreams
    ) -> Tensor:
        low, high = oracle.threat.bounds
        u = rng.uniform((self.draws, *p.shape[1:]), rows=rows, dtype=p.dtype)
        x = torch.where(u < p[:, None], high, low).to(p).flatten(0, 1)
        out = oracle.loss_and_grad(x, rows.repeat_interleave(self.draws), self.loss, estimator=rule)
        return out.grad.reshape(u.shape).mean(dim=1)


def _flip_in_order(oracle: Oracle, x0: Tensor, s: Tensor, p: Tensor, *, most: int, stride: int) -> Tensor:
    """Flip the elements whose probability moved most, one more at a time, until the goal is reached."""
    moved = (p - s).abs().flatten(1)
    size, order = moved.sort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=x0.device).expand_as(order))
    low, high = oracle.threat.bounds
    most = int(min(most, oracle.radius, order.shape[1]))
    usable = (size > 0).sum(dim=1).clamp(max=most)
    x, going = x0.clone(), torch.ones(len(x0), dtype=torch.bool, device=x0.device)
    for start in range(0, most, stride):
        rows = oracle.active(forwards=1)
        rows = rows[going[rows] & (usable[rows] > start)]
        if not len(rows):
            break
        count = torch.arange(start + 1, start + stride + 1, device=x0.device)
        room = torch.minimum(usable[rows], start + oracle.forwards_left(rows))
        owner, place = (count <= room[:, None]).nonzero(as_tuple=True)
        flip = (rank[rows][owner] < count[place][:, None]).view(-1, *x0.shape[1:])
        trial = torch.where(flip, low + high - x0[rows][owner], x0[rows][owner])
        good = oracle.reached(oracle.logits(trial, rows[owner]), rows[owner])
        last = owner != torch.cat([owner[1:], owner.new_full((1,), -1)])
        x[rows[owner[last]]] = trial[last]
        winners = good.nonzero().squeeze(1)
        lead = torch.ones_like(winners, dtype=torch.bool)
        lead[1:] = owner[winners[1:]] != owner[winners[:-1]]
        winners = winners[lead]
        x[rows[owner[winners]]] = trial[winners]
        going[rows[owner[winners]]] = False
    return x
