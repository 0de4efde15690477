"""One attack on one batch, run and judged.

A shard is a fixed batch of samples. The clean answer, the attack, and the final re-evaluation are
separate passes; the verdict comes from the last one alone.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any
from typing import overload

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.attack.arguments import checked_inputs
from robustspike.bench.attack.arguments import checked_labels
from robustspike.bench.attack.arguments import exact
from robustspike.bench.attack.arguments import whole
from robustspike.bench.attack.bare import adapted_to
from robustspike.bench.attack.bare import gathered
from robustspike.bench.attack.bare import tell
from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.decide import decide
from robustspike.bench.attack.decide import target_classes
from robustspike.bench.attack.fitting import misfit
from robustspike.bench.attack.fitting import refused_gradient
from robustspike.bench.attack.guard import _run
from robustspike.bench.attack.judge import judge
from robustspike.bench.attack.known import Known
from robustspike.bench.attack.limits import NO_LIMITS
from robustspike.bench.attack.limits import Limits
from robustspike.bench.attack.meter import Meter
from robustspike.bench.attack.probes import event_extras
from robustspike.bench.attack.probes import spike_extras
from robustspike.bench.attack.result import ERROR
from robustspike.bench.attack.result import WRONG
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.attack.result import blank
from robustspike.bench.attack.result import to_cpu
from robustspike.bench.attack.saving import Evaluated
from robustspike.bench.attack.saving import save
from robustspike.bench.attack.strength import strength_extras
from robustspike.bench.attack.task import rules_of
from robustspike.bench.attack.trace import late_hits
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import EstimatorRefused
from robustspike.bench.errors import VictimFailed
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.stats import wilson
from robustspike.bench.record.flags import FLAGS
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.threats.geometry import Geometry
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.module import ModuleVictim


@cache
def _estimator(name: str) -> GradientEstimator:
    found: GradientEstimator = registry("estimators").get(name)
    return found


def evaluate_shard(
    victim: ModuleVictim,
    attack: Attack,
    threat: ThreatModel,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    *,
    seed: int = 0,
    limits: Limits = NO_LIMITS,
    events: Callable[[], EventLists | None] | None = None,
    known: Known | None = None,
    asked: ModuleVictim | None = None,
) -> ShardResult:
    """Attack one batch and judge every sample.

    Args:
        victim: the victim; x, y and ids are moved to its device.
        attack: the attack.
        threat: the threat model; its access should be the least that the attack needs.
        x, y, ids: inputs [N, *shape], labels [N], global ids [N].
        seed: root seed; every sample's random numbers derive from (seed, attack, sample).
        limits: time and memory that the attack may take on this batch; by default as much as it likes.
        events: returns the raw events behind the samples, for attacks on them; called where one asks.
        known: what is known of the victim on this batch with this seed, from attacks on it before.
        asked: the same network in another form, which the attack asks instead (`compiling.compiled`).

    Returns: verdicts; failures of the attack and of the victim are ERROR rows with a message, no exceptions.
    """
    with torch.inference_mode(False):
        x, y, ids = (part.to(victim.device) for part in (x, y, ids))
        result = blank(x, y, ids)
        try:
            _evaluate(
                victim,
                attack,
                threat,
                result,
                x,
                seed=seed,
                limits=limits,
                events=events,
                known=known or Known(),
                asked=asked or victim,
            )
        except (ContractError, MemoryError) as error:  # the attack is guarded: this is the victim's own fault
            result.status[:] = ERROR
            text = str(error) if isinstance(error, ContractError) else "MemoryError"
            result.errors.append(text if victim.spec.name in text else f"victim '{victim.spec.name}': {text}")
            result.cause = error if isinstance(error, ContractError) else VictimFailed(result.errors[-1])
        return to_cpu(result)


def failed(x: Tensor, y: Tensor, ids: Tensor, message: str) -> ShardResult:
    """Return a shard of which nothing could be computed."""
    result = blank(x, y, ids)
    result.status[:] = ERROR
    result.errors.append(message)
    return to_cpu(result)


def _evaluate(
    victim: ModuleVictim,
    attack: Attack,
    threat: ThreatModel,
    result: ShardResult,
    x: Tensor,
    *,
    seed: int,
    limits: Limits,
    events: Callable[[], EventLists | None] | None,
    known: Known,
    asked: ModuleVictim,
) -> None:
    """Attack the samples of a blank result, inputs x, and write the verdicts into it."""
    rules, y, ids, device = rules_of(victim.spec), result.labels, result.ids, x.device
    geometry: Geometry = registry("geometries").get(threat.geometry)
    verify = RowStreams.derive(ids, seed, "verify", device=device)
    clean = known.once("clean", lambda: decide(victim, x, y, verify.fork("clean")))
    result.clean, result.clean_score = clean.label.clone(), clean.score.clone()
    result.adv, result.adv_score = clean.label.clone(), clean.score.clone()
    if victim.spec.stochastic and rules.confirms_hits:
        result.extras = {"right_clean": clean.right.clone(), "right_attacked": clean.right.clone()}
    targeted = threat.goal is Goal.TARGETED
    right = rules.correct(clean.label, y)
    result.status[~right] = WRONG
    result.status[~clean.finite] = ERROR
    if not bool(clean.finite.all()):
        result.errors.append(f"victim '{victim.spec.name}': logits on clean inputs are not finite.")
    rows = (right & clean.finite).nonzero().squeeze(1)
    if not len(rows):
        return
    meter = Meter(
        asked,
        threat,
        geometry,
        x[rows],
        y[rows],
        noise=RowStreams.derive(ids[rows], seed, "victim", attack.spec.name, device=device),
        clean=clean.logits[rows],
        estimators=_estimator,
        targets=target_classes(y[rows], ids[rows], victim.spec.classes) if targeted else None,
        events=None if events is None else lambda: _of_rows(events(), rows),
    )
    rng = RowStreams.derive(ids[rows], seed, "attack", attack.spec.name, device=device)
    returned = _run(attack, meter, rng, result, limits)
    result.forwards[rows], result.backwards[rows] = meter.forwards, meter.backwards
    result.first_hit[rows] = meter.first_hit
    result.counts = {
        "attacked": len(rows),
        "gradients": int(meter.gradients.sum()),
        "zero_gradients": int(meter.zero_gradients.sum()),
        "zero_gradient_samples": int(
            ((meter.gradients > 0) & (2 * meter.zero_gradients >= meter.gradients)).sum()
        ),
        "averaged_gradients": int(meter.averaged.sum()),
        "noisy": len(rows) if victim.spec.stochastic else 0,
        "local": int(meter.local.sum()),
        "non_finite": int(meter.non_finite.sum()),
        "unconfirmed": 0,
        "silent": 0,
        "spikes_without_site": sum(neuron.refusal is not None for neuron in victim.neurons),
    }
    if meter.stops_at_hit:
        result.counts["standing"] = int((~meter.hit).sum())
        result.counts["rising"] = int((~meter.hit & meter.trace.rising(meter.forwards)).sum())
        result.counts["late_hits"] = int(late_hits(meter.first_hit, meter.forwards, meter.hit).sum())
    if rules.confirms_hits and returned is not None:
        result.counts |= known.once(
            ("beside", threat.access is Access.WHITE),
            lambda: rules.beside(
                victim,
                meter.x0,
                meter.y,
                known.once(
                    "again", lambda: decide(victim, meter.x0, meter.y, verify.fork("again", rows=rows)).label
                ),
                threat.access,
                verify.fork("probe", rows=rows),
            ),
        )
    if victim.spec.stochastic:
        result.counts["hit_once"] = int(meter.hit.sum())  # on one draw, or on the mean of a few
    result.errors += meter.failures
    result.counts |= meter.tallies
    for name, cost in meter.stages.items():
        for what in ("forwards", "backwards", "hits", "local"):
            result.counts[f"{what}:{name}"] = getattr(cost, what)
    if returned is None:
        result.status[rows] = ERROR
        return
    judge(victim, meter, returned, rows, verify, result)
    result.extras |= rules.extras(victim, x, y, result.x_adv, verify.fork("extras"))
    if rules.by_score:
        result.extras |= strength_extras(victim, x, y, result.x_adv, verify.fork("strength"))
    if victim.spec.domain is not Domain.STATIC:
        result.extras |= spike_extras(x, result.x_adv, counts=victim.spec.domain is Domain.EVENTS)
        if meter.lists and events is not None and (raw := events()) is not None:
            lists = {int(rows[place]): final for place, final in meter.lists.items()}
            result.extras |= event_extras(raw, lists, result.x_adv)
    if targeted:
        result.extras["target"] = target_classes(y, ids, victim.spec.classes).double()


def _of_rows(events: EventLists | None, rows: Tensor) -> EventLists | None:
    return None if events is None else events.of(rows.tolist())


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `evaluate` returns: counts, and the verdicts sample by sample. It prints as one line.

    Args:
        n, clean, robust, errors: samples, correct on clean inputs, still correct under attack,
            not computable.
        shards: the sample rows.
        flags: signs that the evaluation, not the network, is what looks robust: those of a record, see
            `bench.record.flags.FLAGS` for what each means.
        of: what it was of, for `save`.
    """

    n: int
    clean: int
    robust: int
    errors: int
    shards: tuple[ShardResult, ...]
    flags: tuple[str, ...] = ()
    of: Evaluated | None = field(default=None, repr=False, compare=False)

    def save(self, folder: Path | str, *, dataset: str = "own", defense: str = "none") -> Path:
        """Write the record of this evaluation into a results folder; return where it lies.

        It joins the tables of `robustspike leaderboard`. The network itself is not written: what
        `robustspike evaluate` makes can be answered afresh by `verify`, this cannot.

        Args:
            folder: the results folder; made where it is not there.
            dataset, defense: names in tables; rows on one data set must have the same samples.

        Raises: ContractError: it was not made by `evaluate`.
        """
        if self.of is None:
            raise ContractError(
                "save: this evaluation does not say of what it is. Take what evaluate() gives."
            )
        record = save(self.of, self.shards, Path(folder), dataset=dataset, defense=defense)
        return Path(folder) / "records" / record.key

    @property
    def robust_accuracy(self) -> float:
        """Share of all samples that stay correct under attack; an error counts as not robust."""
        return self.robust / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the robust accuracy."""
        return wilson(self.robust, self.n)

    def __repr__(self) -> str:
        low, high = self.interval
        flags = "; ".join(f"{flag}: {FLAGS[flag].meaning}, {FLAGS[flag].advice}" for flag in self.flags)
        return (
            f"Evaluation(n={self.n}, clean={self.clean}, robust={self.robust}, errors={self.errors}, "
            f"robust accuracy {self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}], flags: {flags or 'none'})"
        )


@overload
def evaluate(
    victim: ModuleVictim | nn.Module,
    attack: Attack | str,
    x: Any,
    y: Any = None,
    *,
    threat: ThreatModel | None = None,
    eps: Fraction | str | float | Tensor | None = None,
    seed: int = 0,
    shard: int = 128,
    keep_errors: bool = False,
) -> Evaluation: ...


@overload
def evaluate(
    victim: ModuleVictim | nn.Module,
    attack: Attack | str,
    x: Any,
    y: Any = None,
    *,
    threat: None = None,
    eps: list[Fraction | str | float] | tuple[Fraction | str | float, ...],
    seed: int = 0,
    shard: int = 128,
    keep_errors: bool = False,
) -> tuple[Evaluation, ...]: ...


def evaluate(
    victim: ModuleVictim | nn.Module,
    attack: Attack | str,
    x: Any,
    y: Any = None,
    *,
    threat: ThreatModel | None = None,
    eps: Any = None,
    seed: int = 0,
    shard: int = 128,
    keep_errors: bool = False,
) -> Evaluation | tuple[Evaluation, ...]:
    """Attack a victim and count: the one-line interface.

    Everything that is given is checked before the first pass.

    Args:
        victim: from `load_victim`, `wrap` or `adapt`; or a network whose conventions need no words, which is
            adapted with time="auto": [N, *shape] in [0, 1] -> logits.
        attack: an attack or its registry name.
        x: inputs [N, *shape] in the victim's bounds, of any floating type, as a tensor or numpy array;
            attacked are float32 values. Or a DataLoader of (inputs, labels), without y.
        y: labels [N] of any integer type, or the scores of a quality model.
        threat: the threat model; by default the attack's first geometry with `eps` and least access.
        eps: budget for the default threat model: "8/255", a fraction, or a number, which counts as it
            prints (0.1 is 1/10). By default 8/255 for linf; of the other geometries none has a usual
            radius: there an attack that can minimises the distance, and any other needs `eps`. A list or
            tuple of budgets gives a tuple of results, in its order.
        seed: root seed.
        shard: samples per batch (part of the protocol: a result may depend on it by rounding).
        keep_errors: where the attack or the victim fails, return ERROR rows with the message. Samples for
            which a victim answers NaN or infinity are such rows, and flagged, in any case.

    Raises:
        ConfigError: an argument that cannot be used; an attack or a loss that is not for this victim.
        EstimatorRefused: the attack's gradient estimator does not apply to the victim.
        ContractError: the victim fails its checks, the data are not what the victim takes, or (unless
            `keep_errors`) the attack failed: then what it raised, or what it did, in words.
    """
    x, y = gathered(x, y)
    if isinstance(victim, nn.Module):
        victim = adapted_to(victim, x, y)
    if isinstance(eps, list | tuple):
        return tuple(
            evaluate(
                victim, attack, x, y, threat=threat, eps=one, seed=seed, shard=shard, keep_errors=keep_errors
            )
            for one in eps
        )
    if not isinstance(victim, ModuleVictim):
        raise ContractError(f"evaluate: expected a victim, got {type(victim).__name__}. Use wrap() first.")
    chosen: Attack = registry("attacks").get(attack) if isinstance(attack, str) else attack
    if isinstance(chosen, type) or not isinstance(chosen, Attack):
        raise ContractError(
            f"evaluate: expected an attack or its name, got {chosen!r}. An attack is an instance with `spec` "
            "and `run`."
        )
    if threat is None:
        threat = _usual_threat(victim.spec, chosen, eps)
    elif eps is not None:
        raise ConfigError("evaluate: give either `threat`, which has a budget, or `eps`, not both.")
    shard, seed = whole(shard, "evaluate: shard", least=1), whole(seed, "evaluate: seed", least=0)
    registry("geometries").get(threat.geometry)
    reason = misfit(chosen, threat, victim.spec)
    if reason is not None:
        raise ConfigError(f"evaluate: {chosen.spec.name} on victim '{victim.spec.name}': {reason}.")
    with torch.inference_mode(False):
        x = checked_inputs(x, victim.spec, threat)
        y = checked_labels(y, len(x), victim.spec)
        check_victim(victim, x)
        reason = refused_gradient(chosen, victim)
        if reason is not None:
            raise EstimatorRefused(f"{chosen.spec.name} on victim '{victim.spec.name}': {reason}.")
        shards = []
        started = time.monotonic()
        for start in range(0, len(x), shard):
            tell(chosen, start, len(x), started)
            part = slice(start, start + shard)
            ids = torch.arange(len(x))[part]
            shards.append(evaluate_shard(victim, chosen, threat, x[part], y[part], ids, seed=seed))
            if shards[-1].cause is not None and not keep_errors:
                raise shards[-1].cause
        tell(chosen, len(x), len(x), started)
    cut = victim.cut(min(shard, len(x)))
    of = Evaluated(
        victim.spec, len(victim.neurons), chosen, threat, x, y, seed, shard, str(victim.device), cut
    )
    return dataclasses.replace(_counted(len(x), shards), of=of)


def _usual_threat(spec: VictimSpec, attack: Attack, eps: object) -> ThreatModel:
    """Return the threat model that an attack is for, with a budget or its geometry's usual one."""
    name = attack.spec.geometries[0]
    size = getattr(registry("geometries").get(name), "usual_eps", None)
    if eps is not None:
        size = exact(eps, "evaluate: eps")
    elif size is None and not attack.spec.minimum_norm:
        raise ConfigError(
            f"evaluate: {attack.spec.name} is for the geometry '{name}', without a usual radius. Give `eps`."
        )
    return ThreatModel(
        domain=spec.domain,
        geometry=name,
        eps=size,
        bounds=spec.bounds,
        access=attack.spec.access,
        goal=attack.spec.goals[0],
        levels=rules_of(spec).levels,
    )


def _counted(n: int, shards: Sequence[ShardResult]) -> Evaluation:
    of = {status: sum(part.count(status) for part in shards) for status in Status}
    measures: Counter[str] = Counter()
    for part in shards:
        measures.update(part.counts)
    robust, errors = of[Status.ROBUST], of[Status.ERROR]
    return Evaluation(
        n=n,
        clean=robust + of[Status.BROKEN],
        robust=robust,
        errors=errors,
        shards=tuple(shards),
        flags=cell_flags(measures, {"errors": errors}),
    )
