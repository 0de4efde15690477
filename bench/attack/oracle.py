"""The oracle: the only way an attack reaches a victim.

It meters every pass per sample, refuses what the access level hides or the budget forbids, remembers
the best legal adversarial example of every sample, and tells the attack which samples still stand.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from robustspike.bench.attack.lanes import Lanes
from robustspike.bench.attack.lanes import Part
from robustspike.bench.attack.lanes import Question
from robustspike.bench.attack.lanes import how_many
from robustspike.bench.attack.meter import EOT_LEAST
from robustspike.bench.attack.meter import Meter
from robustspike.bench.attack.task import rules_of
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Budget
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.data.events.events import Recording
from robustspike.bench.errors import AccessDenied
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import EstimatorRefused
from robustspike.bench.numbers.losses import LOSSES
from robustspike.bench.numbers.losses import Loss
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.snn.estimators import LossGrad
from robustspike.bench.snn.estimators import Memory
from robustspike.bench.threats.geometry import Geometry
from robustspike.bench.victim.checks import refusal
from robustspike.bench.victim.joint import over_members
from robustspike.bench.victim.joint import split
from robustspike.bench.victim.module import ModuleVictim

_METERS: weakref.WeakKeyDictionary[Oracle, Meter] = weakref.WeakKeyDictionary()


def _mean(draws: Sequence[Tensor]) -> Tensor:
    """Return the mean of what several draws gave; of one, that itself."""
    return draws[0] if len(draws) == 1 else torch.stack(list(draws)).mean(dim=0)


def loss_named(name: str, spec: VictimSpec) -> Loss:
    """Return a loss by its name in `LOSSES`. Raises: ConfigError: no such loss, or not one for the victim."""
    if name not in LOSSES:
        hint = did_you_mean(name, LOSSES)
        raise ConfigError(f"unknown loss '{name}'.{hint} Losses: {', '.join(LOSSES)}.")
    rules = rules_of(spec)
    if not rules.knows_loss(name):
        raise ConfigError(f"loss '{name}' does not apply to '{spec.name}', which answers {rules.losses}.")
    if name == "dlr" and spec.classes < 3:
        raise ConfigError(
            f"loss 'dlr' needs at least 3 classes, and '{spec.name}' has {spec.classes}. Use 'margin'."
        )
    return LOSSES[name]


class Oracle:
    """What an attack sees of the victim; made by the harness, one per attack run and batch.

    `rows` are positions 0..N-1 in the x0 that `run` was given; a row may stand several times in one
    query (several candidates for one sample). Every answer is detached from the victim's graph.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, meter: Meter) -> None:
        _METERS[self] = meter

    @property
    def threat(self) -> ThreatModel:
        """What the attack may change, see and spend."""
        return _METERS[self].threat

    @property
    def spec(self) -> VictimSpec:
        """What the victim declares about itself."""
        return _METERS[self].victim.spec

    @property
    def targets(self) -> Tensor | None:
        """The target classes [N] of a targeted goal, else None."""
        targets = _METERS[self].targets
        return None if targets is None else targets.clone()

    @property
    def events(self) -> EventLists | None:
        """The raw events behind the samples, row by row; None where the frames are all there is."""
        events = _METERS[self].events
        return None if events is None else events()

    def hand_in(self, row: int, events: Recording) -> None:
        """Say which event list makes the best candidate of a sample; what changed on it is recorded.

        The verdict is on the returned frames as always. A list whose frames they are not is ignored.
        """
        _METERS[self].lists[row] = events.copy()

    @property
    def radius(self) -> float:
        """eps as a number, at most the size of the whole domain (which an unbounded threat gets)."""
        meter = _METERS[self]
        low, high = meter.threat.bounds
        corner = torch.full_like(meter.x0[:1], low)
        if not len(corner):
            return 0.0
        whole = float(meter.geometry.distance(corner, torch.full_like(corner, high)))
        return min(meter.eps, whole)

    @property
    def members(self) -> int:
        """The number of victims that one input must fool: 1, or those of a joint victim."""
        return _METERS[self].width

    @property
    def geometry(self) -> Geometry:
        """The geometry of the threat model."""
        return _METERS[self].geometry

    def active(
        self,
        *,
        forwards: int = 1,
        backwards: int = 0,
        with_hits: bool = False,
        among: Tensor | None = None,
    ) -> Tensor:
        """Return the rows that still stand and can pay for that many more passes.

        For a bounded threat on a deterministic classifier a row leaves at its first legal hit. For
        minimum-norm threats, quality models and stochastic victims rows leave only when out of budget.
        `with_hits` keeps broken rows as well, for an attack that goes on to shrink what it found; `among`
        [N] bool leaves out all others: cheaper on an accelerator than to leave them out of what comes back.
        """
        return _METERS[self].active(forwards, backwards, with_hits=with_hits, among=among)

    def differentiable(
        self, estimator: GradientEstimator | str, *, draws: int = 1, among: Tensor | None = None
    ) -> Tensor:
        """Return the rows (`among` those) that still stand and can pay for one gradient of that estimator."""
        rule = self._named(estimator)
        return self.active(forwards=draws * rule.forwards, backwards=draws * rule.backwards, among=among)

    def refusal(self, estimator: GradientEstimator | str, *, member: int | None = None) -> str | None:
        """Say why an estimator does not apply to the victim (or a member of it), or None where it does.

        Costs nothing: what it takes to find out is not charged. A gradient under an estimator that does not
        apply is refused: nothing may stand in for it under its name.
        """
        meter = _METERS[self]
        victim = meter.victim if member is None else meter.victim.members[member]
        return refusal(victim, self._named(estimator))

    @property
    def spiking(self) -> bool:
        """Whether the victim has spiking neurons, whose backward pass estimators can exchange."""
        return bool(_METERS[self].victim.neurons)

    def remembers(self, estimator: GradientEstimator | str) -> bool:
        """Say whether an estimator carries anything from pass to pass: then no point repeats another."""
        meter = _METERS[self]
        return meter.remembers(self._named(estimator))

    def forget(self) -> None:
        """Clear what estimators remember: a new start depends on no earlier one."""
        _METERS[self].forget()

    def tally(self, name: str, count: int) -> None:
        """Add to a counter of the attack's own, which its record keeps under that name."""
        tallies = _METERS[self].tallies
        tallies[name] = tallies.get(name, 0) + count

    def tallied(self, name: str) -> int:
        """Return a counter of the attack's own; 0 where nothing was added."""
        return _METERS[self].tallies.get(name, 0)

    def failed(self, name: str, error: Exception) -> None:
        """Book a part of the attack that raised: its message goes into the record, which is flagged."""
        text = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        _METERS[self].failures.append(f"{name}: {text}")
        self.tally(f"failed:{name}", 1)

    def stage(self, name: str) -> None:
        """Book the passes and first hits from here on under a name (ensembles name their members).

        What estimators remembered so far is forgotten, so that a part does not depend on earlier ones.
        """
        meter = _METERS[self]
        meter.forget()
        meter.stage = meter.stage_of(name)

    def abreast(self, parts: int) -> int:
        """Return how many of the next parts of an attack `side_by_side` should be given at once."""
        meter = _METERS[self]
        return how_many(meter, parts, len(meter.active(1, 0)))

    def side_by_side(self, parts: Sequence[Part]) -> list[Tensor | Exception | None]:
        """Run parts of an attack that do not depend on each other; return what each returned or raised.

        Each part is a stage of its own, as by `stage`: passes and first hits are booked under its name, and
        estimators remember for each part alone. Several parts take turns: each runs until it asks for
        logits or a gradient, and one pass answers what all of them ask. A sample broken by one part stands
        for none of them; up to then it costs the passes of all. A part that no sample stood for any more
        is not begun, and None.

        Args:
            parts: names and code, which uses this oracle.
        """
        meter = _METERS[self]
        if len(parts) == 1:
            self.stage(parts[0][0])
            try:
                return [parts[0][1]()]
            except Exception as error:  # noqa: BLE001  (foreign code: the caller books its failure)
                return [error]
        meter.lanes = Lanes(meter, parts, meter.active(1, 0))
        try:
            return meter.lanes.run()
        finally:
            meter.lanes = None

    def local(self, victim: ModuleVictim, rows: Tensor, *, rng: RowStreams) -> Oracle:
        """Return an oracle on a victim of the attacker's own, for some of the samples.

        White-box whatever the threat grants; its passes are the attacker's and cost the target's budget
        nothing; rows stay in the batch after a hit, so that iterates go on past the decision boundary.

        Args:
            victim: the attacker's victim.
            rows: positions of the samples; they are rows 0, 1, ... of the new oracle.
            rng: one stream per row, for the victim's noise.
        """
        meter = _METERS[self]
        meter.local[rows] = True
        if meter.stage is not None:
            meter.stage.local += len(rows)
        threat = dataclasses.replace(meter.threat, access=Access.WHITE, budget=Budget())
        own = Meter(
            victim.to(meter.x0.device),
            threat,
            meter.geometry,
            meter.x0[rows],
            meter.y[rows],
            noise=rng.fork("local"),
            clean=torch.zeros(len(rows), victim.spec.classes, device=rows.device),
            estimators=meter.estimators,
            targets=None if meter.targets is None else meter.targets[rows],
            keeps_going=True,
        )
        return Oracle(own)

    def practice(self, x: Tensor, loss: Loss, *, estimator: GradientEstimator | str = "native") -> LossGrad:
        """Return loss and gradient of the victim on the attacker's own inputs x [m, ...]. WHITE only.

        For perturbations that are learned on other data (universal ones, generators). The passes are
        shared out among the attacked samples: each is charged its part, rounded up, of m passes.

        Raises: BudgetExceeded: ask `active` first for m / N passes (see `practice_price`).
        """
        self._allow(Access.WHITE)
        meter = _METERS[self]
        rule = self._applied(estimator)
        price = self.practice_price(len(x))
        meter.charge(meter._rows, price * rule.forwards, price * rule.backwards)
        own = torch.arange(len(x), device=x.device)
        noise = None
        if meter.victim.spec.stochastic:
            noise = RowStreams.derive(own, "practice", int(meter.queries.sum()), device=x.device)
        return meter.victim.loss_and_grad(
            x.detach(),
            torch.zeros(len(x), dtype=torch.int64, device=x.device),
            loss,
            rule,
            memories=[Memory(rows=own, n=len(x)) for _ in meter.victim.neurons],
            noise=noise,
        )

    def practice_price(self, m: int) -> int:
        """Return what m passes on the attacker's own inputs cost each attacked sample."""
        return -(-m // max(1, len(_METERS[self].x0)))

    def left(self, rows: Tensor) -> Budget:
        """Return the passes that every one of the rows can still pay."""
        meter = _METERS[self]
        budget = meter.threat.budget
        if not len(rows):
            return budget
        width = meter.width * meter.sharing
        return Budget(
            forwards=(budget.forwards - int(meter.forwards[rows].max())) // width,
            backwards=(budget.backwards - int(meter.backwards[rows].max())) // width,
        )

    def forwards_left(self, rows: Tensor) -> Tensor:
        """Return how many forwards each of the rows can still pay: [n] int64."""
        meter = _METERS[self]
        return (meter.threat.budget.forwards - meter.forwards[rows]) // meter.sharing

    def reached(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Say which answers meet the goal of the threat model: [n] bool. Costs nothing."""
        self._check_rows(logits, rows)
        return _METERS[self].judge(logits, rows)[0] & torch.isfinite(logits).all(dim=1)

    def best(self) -> tuple[Tensor, Tensor]:
        """Return the best legal adversarial example of every row so far (x0 where none), and hits."""
        meter = _METERS[self]
        return meter.best.clone(), meter.hit.clone()

    def closest(self) -> Tensor:
        """Return of every row the legal input asked so far that came nearest to the goal, hit or not.

        Nearest is the largest margin (of quality models: the largest score change); x0 where nothing was
        asked. A part of an attack can so go on from what earlier parts found. It is kept from the first call
        on: an ensemble calls this before its first part. Costs nothing.
        """
        meter = _METERS[self]
        if meter.closest is None:
            meter.closest = meter.x0.clone()
        return meter.closest.clone()

    def project(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the legal points nearest to x for the given rows."""
        self._check_rows(x, rows)
        meter = _METERS[self]
        return meter.geometry.project(meter.x0[rows], x, eps=meter.eps, bounds=meter.threat.bounds)

    def sample(self, rows: Tensor, *, rng: RowStreams) -> Tensor:
        """Return one random legal point per row."""
        meter = _METERS[self]
        return meter.geometry.sample(
            meter.x0[rows], eps=meter.eps, bounds=meter.threat.bounds, rng=rng, rows=rows
        )

    def labels(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return predicted classes [n] (of a joint victim: the true one unless all members are wrong).

        Costs one forward per row; open to every access but TRANSFER.
        """
        self._allow(Access.WHITE, Access.SCORE, Access.LABEL)
        meter = _METERS[self]
        labels = split(self._forward(x, rows), meter.victim.spec.classes).argmax(dim=2)
        y = meter.y[rows]
        return (
            torch.where((labels != y[:, None]).all(dim=1), labels[:, 0], y)
            if meter.width > 1
            else labels[:, 0]
        )

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return logits [n, K] (or scores [n, 1]). Costs one forward per row; SCORE or WHITE."""
        self._allow(Access.WHITE, Access.SCORE)
        return self._forward(x, rows)

    def flip_logits(
        self, x: Tensor, rows: Tensor, owner: Tensor, index: Tensor, value: Tensor | None = None
    ) -> Tensor:
        """Return the logits of inputs with one element changed, [q, K].

        The single flips of all samples share the victim's batches, and a victim may answer them faster
        than by a full pass each. Costs one forward of row rows[owner] per flip; SCORE or WHITE.

        Args:
            x: inputs [n, ...], one per entry of rows.
            rows: positions of the samples.
            owner: which input is flipped [q], in 0..n-1.
            index: which element of it is flipped, counted in the flattened input [q].
            value: what it becomes [q]; None mirrors it in the bounds.
        """
        self._allow(Access.WHITE, Access.SCORE)
        self._check_rows(x, rows)
        self._check_rows(index, owner)
        meter = _METERS[self]
        at = rows[owner]
        meter.charge(at, 1, 0)
        noise = meter.fresh_noise(at, 0)
        with torch.no_grad():
            logits = meter.victim.flip_logits(x.detach(), owner, index, value, noise=noise)
        reached = (meter.judge(logits, at)[0] | ~torch.isfinite(logits).all(dim=1)).nonzero().squeeze(1)
        if len(reached):
            chosen = None if value is None else value[reached]
            flipped = meter.victim.flipped(x, owner[reached], index[reached], chosen)
            meter.note(flipped, logits[reached], at[reached])
        return logits

    def loss(
        self,
        x: Tensor,
        rows: Tensor,
        loss: Loss | str = "ce",
        *,
        draws: int = 1,
        member: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss to be increased [n] and the logits, without a gradient.

        Args: as `loss_and_grad`.
        Cost: `draws` forwards per row. SCORE or WHITE.
        """
        self._allow(Access.WHITE, Access.SCORE)
        self._check_rows(x, rows)
        meter = _METERS[self]
        y, sign, function = self._aim(rows, loss)
        answers = [self._pass(x, rows, draw, member) for draw in range(draws)]
        values = _mean([sign * function(logits, y) for logits in answers])
        logits = _mean(answers)
        if member is None:
            meter.note(x, logits, rows)
        return values, logits

    def loss_and_grad(
        self,
        x: Tensor,
        rows: Tensor,
        loss: Loss | str = "ce",
        *,
        estimator: GradientEstimator | str = "native",
        draws: int = 1,
        member: int | None = None,
    ) -> LossGrad:
        """Return the loss to be increased [n], its input gradient, and the logits. WHITE only.

        Args:
            x: inputs [n, ...], one per entry of rows.
            rows: positions of the samples.
            loss: a function (logits, y) -> [n], or a name in `LOSSES`. With a targeted goal it is
                given the target class and negated, so that increasing it is always progress.
            estimator: a gradient estimator or its registry name.
            draws: number of noise draws that are averaged (EOT) for a stochastic victim.
            member: ask this member of a joint victim alone, at the cost of one network. Its answers are
                no verdict, so nothing is remembered.

        Cost: draws * (estimator.forwards + estimator.backwards) per row.
        Raises: BudgetExceeded, AccessDenied; EstimatorRefused where the estimator does not apply.
        """
        self._allow(Access.WHITE)
        self._check_rows(x, rows)
        meter = _METERS[self]
        rule = self._applied(estimator, member)
        victim = meter.victim if member is None else meter.victim.members[member]
        meter.charge(rows, draws * rule.forwards, draws * rule.backwards, members=0 if member is None else 1)
        y, sign, function = self._aim(rows, loss)
        if meter.lanes is not None and draws == 1 and member is None:
            question = Question(
                x.detach(),
                rows,
                y,
                distinct=meter.are_distinct(rows),
                loss=lambda z, labels: sign * function(z, labels),
                rule=rule,
            )
            out: LossGrad = meter.lanes.ask(question)
            return self._noted(x, rows, out, draws)
        answers = [
            victim.loss_and_grad(
                x.detach(),
                y,
                lambda logits, labels: sign * function(logits, labels),
                rule,
                memories=meter.memories(rule, rows, frozen=draw > 0, member=member),
                noise=meter.fresh_noise(rows, draw),
            )
            for draw in range(draws)
        ]
        out = LossGrad(*(_mean(parts) for parts in zip(*answers, strict=True)))
        return out if member is not None else self._noted(x, rows, out, draws)

    def _noted(self, x: Tensor, rows: Tensor, out: LossGrad, draws: int) -> LossGrad:
        """Count a gradient and remember what its pass found."""
        meter = _METERS[self]
        once = torch.ones_like(rows)
        meter.gradients.index_add_(0, rows, once)
        if draws >= EOT_LEAST:
            meter.averaged.index_add_(0, rows, once)
        vanishes = out.grad.flatten(1).abs().amax(dim=1) == 0
        meter.zero_gradients.index_add_(0, rows, vanishes.to(torch.int64))
        meter.note(x, out.logits, rows)
        return out

    def _named(self, estimator: GradientEstimator | str) -> GradientEstimator:
        return _METERS[self].estimators(estimator) if isinstance(estimator, str) else estimator

    def _applied(self, estimator: GradientEstimator | str, member: int | None = None) -> GradientEstimator:
        """Return an estimator that applies to the victim. Raises: EstimatorRefused."""
        reason = self.refusal(estimator, member=member)
        rule = self._named(estimator)
        if reason is not None:
            name = estimator if isinstance(estimator, str) else rule.name
            raise EstimatorRefused(f"estimator '{name}' does not apply to '{self.spec.name}': {reason}.")
        return rule

    @staticmethod
    def _check_rows(x: Tensor, rows: Tensor) -> None:
        if len(x) != len(rows):
            raise ContractError(
                f"oracle: got {len(x)} inputs for {len(rows)} rows. Give one row position per input."
            )

    def _aim(self, rows: Tensor, loss: Loss | str) -> tuple[Tensor, float, Loss]:
        """Return the classes that the loss is given, its sign, and the loss as a function."""
        meter = _METERS[self]
        of_one = loss_named(loss, meter.victim.spec) if isinstance(loss, str) else loss

        def function(logits: Tensor, y: Tensor) -> Tensor:
            if logits.shape[1] == meter.victim.spec.classes:
                return of_one(logits, y)
            return over_members(of_one, logits, y, meter.victim.spec.classes).mean(dim=1)

        if meter.threat.goal is Goal.TARGETED and meter.targets is not None:
            return meter.targets[rows], -1.0, function
        return meter.y[rows], 1.0, function

    def _forward(self, x: Tensor, rows: Tensor) -> Tensor:
        logits = self._pass(x, rows)
        _METERS[self].note(x, logits, rows)
        return logits

    def _pass(self, x: Tensor, rows: Tensor, draw: int = 0, member: int | None = None) -> Tensor:
        meter = _METERS[self]
        victim = meter.victim if member is None else meter.victim.members[member]
        self._check_rows(x, rows)
        meter.charge(rows, 1, 0, members=0 if member is None else 1)
        if meter.lanes is not None and member is None:
            logits: Tensor = meter.lanes.ask(Question(x.detach(), rows, meter.y[rows]))
            return logits
        with torch.no_grad():
            return victim.logits(x.detach(), noise=meter.fresh_noise(rows, draw))

    def _allow(self, *levels: Access) -> None:
        access = _METERS[self].threat.access
        if access not in levels:
            raise AccessDenied(
                f"oracle: the threat model grants '{access}' access, this needs one of "
                f"{', '.join(repr(str(level)) for level in levels)}. Declare `access` in the attack's spec."
            )
