"""From candidates to verdicts: what a victim decides, and which samples that breaks.

The verdict on a sample comes from a pass of its own, after the attack, on what the attack returned or
the oracle remembered.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustspike.bench.attack.decide import Answer
from robustspike.bench.attack.decide import decide
from robustspike.bench.attack.meter import Meter
from robustspike.bench.attack.result import BROKEN
from robustspike.bench.attack.result import ERROR
from robustspike.bench.attack.result import ROBUST
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.attack.task import rules_of
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.errors import ThreatViolation
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.threats.geometry import TOLERANCE
from robustspike.bench.threats.geometry import Geometry
from robustspike.bench.threats.geometry import on_grid
from robustspike.bench.victim.module import ModuleVictim


def judge(
    victim: ModuleVictim,
    meter: Meter,
    returned: Tensor,
    rows: Tensor,
    verify: RowStreams,
    result: ShardResult,
) -> None:
    """Answer both candidates of every sample afresh, rounded as the threat model says; write the verdicts.

    The returned tensor comes first, the oracle's memory second; of two successes the nearer one is kept where
    the threat is minimum-norm.
    """
    rules, y, x0, threat = rules_of(victim.spec), meter.y, meter.x0, meter.threat
    eps, bounds = meter.eps, threat.bounds
    legal = meter.geometry.legal(x0, returned, eps=eps, bounds=bounds)
    if not bool(legal.all()):
        what = violation(meter.geometry, threat, x0, returned, legal, result.ids[rows])
        result.cause = ThreatViolation(f"{what} Call oracle.project before returning.")
        result.errors.append(str(result.cause))
    everyone = torch.arange(len(rows), device=rows.device)
    settled = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    merit = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    final, adv, score = x0.clone(), result.adv[rows], result.adv_score[rows]
    reached_by: list[Tensor] = []
    finite, held = torch.ones_like(settled), torch.ones_like(merit)
    answer: Answer | None = None
    safe = x0
    for name, candidate, usable in (("returned", returned, legal), ("best", meter.best, meter.hit)):
        asked = safe  # what is not usable is not looked at, so that the first candidate may stand there
        safe = torch.where(_expand(usable, x0), candidate, asked)
        if threat.levels:
            safe = on_grid(meter.geometry, x0, safe, eps=eps, bounds=bounds, levels=threat.levels)
        if answer is None or victim.spec.stochastic or not torch.equal(safe, asked):
            answer = decide(victim, safe, y, verify.fork(name, rows=rows))
        votes = torch.stack([meter.judge(part, everyone)[0] for part in answer.draws]).sum(dim=0)
        worth = meter.judge(answer.logits, everyone)[1]
        reached = rules.succeeds(votes, answer.needed, worth) & usable & answer.finite
        held = torch.where(usable, torch.minimum(held, 1 - votes.double() / len(answer.draws)), held)
        finite &= answer.finite | ~usable
        better = reached & ~settled
        if threat.is_minimum_norm:
            worth = -meter.geometry.distance(x0, safe)
            better |= reached & (worth > merit)
        final = torch.where(_expand(better, x0), safe, final)
        adv = torch.where(better, answer.label, adv)
        score = torch.where(better, answer.score, score)
        merit = torch.where(better, worth, merit)
        settled |= reached
        reached_by.append(reached)
    broken = rules.broken(settled, merit, victim.spec)
    unknown = ~finite | (meter.unanswered & ~broken)
    status = torch.where(broken, BROKEN, ROBUST)
    status[~legal | unknown] = ERROR
    if bool(unknown.any()):
        result.errors.append(
            f"victim '{victim.spec.name}': logits on a legal perturbed input are not finite; such a "
            "sample cannot be called robust or broken."
        )
    result.status[rows] = status
    result.adv[rows], result.adv_score[rows] = adv, score
    result.distance[rows] = meter.geometry.distance(x0, final)
    result.x_adv[rows] = final
    if "right_attacked" in result.extras:
        result.extras["right_attacked"][rows] = held
    if rules.confirms_hits:
        result.counts["unconfirmed"] = int((meter.hit & ~reached_by[1]).sum())
        result.counts["silent"] = int((reached_by[1] & ~reached_by[0]).sum())


def violation(
    geometry: Geometry, threat: ThreatModel, x0: Tensor, x: Tensor, legal: Tensor, ids: Tensor
) -> str:
    """Say which of some inputs x leave a threat model around x0, and how the first of them does.

    Args:
        geometry, threat: the threat model.
        x0, x: [N, ...].
        legal: [N] bool, which are legal; not all.
        ids: [N], their samples.
    """
    at = int((~legal).nonzero()[0])
    row, eps = x[at : at + 1], math.inf if threat.eps is None else float(threat.eps)
    distance = float(geometry.distance(x0[at : at + 1], row))
    if not bool(torch.isfinite(row).all()):
        what = "the returned tensor holds NaN or infinity"
    elif distance > eps + TOLERANCE:
        what = f"{threat.geometry} distance {distance:.6g} > eps = {threat.eps} ({eps:.6g})"
    else:
        low, high = float(row.min()), float(row.max())
        what = f"values in [{low:.6g}, {high:.6g}] leave the domain {list(threat.bounds)}"
        if threat.geometry == "l0":
            what += " or are not binary"
    return (
        f"sample {int(ids[at])} leaves the threat model ({int((~legal).sum())} of {len(legal)} do): {what}."
    )


def _expand(mask: Tensor, x: Tensor) -> Tensor:
    """Give a mask [N] trailing axes of size 1, so that it selects whole inputs of x."""
    return mask.view(-1, *[1] * (x.dim() - 1))
