"""One attack on one batch, judged: the only code that turns a tensor into a verdict.

A shard is a fixed batch of samples. The clean answer, the attack, and the final re-evaluation are
separate passes; the verdict comes from the last one alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.contracts import Access
from robustspike.bench.contracts import Attack
from robustspike.bench.contracts import Goal
from robustspike.bench.contracts import Status
from robustspike.bench.contracts import Task
from robustspike.bench.contracts import ThreatModel
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import ThreatViolation
from robustspike.bench.fullref import haarpsi
from robustspike.bench.fullref import psnr
from robustspike.bench.fullref import ssim
from robustspike.bench.geometry import Geometry
from robustspike.bench.geometry import on_grid
from robustspike.bench.gradients import GradientEstimator
from robustspike.bench.joint import answered_class
from robustspike.bench.joint import over_members
from robustspike.bench.limits import TimedOut
from robustspike.bench.limits import time_limit
from robustspike.bench.losses import LOSSES
from robustspike.bench.losses import margin
from robustspike.bench.oracle import Meter
from robustspike.bench.oracle import Oracle
from robustspike.bench.registry import registry
from robustspike.bench.rng import RowStreams
from robustspike.bench.rng import stable_hash
from robustspike.bench.stats import wilson
from robustspike.bench.victim import ModuleVictim
from robustspike.bench.victim import check_victim

STATUS = (Status.ROBUST, Status.BROKEN, Status.WRONG_CLEAN, Status.ERROR)
"""Order of the status codes 0..3 in stored arrays."""

_ROBUST, _BROKEN, _WRONG, _ERROR = range(4)

QUALITY_TOLERANCE = 0.1
"""A quality model is broken on a sample whose score moves by more than this share of its range."""

VERIFICATION_DRAWS = 20
"""Fresh noise draws on which a sample of a stochastic victim is decided; no attack has seen them."""

VERIFICATION_WRONG = 11
"""A sample of a stochastic victim is wrong, clean or attacked, if this many of the draws are wrong (with a
targeted goal, for the attacked input: answer the target)."""


@dataclass
class ShardResult:
    """The verdicts on one shard: CPU tensors with one entry per sample, in the shard's order.

    Args:
        ids, labels: global sample ids and labels.
        clean, adv: predicted class on the clean input and on the final one; -1 where not computed.
            For quality models: 0, and the scores are in clean_score and adv_score.
        status: code into `STATUS`.
        distance: size of the final perturbation (0 where none), float64.
        forwards, backwards: passes that the attack spent.
        first_hit: forwards spent at the first legal hit, -1 without one.
        clean_score, adv_score: logit margin strongest-other minus true (positive: wrong) of a
            classifier, or the score of a quality model, on the clean and the final input.
        x_adv: the final inputs; the clean ones where not broken.
        errors: messages, at most one per kind.
        counts: measurements for flags: gradients, zero_gradients, unconfirmed, silent, non_finite;
            forwards:NAME, backwards:NAME and hits:NAME for each part that the attack named.
        extras: for quality models, float64 columns of `quality_extras`.
    """

    ids: Tensor
    labels: Tensor
    clean: Tensor
    adv: Tensor
    status: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    first_hit: Tensor
    clean_score: Tensor
    adv_score: Tensor
    x_adv: Tensor
    errors: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)

    TENSORS = (
        "ids",
        "labels",
        "clean",
        "adv",
        "status",
        "distance",
        "forwards",
        "backwards",
        "first_hit",
        "clean_score",
        "adv_score",
        "x_adv",
    )

    def count(self, status: Status) -> int:
        """Count the samples with a status."""
        return int((self.status == STATUS.index(status)).sum())


@dataclass
class Answer:
    """The victim's decision on a batch.

    Args:
        label: the class decided on, or 0 for quality models.
        score: mean margin strongest-other minus true, or the mean score of a quality model.
        finite: whether every logit was finite.
        logits: mean logits over the draws.
        draws: the logits of every draw, [D, N, K]; D = 1 without noise.
    """

    label: Tensor
    score: Tensor
    finite: Tensor
    logits: Tensor
    draws: Tensor

    @property
    def needed(self) -> int:
        """How many draws must agree on a failure."""
        return VERIFICATION_WRONG if len(self.draws) > 1 else 1


def decide(victim: ModuleVictim, x: Tensor, y: Tensor, streams: RowStreams) -> Answer:
    """Let the victim decide on a batch, by one pass, or by votes of fresh draws if stochastic.

    The class decided on is the true one unless at least `VERIFICATION_WRONG` draws are wrong, and then
    the most frequent wrong one.
    """
    noisy, classes = victim.spec.stochastic, victim.spec.classes
    answers = []
    with torch.no_grad():
        for draw in range(VERIFICATION_DRAWS if noisy else 1):
            noise = streams.fork("draw", draw) if noisy else None
            answers.append(victim.logits(x, noise=noise).double())
    draws = torch.stack(answers)
    logits = draws.mean(dim=0)
    finite = torch.isfinite(logits).all(dim=1)
    answer = Answer(torch.zeros_like(y, dtype=torch.int64), logits.squeeze(1), finite, logits, draws)
    if victim.spec.task is Task.CLASSIFY:
        answer.score = over_members(margin, logits, y, classes).amin(dim=1)
        labels = torch.stack([answered_class(part, y, classes) for part in draws])
        votes = torch.nn.functional.one_hot(labels, classes).sum(dim=0).scatter(1, y[:, None], -1)
        wrong = (labels != y).sum(dim=0) >= answer.needed
        answer.label = torch.where(wrong, votes.argmax(dim=1), y)
    return answer


def target_classes(y: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Choose a target class other than the label for every sample, by the hash of its id."""
    offset = torch.tensor([stable_hash("target", int(i)) % (classes - 1) + 1 for i in ids], device=y.device)
    return (y + offset) % classes


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
    timeout: float | None = None,
) -> ShardResult:
    """Attack one batch and judge every sample.

    Args:
        victim: the victim; x, y and ids are moved to its device.
        attack: the attack.
        threat: the threat model; its access should be the least that the attack needs.
        x, y, ids: inputs [N, *shape], labels [N], global ids [N].
        seed: root seed; every sample's random numbers derive from (seed, attack, sample).
        timeout: seconds that the attack may take on this batch; by default as many as it likes.

    Returns: verdicts; failures of the attack are ERROR rows with a message, never exceptions.
    """
    device = victim.device
    x, y, ids = x.to(device), y.to(device), ids.to(device)
    n = len(x)
    geometry: Geometry = registry("geometries").get(threat.geometry)
    result = _blank(x, y, ids)
    verify = RowStreams.derive(ids, seed, "verify", device=device)
    clean = decide(victim, x, y, verify.fork("clean"))
    result.clean, result.clean_score = clean.label, clean.score
    result.adv, result.adv_score = clean.label.clone(), clean.score.clone()
    targeted = threat.goal is Goal.TARGETED
    right = clean.label == y if victim.spec.task is Task.CLASSIFY else torch.ones_like(clean.finite)
    result.status[~right] = _WRONG
    result.status[~clean.finite] = _ERROR
    if not bool(clean.finite.all()):
        result.errors.append(f"victim '{victim.spec.name}': logits on clean inputs are not finite.")
    rows = (right & clean.finite).nonzero().squeeze(1)
    if not len(rows):
        return _to_cpu(result)
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
    )
    rng = RowStreams.derive(ids[rows], seed, "attack", attack.spec.name, device=device)
    returned = _run(attack, meter, rng, result, timeout)
    result.forwards[rows], result.backwards[rows] = meter.forwards, meter.backwards
    result.first_hit[rows] = meter.first_hit
    result.counts = {
        "attacked": len(rows),
        "gradients": int(meter.gradients.sum()),
        "zero_gradients": int(meter.zero_gradients.sum()),
        "zero_gradient_samples": int(((meter.gradients > 0) & (meter.zero_gradients > 0)).sum()),
        "non_finite": int(meter.non_finite.sum()),
        "unconfirmed": 0,
        "silent": 0,
    }
    if threat.access is Access.WHITE and victim.spec.task is Task.CLASSIFY and returned is not None:
        result.counts |= probe_gradient(victim, meter.x0, meter.y, verify.fork("probe", rows=rows))
    for name, cost in meter.stages.items():
        for what in ("forwards", "backwards", "hits"):
            result.counts[f"{what}:{name}"] = getattr(cost, what)
    if returned is None:
        result.status[rows] = _ERROR
        return _to_cpu(result)
    judge = _verify_quality if victim.spec.task is Task.QUALITY else _verify
    judge(victim, meter, returned, rows, verify, result)
    if victim.spec.task is Task.QUALITY:
        result.extras = quality_extras(victim, x, y, result.x_adv, verify.fork("extras"))
    assert n == len(result.status)
    return _to_cpu(result)


def _verify(
    victim: ModuleVictim,
    meter: Meter,
    returned: Tensor,
    rows: Tensor,
    verify: RowStreams,
    result: ShardResult,
) -> None:
    """Re-evaluate both candidates of every sample afresh and write the verdicts."""
    y, x0, threat = meter.y, meter.x0, meter.threat
    legal = meter.geometry.legal(x0, returned, eps=meter.eps, bounds=threat.bounds)
    if not bool(legal.all()):
        result.errors.append(_violation(meter, returned, legal, result.ids[rows]))
    settled = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    merit = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    final, adv, score = x0.clone(), result.adv[rows], result.adv_score[rows]
    reached_by: list[Tensor] = []
    finite = torch.ones_like(settled)
    for name, candidate, usable in (("returned", returned, legal), ("best", meter.best, meter.hit)):
        safe = torch.where(_expand(usable, x0), candidate, x0)
        answer = decide(victim, safe, y, verify.fork(name, rows=rows))
        everyone = torch.arange(len(rows), device=rows.device)
        votes = sum(meter.judge(part, everyone)[0].to(torch.int64) for part in answer.draws)
        reached, worth = votes >= answer.needed, meter.judge(answer.logits, everyone)[1]
        reached &= usable & answer.finite
        finite &= answer.finite | ~usable
        if threat.is_minimum_norm:
            worth = -meter.geometry.distance(x0, safe)
        better = reached & (~settled | (worth > merit))
        if victim.spec.task is Task.CLASSIFY and not threat.is_minimum_norm:
            better = reached & ~settled  # the returned tensor first, the oracle's memory second
        final = torch.where(_expand(better, x0), safe, final)
        adv = torch.where(better, answer.label, adv)
        score = torch.where(better, answer.score, score)
        merit = torch.where(better, worth, merit)
        settled |= reached
        reached_by.append(reached)
    status = torch.where(settled, _BROKEN, _ROBUST)
    status[~legal | ~finite] = _ERROR
    if not bool(finite.all()):
        result.errors.append(
            f"victim '{victim.spec.name}': logits on a legal perturbed input are not finite; such a "
            "sample cannot be called robust or broken."
        )
    result.status[rows] = status
    result.adv[rows], result.adv_score[rows] = adv, score
    result.distance[rows] = meter.geometry.distance(x0, final)
    result.x_adv[rows] = final
    result.counts["unconfirmed"] = int((meter.hit & ~reached_by[1]).sum())
    result.counts["silent"] = int((reached_by[1] & ~reached_by[0]).sum())


def _verify_quality(
    victim: ModuleVictim,
    meter: Meter,
    returned: Tensor,
    rows: Tensor,
    verify: RowStreams,
    result: ShardResult,
) -> None:
    """Score both candidates of every sample afresh, rounded as the threat model says.

    The returned tensor counts if it moves the score the right way (an attack may trade score for
    visibility), else the largest change the oracle saw, else the clean input: nobody submits a loss.
    """
    x0, threat = meter.x0, meter.threat
    low, high = victim.spec.score_range or (0.0, 1.0)
    eps, bounds = meter.eps, threat.bounds
    legal = meter.geometry.legal(x0, returned, eps=eps, bounds=bounds)
    if not bool(legal.all()):
        result.errors.append(_violation(meter, returned, legal, result.ids[rows]))
    settled = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    finite = torch.ones_like(settled)
    final, score = x0.clone(), result.adv_score[rows]
    change = torch.zeros_like(score)
    for name, candidate, usable in (("returned", returned, legal), ("best", meter.best, meter.hit)):
        safe = torch.where(_expand(usable, x0), candidate, x0)
        if threat.levels:
            safe = on_grid(meter.geometry, x0, safe, eps=eps, bounds=bounds, levels=threat.levels)
        answer = decide(victim, safe, meter.y, verify.fork(name, rows=rows))
        finite &= answer.finite | ~usable
        worth = meter.judge(answer.logits, torch.arange(len(rows), device=rows.device))[1]
        better = usable & answer.finite & ~settled & (worth > 0)
        final = torch.where(_expand(better, x0), safe, final)
        score = torch.where(better, answer.score, score)
        change = torch.where(better, worth, change)
        settled |= better
    if not bool(finite.all()):
        result.errors.append(f"victim '{victim.spec.name}': the score of a legal input is not finite.")
    status = torch.where(change > QUALITY_TOLERANCE * (high - low), _BROKEN, _ROBUST)
    status[~legal | ~finite] = _ERROR
    result.status[rows], result.adv_score[rows] = status, score
    result.distance[rows] = meter.geometry.distance(x0, final)
    result.x_adv[rows] = final


SLOPE_STEP = 1 / 255
"""Length of the finite difference beside the gradient norm: the smallest step an 8-bit attack can take."""


def quality_extras(
    victim: ModuleVictim, x: Tensor, y: Tensor, x_adv: Tensor, streams: RowStreams
) -> dict[str, Tensor]:
    """Measure how visible the attack is, and how steep the score is at the clean input: [N] each.

    Returns: gradient_l1, the l1 norm of the score's own input gradient (for a spiking victim a surrogate
        quantity); slope, |score(x + h sign(gradient)) - score(x)| / h at h = 1/255; for images of one or
        three channels and at least 16x16, ssim, psnr and haarpsi of the final against the clean input.
    """
    found: dict[str, Tensor] = {}
    try:
        noise = streams.fork("slope")
        out = victim.loss_and_grad(x, y, LOSSES["score"], GradientEstimator(), noise=noise)
        moved = (x + SLOPE_STEP * out.grad.sign()).clamp(*victim.spec.bounds)
        with torch.no_grad():
            there = victim.logits(moved, noise=streams.fork("slope")).squeeze(1)
        found["gradient_l1"] = out.grad.flatten(1).double().abs().sum(dim=1)
        found["slope"] = (there.double() - out.loss.double()).abs() / SLOPE_STEP
    except ContractError:
        pass  # a victim without a gradient has no slope; black-box attacks may still be run on it
    if x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= 16:
        for name, metric in (("ssim", ssim), ("psnr", psnr), ("haarpsi", haarpsi)):
            found[name] = metric(x.double(), x_adv.double())
    return found


PROBED, PROBE_RADIUS = 16, 1e-3
"""Samples of a shard whose gradient is probed, and how far away (share of the domain)."""


def probe_gradient(victim: ModuleVictim, x: Tensor, y: Tensor, streams: RowStreams) -> dict[str, int]:
    """Measure whether the gradient still points the same way a thousandth of the domain away.

    Cost: 2 forwards + 2 backwards on at most `PROBED` samples, not charged to the attack.
    Returns: probed (samples whose two gradients are not zero), and cosine_milli, the sum of the cosines
        between the two gradients in thousandths.
    """
    low, high = victim.spec.bounds
    x, y = x[:PROBED], y[:PROBED]
    rows = torch.arange(len(x), device=x.device)
    step = (streams.uniform(x.shape[1:], rows=rows, dtype=x.dtype) * 2 - 1) * PROBE_RADIUS * (high - low)
    try:
        here, there = (
            victim.loss_and_grad(
                point, y, LOSSES["margin"], GradientEstimator(), noise=streams.fork("noise", rows=rows)
            ).grad.flatten(1)
            for point in (x, (x + step).clamp(low, high))
        )
    except ContractError:
        return {"probed": 0, "cosine_milli": 0}  # no gradient of its own; an estimator may still give one
    alive = (here != 0).any(dim=1) & (there != 0).any(dim=1)
    agreement = torch.nn.functional.cosine_similarity(here, there, dim=1)
    return {"probed": int(alive.sum()), "cosine_milli": int((agreement[alive] * 1000).round().sum())}


def _run(
    attack: Attack, meter: Meter, rng: RowStreams, result: ShardResult, timeout: float | None
) -> Tensor | None:
    """Run the attack and return what it returned if that is a tensor to judge at all.

    An attack is foreign code: whatever it raises, SystemExit too, is its error; only Ctrl-C gets through.
    """
    x0, y = meter.x0.clone(), meter.y.clone()
    state = _module_state(meter.victim)
    name = attack.spec.name
    try:
        with _global_randomness_unused(name), time_limit(timeout):
            returned = attack.run(Oracle(meter), x0, y, rng=rng)
        if not torch.equal(x0, meter.x0) or not torch.equal(y, meter.y):
            raise ContractError(f"{name}: modified x0 or y in place. Work on a clone.")
        if _module_state(meter.victim) != state:
            raise ContractError(f"{name}: changed the victim's parameters, buffers or training mode.")
        return _checked(name, returned, meter.x0)
    except KeyboardInterrupt:
        raise
    except TimedOut:
        result.errors.append(
            f"{name}: stopped after {timeout:g} s on {len(x0)} samples. Give it more time (--timeout) or "
            "less to do, remove the record, and run again."
        )
    except BaseException as error:  # noqa: BLE001  (see above)
        result.errors.append(_message(name, error))
    return None


def _message(name: str, error: BaseException) -> str:
    text = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
    return text if text.startswith(name) else f"{name}: {text}"


def _checked(name: str, returned: object, x0: Tensor) -> Tensor:
    if not isinstance(returned, Tensor):
        raise ThreatViolation(f"{name}: run() must return a tensor, got {type(returned).__name__}.")
    if returned.shape != x0.shape or returned.dtype != x0.dtype or returned.device != x0.device:
        raise ThreatViolation(
            f"{name}: run() must return {list(x0.shape)} {x0.dtype} on {x0.device}, got "
            f"{list(returned.shape)} {returned.dtype} on {returned.device}."
        )
    return returned.detach().clone()


def _violation(meter: Meter, returned: Tensor, legal: Tensor, ids: Tensor) -> str:
    at = int((~legal).nonzero()[0])
    threat, row = meter.threat, returned[at : at + 1]
    distance = float(meter.geometry.distance(meter.x0[at : at + 1], row))
    if not bool(torch.isfinite(row).all()):
        what = "the returned tensor holds NaN or infinity"
    elif distance > meter.eps:
        what = f"{threat.geometry} distance {distance:.6g} > eps = {threat.eps} ({meter.eps:.6g})"
    else:
        low, high = float(row.min()), float(row.max())
        what = f"values in [{low:.6g}, {high:.6g}] leave the domain {list(threat.bounds)}"
        if threat.geometry == "l0":
            what += " or are not binary"
    return (
        f"sample {int(ids[at])} leaves the threat model ({int((~legal).sum())} of {len(legal)} do): "
        f"{what}. Call oracle.project before returning."
    )


@contextmanager
def _global_randomness_unused(name: str) -> Iterator[None]:
    """Raise if the block moves a global random generator; put it back in any case."""
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
    moved = False
    try:
        yield
    finally:
        now = np.random.get_state()  # noqa: NPY002
        moved = not (
            torch.equal(torch.get_rng_state(), before[0])
            and all(np.array_equal(a, b) for a, b in zip(now, before[1], strict=True))
            and random.getstate() == before[2]
        )
        if moved:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            random.setstate(before[2])
    if moved:
        raise ContractError(f"{name}: drew from a global random generator. Draw from `rng` only.")


def _module_state(victim: ModuleVictim) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    tensors = (*victim.module.parameters(), *victim.module.buffers())
    return tuple(t._version for t in tensors), tuple(m.training for m in victim.module.modules())


def _expand(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (x.dim() - 1))


def _blank(x: Tensor, y: Tensor, ids: Tensor) -> ShardResult:
    zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return ShardResult(
        ids=ids,
        labels=y,
        clean=zeros - 1,
        adv=zeros - 1,
        status=zeros.clone(),
        distance=zeros.double(),
        forwards=zeros.clone(),
        backwards=zeros.clone(),
        first_hit=zeros - 1,
        clean_score=zeros.double(),
        adv_score=zeros.double(),
        x_adv=x.clone(),
    )


def _to_cpu(result: ShardResult) -> ShardResult:
    for name in ShardResult.TENSORS:
        setattr(result, name, getattr(result, name).cpu())
    result.extras = {name: column.cpu() for name, column in result.extras.items()}
    return result


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
