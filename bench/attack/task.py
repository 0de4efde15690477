"""What differs between victims that answer classes and victims that answer a score: one object each.

An object says what an answer decides, when an attack has reached its goal and how well, when a sample counts
as broken, what is checked of the labels, and what is measured beside the verdict. All else is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustspike.bench.attack.probes import probe_gradient
from robustspike.bench.attack.probes import quality_extras
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.losses import margin
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.victim.joint import answered_class
from robustspike.bench.victim.joint import over_members
from robustspike.bench.victim.joint import split
from robustspike.bench.victim.module import ModuleVictim

QUALITY_TOLERANCE = 0.1
"""A quality model is broken on a sample whose score moves by more than this share of its range."""

Decision = tuple[Tensor, Tensor, Tensor]
"""Label [N], score [N] and share of draws that answer the true class [N]."""


@dataclass(frozen=True)
class Aim:
    """What an attack is to reach on some samples.

    Args:
        goal: as in the threat model.
        y: labels or scores [n].
        targets: target classes [n] of a targeted goal.
        clean: the victim's clean answers [n, K].
        classes: number of logits.
    """

    goal: Goal
    y: Tensor
    targets: Tensor | None
    clean: Tensor
    classes: int


class Rules(Protocol):
    """What a kind of victim decides for itself.

    Attributes:
        stops_at_hit: whether a first legal hit settles a sample, so that it can leave the batch.
        confirms_hits: whether hits that the oracle saw are compared with the verdict.
        by_score: whether a stored answer is compared by its score, not by its class.
        levels: steps over the bounds that inputs are rounded to where the user names no threat model.
        losses: what its losses are losses of.
    """

    stops_at_hit: bool
    confirms_hits: bool
    by_score: bool
    levels: int
    losses: str

    def decided(self, draws: Tensor, logits: Tensor, y: Tensor, classes: int, needed: int) -> Decision:
        """Return the decision on a batch from the logits of every draw [D, N, K] and their mean [N, K]."""
        ...

    def correct(self, label: Tensor, y: Tensor) -> Tensor:
        """Say which clean answers are right: [N] bool."""
        ...

    def reached(self, logits: Tensor, aim: Aim) -> tuple[Tensor, Tensor]:
        """Say which answers meet the aim, and how well: ([n] bool, [n] float64)."""
        ...

    def succeeds(self, votes: Tensor, needed: int, worth: Tensor) -> Tensor:
        """Say which candidates count as the attack's success: votes of draws, and merit of their mean."""
        ...

    def broken(self, settled: Tensor, merit: Tensor, spec: VictimSpec) -> Tensor:
        """Say which samples are broken, given successes and the merit of what was chosen."""
        ...

    def labels(self, y: Tensor, spec: VictimSpec, where: str) -> Tensor:
        """Return labels as the harness takes them. Raises: ContractError: they are none of this victim."""
        ...

    def knows_loss(self, name: str) -> bool:
        """Say whether a loss of the registry is for such a victim."""
        ...

    def beside(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, again: Tensor, access: Access, streams: RowStreams
    ) -> dict[str, int]:
        """Measure what no verdict hangs on, for flags; `again` are the labels of a second clean decision."""
        ...

    def extras(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, x_adv: Tensor, streams: RowStreams
    ) -> dict[str, Tensor]:
        """Measure columns beside the verdict: [N] each."""
        ...


class Classes:
    """Victims that answer classes: broken is a sample whose answer is wrong, or the target."""

    stops_at_hit = True
    confirms_hits = True
    by_score = False
    levels = 0
    losses = "classes"

    def decided(self, draws: Tensor, logits: Tensor, y: Tensor, classes: int, needed: int) -> Decision:
        score = over_members(margin, logits, y, classes).amin(dim=1)
        labels = torch.stack([answered_class(part, y, classes) for part in draws])
        votes = torch.nn.functional.one_hot(labels, classes).sum(dim=0).scatter(1, y[:, None], -1)
        wrong = (labels != y).sum(dim=0) >= needed
        return torch.where(wrong, votes.argmax(dim=1), y), score, (labels == y).double().mean(dim=0)

    def correct(self, label: Tensor, y: Tensor) -> Tensor:
        return label == y

    def reached(self, logits: Tensor, aim: Aim) -> tuple[Tensor, Tensor]:
        if logits.shape[1] == aim.classes:  # one victim: the same in fewer operations
            aimed = aim.goal is Goal.TARGETED and aim.targets is not None
            y = aim.targets if aimed and aim.targets is not None else aim.y
            worth = margin(logits, y)
            hit = logits.argmax(dim=1) == y
            return (hit, -worth.double()) if aimed else (~hit, worth.double())
        labels = split(logits, aim.classes).argmax(dim=2)
        if aim.goal is Goal.TARGETED and aim.targets is not None:
            worth = -over_members(margin, logits, aim.targets, aim.classes)
            return (labels == aim.targets[:, None]).all(dim=1), worth.amin(dim=1).double()
        worth = over_members(margin, logits, aim.y, aim.classes)
        return (labels != aim.y[:, None]).all(dim=1), worth.amin(dim=1).double()

    def succeeds(self, votes: Tensor, needed: int, worth: Tensor) -> Tensor:
        return votes >= needed

    def broken(self, settled: Tensor, merit: Tensor, spec: VictimSpec) -> Tensor:
        return settled

    def labels(self, y: Tensor, spec: VictimSpec, where: str) -> Tensor:
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ContractError(f"{where}: expected whole numbers 0..{spec.classes - 1}, got {y.dtype}.")
        y = y.to(torch.int64)
        if int(y.min()) < 0 or int(y.max()) >= spec.classes:
            raise ContractError(
                f"{where}: labels from {int(y.min())} to {int(y.max())}, expected 0 to {spec.classes - 1}. "
                "Classes count from 0; leave samples without a label out."
            )
        return y

    def knows_loss(self, name: str) -> bool:
        return name != "score"

    def beside(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, again: Tensor, access: Access, streams: RowStreams
    ) -> dict[str, int]:
        found = {"unstable": int((again != y).sum())}
        return found | probe_gradient(victim, x, y, streams) if access is Access.WHITE else found

    def extras(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, x_adv: Tensor, streams: RowStreams
    ) -> dict[str, Tensor]:
        return {}


class Scores:
    """Victims that answer one quality score: broken is a sample whose score moves by a tenth of its range.

    What was returned counts if it moves the score the right way (an attack may trade score for visibility),
    else the largest change that the oracle saw, else the clean input: nobody submits a loss.
    """

    stops_at_hit = False
    confirms_hits = False
    by_score = True
    levels = 255
    losses = "a quality score: only the loss score does"

    def decided(self, draws: Tensor, logits: Tensor, y: Tensor, classes: int, needed: int) -> Decision:
        zeros = torch.zeros_like(y, dtype=torch.int64)
        return zeros, logits.squeeze(1), zeros.double()

    def correct(self, label: Tensor, y: Tensor) -> Tensor:
        return torch.ones_like(label, dtype=torch.bool)

    def reached(self, logits: Tensor, aim: Aim) -> tuple[Tensor, Tensor]:
        change = logits.squeeze(1).double() - aim.clean.squeeze(1).double()
        if aim.goal is Goal.SHIFT:
            change = change.abs()
        elif aim.goal is Goal.LOWER:
            change = -change
        return torch.isfinite(change), change

    def succeeds(self, votes: Tensor, needed: int, worth: Tensor) -> Tensor:
        return worth > 0

    def broken(self, settled: Tensor, merit: Tensor, spec: VictimSpec) -> Tensor:
        low, high = spec.score_range or (0.0, 1.0)
        return settled & (merit > QUALITY_TOLERANCE * (high - low))

    def labels(self, y: Tensor, spec: VictimSpec, where: str) -> Tensor:
        if y.is_complex() or not bool(torch.isfinite(y.double()).all()):
            raise ContractError(f"{where}: expected finite scores [{len(y)}], and some are not.")
        return y.double()

    def knows_loss(self, name: str) -> bool:
        return name == "score"

    def beside(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, again: Tensor, access: Access, streams: RowStreams
    ) -> dict[str, int]:
        return {}

    def extras(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, x_adv: Tensor, streams: RowStreams
    ) -> dict[str, Tensor]:
        return quality_extras(victim, x, y, x_adv, streams)


RULES: dict[Task, Rules] = {Task.CLASSIFY: Classes(), Task.QUALITY: Scores()}


def rules_of(spec: VictimSpec) -> Rules:
    """Return the rules of a victim's kind."""
    return RULES[spec.task]
