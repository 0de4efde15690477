"""Gumbel attack on raw events: choose for every candidate event whether it is OFF, absent or ON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustspike.attacks.spikes.gumbel import RowAdam
from robustspike.attacks.spikes.gumbel import annealed
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import EventLists
from robustspike.bench.api import Goal
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import Oracle
from robustspike.bench.api import Recording
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import recording
from robustspike.bench.api import registry

_TINY = 2.0**-25
"""Uniform numbers are kept this far from 0 and 1 where their logarithm is taken."""

_OFF, _ABSENT, _ON = 0, 1, 2


def candidates(events: Recording, donor: Recording) -> tuple[Recording, Tensor]:
    """Merge a recording with the places of a donor's events that it does not hold itself.

    Returns: the candidates in order of time, each with the polarity it has where it came from, and
        their states [K]: 0 OFF, 1 absent (the donor's), 2 ON.
    """
    own = {(int(e["t"]), int(e["y"]), int(e["x"])) for e in events}
    fresh: list[int] = []
    for i, e in enumerate(donor):
        place = (int(e["t"]), int(e["y"]), int(e["x"]))
        if place not in own:
            own.add(place)
            fresh.append(i)
    merged = np.concatenate([events, donor[fresh]])
    state = np.concatenate([np.where(events["p"] > 0, _ON, _OFF), np.full(len(fresh), _ABSENT)])
    order = np.argsort(merged["t"], kind="stable")
    return merged[order], torch.from_numpy(state[order].astype(np.int64))


def chosen(merged: Recording, state: Tensor) -> Recording:
    """Return the event list that states [K] make of the candidates."""
    values = state.cpu().numpy()[: len(merged)]
    out = merged[values != _ABSENT].copy()
    out["p"] = values[values != _ABSENT] == _ON
    return out


def sampled(odds: Tensor, draw: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample categories by the Gumbel trick: hard states [...], and the soft sample [..., 3]."""
    noisy = odds - torch.log(-torch.log(draw.clamp(_TINY, 1 - _TINY)))
    return noisy.argmax(dim=-1), torch.softmax(noisy / temperature, dim=-1)


def slope(soft: Tensor, gain: Tensor, temperature: float) -> Tensor:
    """Return the straight-through derivative of sum(gain * state indicator) in the log-odds: [..., 3].

    Every state carries its own gain with its own sign, whichever of them was drawn.
    """
    return soft * (gain - (soft * gain).sum(dim=-1, keepdim=True)) / temperature


@dataclass(frozen=True, kw_only=True)
class GumbelEvents:
    """Ascend the loss of sampled event lists minus a price per changed event.

    The events that are searched are those of the recording (`oracle.events`) and the places of a donor's:
    a training recording of the target class (untargeted: of the class after the true one), where the data
    set has one. Every list that is tried goes through the data set's own binning, and the frames that
    it makes are what the victim is shown, what the budget and the L0 distance (cells) are counted on, and
    what is returned and verified. The list is handed in beside them: how many of its events were added,
    removed or turned is in the samples' extras (events_added, ...). A changed event in a cell that holds
    another one costs nothing in cells, and moves nothing.

    Where the harness has no recordings (inputs of one's own, from Python), every spike of the frames
    stands for one event, and there is no donor.

    Args:
        steps: gradient steps.
        draws: hard samples averaged in one gradient.
        rate: Adam's step size at the start; it falls to zero by a cosine.
        price: cost of one deletion or insertion, in units of the loss; a changed polarity costs two.
        start, start_absent: log-odds by which an event's own state leads, and "absent" at a donor's place.
        limit: largest absolute log-odds.
        hot, cold: temperature at the start and at the end (cosine).
        loss: name of the loss that is increased.
        estimator: registry name of the gradient estimator.

    Cost: steps * (draws + 1) forwards, steps * draws backwards.
    """

    steps: int = 100
    draws: int = 1
    rate: float = 0.3
    price: float = 0.05
    start: float = 4.0
    start_absent: float = 5.0
    limit: float = 8.0
    hot: float = 2.0
    cold: float = 0.1
    loss: str = "margin"
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="gumbel_events.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        minimum_norm=True,
        source=(
            "Yao, Zhao & Gu, ECCV 2024. Differs: correct straight-through sign for all three states; a "
            "donor's place that the recording holds is one candidate; every list tried goes through the "
            "real binning; absolute windows instead of equal event numbers; price per change, not on the "
            "mean; wider log-odds; the most likely list is tested at every step; untargeted too."
        ),
        cost="200 forwards + 100 backwards",
    )

    def __post_init__(self) -> None:
        if min(self.steps, self.draws) < 1 or not 0 < self.cold <= self.hot:
            raise ConfigError(
                f"{self.spec.name}: expected steps, draws >= 1 and 0 < cold <= hot, got "
                f"{self.steps}, {self.draws}, {self.cold} and {self.hot}."
            )
        if not self.limit >= max(self.start, self.start_absent):
            raise ConfigError(
                f"{self.spec.name}: start and start_absent must not exceed limit = {self.limit}, got "
                f"{self.start} and {self.start_absent}."
            )

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse frames without an OFF and an ON plane: they are not made of events."""
        if len(spec.shape) == 4 and spec.shape[1] == 2:
            return None
        return f"its frames {list(spec.shape)} have no OFF and ON plane"

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        rule: GradientEstimator = registry("estimators").get(self.estimator)
        search = _Search(self, oracle, x0, y)
        for step in range(self.steps):
            rows = oracle.active(
                forwards=self.draws * rule.forwards + 1, backwards=self.draws * rule.backwards
            )
            if not len(rows):
                break
            heat = annealed(step, self.steps, self.hot, self.cold)
            # One stream a step, candidates first: the numbers do not depend on the padding.
            shape = (search.odds.shape[1], self.draws, 3)
            draw = rng.fork("step", step).uniform(shape, rows=rows, dtype=search.odds.dtype)
            hard, soft = sampled(search.odds[rows][:, None], draw.transpose(1, 2), heat)
            owner, lists = rows.repeat_interleave(self.draws), hard.flatten(0, 1)
            x = search.frames(owner, lists)
            out = oracle.loss_and_grad(x, owner, self.loss, estimator=rule)
            search.note(owner, lists, x, out.logits)
            gain = search.gains(owner, out.grad).view_as(soft)
            grad = slope(soft, gain, heat).mean(dim=1) * search.real[rows][:, :, None]
            grad = grad.flatten(1)
            grad = grad * (20 / search.norms(rows, grad).clamp(min=20))
            moved = search.adam.step(rows, grad, annealed(step, self.steps, self.rate, 0.0))
            odds = search.odds[rows] + moved.view(len(rows), -1, 3)
            search.odds[rows] = odds.clamp(-self.limit, self.limit)
            likely = search.odds[rows].argmax(dim=-1)
            x = search.frames(rows, likely)
            search.note(rows, likely, x, oracle.logits(x, rows))
        for row in search.least.isfinite().nonzero().squeeze(1).tolist():
            oracle.hand_in(row, chosen(search.merged[row], search.kept[row]))
        return search.best


class _Search:
    """Candidates, log-odds and the best list so far of every sample; padded to one common length."""

    def __init__(self, attack: GumbelEvents, oracle: Oracle, x0: Tensor, y: Tensor) -> None:
        self.attack, self.oracle, self.x0 = attack, oracle, x0
        self.lists = oracle.events or _made_of(x0, oracle.threat.bounds)
        self._check()
        aim = (y + 1) % oracle.spec.classes if oracle.targets is None else oracle.targets
        found = [
            candidates(events, self.lists.donors.get(label, events[:0]))
            for events, label in zip(self.lists.recordings, aim.tolist(), strict=True)
        ]
        self.merged = [merged for merged, _ in found]
        n, longest = len(x0), max((len(merged) for merged in self.merged), default=0)
        state = torch.full((n, longest), _ABSENT, device=x0.device)
        self.cells = torch.zeros(n, longest, dtype=torch.int64, device=x0.device)
        self.real = torch.zeros(n, longest, dtype=torch.bool, device=x0.device)
        _, steps, _, height, width = x0.shape
        for row, (merged, own) in enumerate(found):
            index = merged["t"].astype(np.int64) // self.lists.window
            place = merged["y"] // self.lists.block * width + merged["x"] // self.lists.block
            off = index.clip(0, steps - 1) * 2 * height * width + place
            state[row, : len(own)] = own.to(x0.device)
            self.cells[row, : len(own)] = torch.from_numpy(off).to(x0.device)
            self.real[row, : len(own)] = torch.from_numpy((index >= 0) & (index < steps)).to(x0.device)
        lead = torch.where(state == _ABSENT, attack.start_absent, attack.start).to(x0)
        self.odds = torch.nn.functional.one_hot(state, 3).to(x0) * lead[:, :, None]
        # Deletion and insertion cost one, a changed polarity two.
        self.price = attack.price * (torch.arange(3, device=x0.device) - state[:, :, None]).abs().to(x0)
        self.adam = RowAdam(self.odds.flatten(1))
        self.best, self.kept = x0.clone(), state.clone()
        self.least = torch.full((n,), torch.inf, dtype=torch.float64, device=x0.device)

    def frames(self, rows: Tensor, lists: Tensor) -> Tensor:
        """Bin event lists with the dataset's own code: [n, T, 2, H, W]."""
        parts = [
            _frames(self.lists, chosen(self.merged[r], s), self.x0, self.oracle.threat.bounds)
            for r, s in zip(rows.tolist(), lists, strict=True)
        ]
        return torch.stack(parts) if parts else self.x0[:0]

    def _check(self) -> None:
        """Raise unless every input is the frames of its recording."""
        for row, events in enumerate(self.lists.recordings):
            if not torch.equal(_frames(self.lists, events, self.x0, self.oracle.threat.bounds), self.x0[row]):
                raise ConfigError(
                    f"{self.attack.spec.name}: expected input {row} of the batch to be the frames of its "
                    "recording, and it is not. Hand over the raw events of these samples, in their order."
                )

    def norms(self, rows: Tensor, grad: Tensor) -> Tensor:
        """Return the l2 norm of each row's own entries [n, 1]; sums would round with the padding."""
        own = [g[: 3 * len(self.merged[r])].norm() for r, g in zip(rows.tolist(), grad, strict=True)]
        return torch.stack(own)[:, None]

    def gains(self, rows: Tensor, grad: Tensor) -> Tensor:
        """Return what each state of each candidate adds to the objective, to first order: [n, K, 3].

        Of several events in one binary cell each is given the cell's whole gradient.
        """
        low, high = self.oracle.threat.bounds
        flat = grad.flatten(1) * (high - low)
        plane = grad.shape[3] * grad.shape[4]
        off = flat.gather(1, self.cells[rows])
        on = flat.gather(1, self.cells[rows] + plane)
        return torch.stack([off, torch.zeros_like(off), on], dim=2) - self.price[rows]

    def note(self, rows: Tensor, lists: Tensor, x: Tensor, logits: Tensor) -> None:
        """Keep the nearest legal list of every sample that reaches the goal."""
        distance = self.oracle.geometry.distance(self.x0[rows], x)
        eps = self.oracle.threat.eps
        good = self.oracle.reached(logits, rows) & (distance <= (torch.inf if eps is None else float(eps)))
        for i in good.nonzero().squeeze(1).tolist():
            row = int(rows[i])
            if distance[i] < self.least[row]:
                self.least[row], self.best[row], self.kept[row] = distance[i], x[i], lists[i]


def _frames(lists: EventLists, events: Recording, like: Tensor, bounds: tuple[float, float]) -> Tensor:
    held = lists.frames(events, steps=like.shape[1], size=(like.shape[3], like.shape[4]))
    return torch.where(torch.from_numpy(held).to(like.device), bounds[1], bounds[0]).to(like)


def _made_of(x: Tensor, bounds: tuple[float, float]) -> EventLists:
    """Let every spike of frames [N, T, 2, H, W] stand for one event, at the time of its step."""
    size, lists = (x.shape[3], x.shape[4]), []
    for held in (x != bounds[0]).cpu().numpy():
        t, p, row, column = held.nonzero()
        lists.append(recording(column, row, t, p, size=size, where="frames"))
    return EventLists(lists, window=1)
