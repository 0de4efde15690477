"""Parts of an attack side by side: what they ask in one round is answered by one pass through the victim.

Each part is a lane: its code runs until it asks for an answer, and waits there (a greenlet) until every
other lane has asked too. Nothing runs at the same time, so the order of everything is fixed. Passes are
counted for the lane that asked; a sample that one lane breaks stands for none of them from the next round on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING
from typing import Any

import torch
from greenlet import getcurrent
from greenlet import greenlet
from torch import Tensor

from robustspike.bench.numbers.losses import Loss
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.snn.estimators import LossGrad
from robustspike.bench.snn.estimators import Memory

if TYPE_CHECKING:
    from robustspike.bench.attack.meter import Meter

MOST_ROWS = 128
"""Inputs of one pass; a pass of a small net costs little more than half as many do alone below it."""

Part = tuple[str, Callable[[], Tensor]]
"""A part of an attack: its name, under which its passes are booked, and its code."""


@dataclass(frozen=True)
class Question:
    """What a lane waits for: logits, or the gradient of a loss under an estimator.

    Args:
        x: inputs [n, ...].
        rows: positions of the samples [n].
        distinct: whether no row is known to stand twice.
        y: classes that the loss is given [n].
        loss: None where logits are asked for.
        rule: the estimator; None where logits are asked for.
    """

    x: Tensor
    rows: Tensor
    y: Tensor
    distinct: bool = False
    loss: Loss | None = None
    rule: GradientEstimator | None = None


@dataclass
class Lane:
    """One part and what belongs to it alone."""

    number: int
    name: str
    code: greenlet
    memories: dict[Any, Any] = field(default_factory=dict)
    joined: set[GradientEstimator] = field(default_factory=set)
    outcome: Tensor | Exception | None = None


class Lanes:
    """Runs parts side by side on the samples that stand when they begin.

    Attributes: live: lanes that have begun and not returned; they share what is left of a sample's budget.
    """

    def __init__(self, meter: Meter, parts: Sequence[Part], standing: Tensor) -> None:
        self._meter = meter
        self._place = torch.full_like(meter.forwards, -1)
        self._place[standing] = torch.arange(len(standing), device=standing.device)
        self._size = len(standing)
        self._shared: dict[GradientEstimator, list[dict[str, object]]] = {}
        self._lanes = [
            Lane(number, name, greenlet(_guarded(code))) for number, (name, code) in enumerate(parts)
        ]
        self.live = 0

    def run(self) -> list[Tensor | Exception | None]:
        """Run the parts, as many at a time as fill a pass; return what each returned or raised.

        None stands for a part that was not begun, as no sample stood any more.
        """
        before = self._meter.stage, self._meter.replace_memories({})
        waiting: dict[int, Question] = {}
        later = deque(self._lanes)
        try:
            while later or waiting:
                standing = len(self._meter.active(1, 0))
                while later and standing and (not self.live or (self.live + 1) * standing <= MOST_ROWS):
                    self.live += 1
                    self._resume(later.popleft(), None, waiting)
                if not waiting and not standing:
                    break
                asked, waiting = waiting, {}
                answers = self._answers(asked)
                for number in sorted(asked):
                    self._resume(self._lanes[number], answers[number], waiting)
        finally:
            for lane in self._lanes:
                lane.code.throw()  # ends what was left waiting, and its clean-up runs
            self._meter.stage = before[0]
            self._meter.replace_memories(before[1])
        return [lane.outcome for lane in self._lanes]

    def ask(self, question: Question) -> Any:
        """Wait, as a lane, for the answer: logits, or a `LossGrad`."""
        return getcurrent().parent.switch(question)

    def _resume(self, lane: Lane, answer: Any, waiting: dict[int, Question]) -> None:
        """Let a lane begin, or go on with its answer, until its next question or its end."""
        self._meter.stage = self._meter.stage_of(lane.name)
        self._meter.replace_memories(lane.memories)
        proceed = lane.code.throw if isinstance(answer, Exception) else lane.code.switch
        said = proceed(answer)
        if lane.code.dead:
            lane.outcome = said
            self.live -= 1
        else:
            waiting[lane.number] = said

    def _answers(self, asked: dict[int, Question]) -> dict[int, Any]:
        """Answer the questions of a round: one pass for all that ask alike."""
        groups: dict[tuple[GradientEstimator | None, bool], list[int]] = {}
        for number, question in asked.items():
            together = question.rule is None or self._joins(self._lanes[number], question)
            groups.setdefault((question.rule, together), []).append(number)
        found: dict[int, Any] = {}
        for (rule, together), numbers in groups.items():
            for some in [numbers] if together else [[number] for number in numbers]:
                questions = [asked[number] for number in some]
                parts: Sequence[Tensor | LossGrad | Exception]
                try:
                    parts = (
                        self._logits(questions)
                        if rule is None
                        else self._gradients(some, questions, together)
                    )
                except Exception as error:  # noqa: BLE001  (each lane that asked meets it, as it would alone)
                    parts = [error] * len(some)
                found |= dict(zip(some, parts, strict=True))
        return found

    def _joins(self, lane: Lane, question: Question) -> bool:
        """Say whether what the estimator remembers for this lane is kept with that for the others.

        A lane that told it to forget, or that asks about samples that did not stand, asks alone from then on.
        """
        rule = question.rule
        assert rule is not None
        if bool((self._place[question.rows] < 0).any()):
            lane.memories.pop((rule, None), None)
            lane.joined.add(rule)
            return False
        shared = self._shared.setdefault(rule, [{} for _ in self._meter.victim.neurons])
        if rule not in lane.joined:
            lane.joined.add(rule)
            lane.memories[rule, None] = shared
        return lane.memories.get((rule, None)) is shared

    def _logits(self, questions: list[Question]) -> list[Tensor]:
        with torch.no_grad():
            logits = self._meter.victim.logits(torch.cat([q.x for q in questions]))
        return list(logits.split([len(q.x) for q in questions]))

    def _gradients(self, numbers: list[int], questions: list[Question], together: bool) -> list[LossGrad]:
        sizes = [len(q.x) for q in questions]
        rule = questions[0].rule
        assert rule is not None

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            parts = zip(questions, logits.split(sizes), y.split(sizes), strict=True)
            return torch.cat([q.loss(z, labels) for q, z, labels in parts if q.loss is not None])

        if together:
            rows = torch.cat(
                [self._place[q.rows] + k * self._size for k, q in zip(numbers, questions, strict=True)]
            )
            total = self._size * len(self._lanes)
            distinct = all(q.distinct for q in questions)
            memories = [
                Memory(rows=rows, n=total, distinct=distinct, store=store) for store in self._shared[rule]
            ]
        else:
            self._meter.replace_memories(self._lanes[numbers[0]].memories)
            memories = self._meter.memories(rule, questions[0].rows, frozen=False)
        out = self._meter.victim.loss_and_grad(
            torch.cat([q.x for q in questions]),
            torch.cat([q.y for q in questions]),
            loss,
            rule,
            memories=memories,
        )
        return [LossGrad(*parts) for parts in zip(*(part.split(sizes) for part in out), strict=True)]


def _guarded(code: Callable[[], Tensor]) -> Callable[[], Tensor | Exception]:
    """Return the code of a lane with what it raises as its result."""

    def run(*_: object) -> Tensor | Exception:
        try:
            return code()
        except Exception as error:  # noqa: BLE001  (foreign code: its failure must not cost the others' hits)
            return error

    return run


def how_many(meter: Meter, parts: int, standing: int) -> int:
    """Return how many of the next parts are handed over at once: one, or as many as memory allows.

    What an estimator remembers takes a place for every part and sample that stands: four times as many as
    there are samples, or those of one pass. It is one part where two would not fit into a pass; where samples
    do not leave at their hit; where answers are random (what is drawn hangs on the order of questions); for
    joint victims; and where the budget is smaller than the default, as the first parts may spend all of it.
    """
    budget, usual = meter.threat.budget, type(meter.threat.budget)()
    alone = (
        not meter.stops_at_hit
        or meter.victim.spec.stochastic
        or meter.width > 1
        or budget.forwards < usual.forwards
        or budget.backwards < usual.backwards
    )
    if alone or 2 * standing > MOST_ROWS:
        return 1
    return min(parts, max(4 * len(meter.forwards), MOST_ROWS) // max(1, standing))
