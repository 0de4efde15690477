"""From candidates to verdicts: what a victim decides, and which samples that breaks.

The verdict on a sample comes from a pass of its own, after the attack, on what the attack returned or
the oracle remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field

import torch
from torch import Tensor

from robustspike.bench.contracts import Status
from robustspike.bench.contracts import Task
from robustspike.bench.geometry import on_grid
from robustspike.bench.joint import answered_class
from robustspike.bench.joint import over_members
from robustspike.bench.losses import margin
from robustspike.bench.oracle import Meter
from robustspike.bench.rng import RowStreams
from robustspike.bench.rng import stable_hash
from robustspike.bench.victim import ModuleVictim

STATUS = (Status.ROBUST, Status.BROKEN, Status.WRONG_CLEAN, Status.ERROR, Status.UNCERTIFIED)
"""Order of the status codes 0..4 in stored arrays."""

ROBUST, BROKEN, WRONG, ERROR, UNCERTIFIED = range(5)

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
        extras: float64 columns beside the verdict: `quality_extras` for quality models, `spike_extras`
            on binary frames, and the target class of a targeted goal.
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
    """Draw the target class of every sample from all but its label, by a hash of its id.

    It depends on nothing else: all victims, attacks and seeds aim at the same class. Shape: [N], [N] -> [N].
    """
    offset = torch.tensor([stable_hash("target", int(i)) % (classes - 1) + 1 for i in ids], device=y.device)
    return (y + offset) % classes


def judge_classes(
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
    status = torch.where(settled, BROKEN, ROBUST)
    status[~legal | ~finite] = ERROR
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


def judge_scores(
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
    status = torch.where(change > QUALITY_TOLERANCE * (high - low), BROKEN, ROBUST)
    status[~legal | ~finite] = ERROR
    result.status[rows], result.adv_score[rows] = status, score
    result.distance[rows] = meter.geometry.distance(x0, final)
    result.x_adv[rows] = final


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


def _expand(mask: Tensor, x: Tensor) -> Tensor:
    """Give a mask [N] trailing axes of size 1, so that it selects whole inputs of x."""
    return mask.view(-1, *[1] * (x.dim() - 1))


def blank(x: Tensor, y: Tensor, ids: Tensor) -> ShardResult:
    """Return the result of a shard on which nothing has been computed yet."""
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


def to_cpu(result: ShardResult) -> ShardResult:
    """Move a result to the CPU, in place, and return it."""
    for name in ShardResult.TENSORS:
        setattr(result, name, getattr(result, name).cpu())
    result.extras = {name: column.cpu() for name, column in result.extras.items()}
    return result
