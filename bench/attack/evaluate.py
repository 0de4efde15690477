"""One attack on one batch, run and judged.

A shard is a fixed batch of samples. The clean answer, the attack, and the final re-evaluation are
separate passes; the verdict comes from the last one alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.decide import decide
from robustspike.bench.attack.decide import target_classes
from robustspike.bench.attack.guard import _run
from robustspike.bench.attack.judge import judge_classes
from robustspike.bench.attack.judge import judge_scores
from robustspike.bench.attack.limits import NO_LIMITS
from robustspike.bench.attack.limits import Limits
from robustspike.bench.attack.meter import Meter
from robustspike.bench.attack.probes import event_extras
from robustspike.bench.attack.probes import probe_gradient
from robustspike.bench.attack.probes import quality_extras
from robustspike.bench.attack.probes import spike_extras
from robustspike.bench.attack.result import ERROR
from robustspike.bench.attack.result import WRONG
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.attack.result import blank
from robustspike.bench.attack.result import to_cpu
from robustspike.bench.attack.trace import late_hits
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.stats import wilson
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

    Returns: verdicts; failures of the attack are ERROR rows with a message, never exceptions.
    """
    device = victim.device
    x, y, ids = x.to(device), y.to(device), ids.to(device)
    n = len(x)
    geometry: Geometry = registry("geometries").get(threat.geometry)
    result = blank(x, y, ids)
    verify = RowStreams.derive(ids, seed, "verify", device=device)
    clean = decide(victim, x, y, verify.fork("clean"))
    result.clean, result.clean_score = clean.label, clean.score
    result.adv, result.adv_score = clean.label.clone(), clean.score.clone()
    targeted = threat.goal is Goal.TARGETED
    right = clean.label == y if victim.spec.task is Task.CLASSIFY else torch.ones_like(clean.finite)
    result.status[~right] = WRONG
    result.status[~clean.finite] = ERROR
    if not bool(clean.finite.all()):
        result.errors.append(f"victim '{victim.spec.name}': logits on clean inputs are not finite.")
    rows = (right & clean.finite).nonzero().squeeze(1)
    if not len(rows):
        return to_cpu(result)
    meter = Meter(
        victim,
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
    }
    if meter.stops_at_hit:
        result.counts["standing"] = int((~meter.hit).sum())
        result.counts["rising"] = int((~meter.hit & meter.trace.rising(meter.forwards)).sum())
        result.counts["late_hits"] = int(late_hits(meter.first_hit, meter.forwards, meter.hit).sum())
    if victim.spec.task is Task.CLASSIFY and returned is not None:
        again = decide(victim, meter.x0, meter.y, verify.fork("again", rows=rows))
        result.counts["unstable"] = int((again.label != meter.y).sum())
        if threat.access is Access.WHITE:
            result.counts |= probe_gradient(victim, meter.x0, meter.y, verify.fork("probe", rows=rows))
    if victim.spec.stochastic:
        result.counts["hit_once"] = int(meter.hit.sum())  # on one draw, or on the mean of a few
    result.errors += meter.failures
    result.counts |= meter.tallies
    for name, cost in meter.stages.items():
        for what in ("forwards", "backwards", "hits", "local"):
            result.counts[f"{what}:{name}"] = getattr(cost, what)
    if returned is None:
        result.status[rows] = ERROR
        return to_cpu(result)
    judge = judge_scores if victim.spec.task is Task.QUALITY else judge_classes
    judge(victim, meter, returned, rows, verify, result)
    if victim.spec.task is Task.QUALITY:
        result.extras = quality_extras(victim, x, y, result.x_adv, verify.fork("extras"))
    elif victim.spec.domain is Domain.SPIKES:
        result.extras = spike_extras(x, result.x_adv)
        if meter.lists and events is not None and (raw := events()) is not None:
            lists = {int(rows[place]): final for place, final in meter.lists.items()}
            result.extras |= event_extras(raw, lists, result.x_adv)
    if targeted:
        result.extras["target"] = target_classes(y, ids, victim.spec.classes).double()
    assert n == len(result.status)
    return to_cpu(result)


def _of_rows(events: EventLists | None, rows: Tensor) -> EventLists | None:
    return None if events is None else events.of(rows.tolist())


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns: counts, and the verdicts sample by sample.

    Args:
        n, clean, robust, errors: samples, correct on clean inputs, still correct under attack,
            not computable.
        shards: the sample rows.
    """

    n: int
    clean: int
    robust: int
    errors: int
    shards: tuple[ShardResult, ...]

    @property
    def robust_accuracy(self) -> float:
        """Share of all samples that stay correct under attack; an error counts as not robust."""
        return self.robust / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the robust accuracy."""
        return wilson(self.robust, self.n)


def evaluate(
    victim: ModuleVictim,
    attack: Attack | str,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel | None = None,
    eps: Fraction | str | None = None,
    seed: int = 0,
    shard: int = 128,
) -> Evaluation:
    """Attack a victim and count: the one-line interface.

    Args:
        victim: from `load_victim` or `wrap`.
        attack: an attack or its registry name.
        x, y: inputs [N, *shape] and labels [N].
        threat: the threat model; by default the attack's first geometry with `eps` and least access.
        eps: budget for the default threat model, e.g. "8/255".
        seed: root seed.
        shard: samples per batch (part of the protocol: a result may depend on it by rounding).

    Raises: ContractError: the victim fails its checks.
    """
    chosen: Attack = registry("attacks").get(attack) if isinstance(attack, str) else attack
    if threat is None:
        threat = ThreatModel(
            domain=victim.spec.domain,
            geometry=chosen.spec.geometries[0],
            eps=Fraction(8, 255) if eps is None else Fraction(eps),
            bounds=victim.spec.bounds,
            access=chosen.spec.access,
            goal=chosen.spec.goals[0],
            levels=255 if victim.spec.task is Task.QUALITY else 0,
        )
    if not len(x):
        raise ContractError("evaluate: the data set is empty. Give at least one sample.")
    check_victim(victim, x)
    ids = torch.arange(len(x))
    shards = tuple(
        evaluate_shard(
            victim, chosen, threat, x[i : i + shard], y[i : i + shard], ids[i : i + shard], seed=seed
        )
        for i in range(0, len(x), shard)
    )
    robust = sum(s.count(Status.ROBUST) for s in shards)
    broken = sum(s.count(Status.BROKEN) for s in shards)
    errors = sum(s.count(Status.ERROR) for s in shards)
    return Evaluation(n=len(x), clean=robust + broken, robust=robust, errors=errors, shards=shards)
