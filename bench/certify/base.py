"""What no attack can undo. A column or a table of its own, never mixed with empirical results.

Three methods. Smoothing: majority votes of a Bernoulli-coded network, certified in l1 with a confidence.
Intervals (S-IBP): sound bounds on every potential and spike of a small deterministic network, in L-inf.
Median: bounds in l2 on the score of a quality model, smoothed by Gaussian noise, with a confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any
from typing import Literal

import torch
from torch import Tensor

from robustspike.bench.attack.decide import decide
from robustspike.bench.attack.limits import NO_LIMITS
from robustspike.bench.attack.limits import Limits
from robustspike.bench.attack.result import ERROR
from robustspike.bench.attack.result import ROBUST
from robustspike.bench.attack.result import UNCERTIFIED
from robustspike.bench.attack.result import WRONG
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.attack.task import QUALITY_TOLERANCE
from robustspike.bench.attack.task import rules_of
from robustspike.bench.certify.contract import Certifier
from robustspike.bench.certify.intervals import Intervals
from robustspike.bench.certify.result import Certified
from robustspike.bench.certify.scores import CertifiedScores
from robustspike.bench.certify.smoothing import Smoothing
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.victim.module import ModuleVictim


def certify(
    victim: ModuleVictim,
    x: Tensor,
    y: Tensor,
    *,
    method: Literal["smoothing", "intervals"],
    radii: Sequence[Fraction | float] = (),
    seed: int = 0,
    **params: Any,
) -> Certified:
    """Certify a victim's answers on a batch.

    Args:
        victim: for "smoothing", one coded by Bernoulli spikes alone; for "intervals", a deterministic
            directly coded network of convolutions, pools, linear layers, batch normalisation and
            SpikingJelly's LIF and IF nodes.
        x, y: inputs and labels.
        method: see `Smoothing` and `Intervals`.
        radii: L-inf radii that "intervals" tries ("smoothing" finds its own).
        seed: root seed of the votes.
        params: parameters of the method, e.g. votes=200.

    Raises: ContractError: the victim is not of the kind that the method can certify.
    """
    certifier = Smoothing(**params) if method == "smoothing" else Intervals(**params)
    reason = certifier.fits(victim)
    if reason:
        raise ContractError(f"certify: victim '{victim.spec.name}' does not fit '{method}': {reason}.")
    streams = RowStreams.derive(range(len(x)), seed, "certify", device=x.device)
    return certifier.certify(victim, x, y, radii=[float(r) for r in radii], streams=streams)


def radius_needed(threat: ThreatModel, norm: str, size: int) -> float | None:
    """Return the radius, in a certifier's norm, of a ball that holds the threat's.

    Args:
        size: how many numbers an input has.

    Returns: None where there is none: other geometries, domains and goals, and threats without a bound.
    """
    if threat.eps is None or threat.domain is not Domain.STATIC or threat.goal is Goal.TARGETED:
        return None
    factor = {
        ("linf", "linf"): 1.0,
        ("linf", "l1"): float(size),
        ("l2", "linf"): 1.0,
        ("l2", "l1"): math.sqrt(size),
        ("l2", "l2"): 1.0,
        ("rmse", "l2"): math.sqrt(size),
        ("linf", "l2"): math.sqrt(size),
    }.get((threat.geometry, norm))
    return None if factor is None else factor * float(threat.eps)


def cannot_certify(certifier: Certifier, threat: ThreatModel, spec: VictimSpec) -> str | None:
    """Say why a certifier proves nothing on victims of a kind under a threat model, or None where it may.

    Whether it can follow a network itself, `Certifier.fits` says of the loaded victim.
    """
    if spec.task not in certifier.spec.tasks:
        return "it is no classifier" if spec.task is not Task.CLASSIFY else "it answers no score"
    if radius_needed(threat, certifier.spec.norm, 1) is None:
        return f"no bound in {certifier.spec.norm} covers {threat.label} on {threat.domain} inputs"
    return None


def certify_shard(
    victim: ModuleVictim,
    certifier: Certifier,
    threat: ThreatModel,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    *,
    seed: int = 0,
    limits: Limits = NO_LIMITS,
) -> ShardResult:
    """Certify one batch: ROBUST where no input of the threat model changes the answer, else UNCERTIFIED.

    A sample that the harness counts as wrong without attack is never certified. The column "radius" holds
    the certified radius in the certifier's own norm, -1 where there is none.

    A score is ROBUST where nothing of the threat model moves it by more than a tenth of its range. The
    columns "certified_score", "certified_low" and "certified_high" hold the certified model's answer and its
    bounds, NaN where there are none; the passes are counted as forwards.
    """
    x, y, ids = x.to(victim.device), y.to(victim.device), ids.to(victim.device)
    needed = radius_needed(threat, certifier.spec.norm, x[0].numel())
    if needed is None:
        raise ContractError(f"{certifier.spec.name}: does not apply to {threat.label}.")
    answer = decide(victim, x, y, RowStreams.derive(ids, seed, "verify", device=x.device).fork("clean"))
    wrong = ~rules_of(victim.spec).correct(answer.label, y)
    status = torch.where(wrong, WRONG, UNCERTIFIED)
    status[~answer.finite] = ERROR
    extras = _columns(len(x), victim.spec)
    forwards = torch.zeros(len(x), dtype=torch.int64)
    errors = []
    try:
        streams = RowStreams.derive(ids, seed, "certify", certifier.spec.name, device=x.device)
        with limits.kept():
            found = certifier.certify(victim, x, y, radii=[needed], streams=streams)
        if isinstance(found, CertifiedScores):
            held = _bounded(found, threat.goal, victim.spec, extras)
            forwards += found.draws
            safe = held.to(x.device) & (status == UNCERTIFIED)
        else:
            safe = found.holds(needed).to(x.device) & (status == UNCERTIFIED)
            extras["radius"][safe.cpu()] = found.radius.cpu()[safe.cpu()]
        status[safe] = ROBUST
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (a certifier may be foreign code; its failure is its own)
        status[status == UNCERTIFIED] = ERROR
        errors.append(limits.failure(certifier.spec.name, len(x), error))
    zeros = torch.zeros(len(x), dtype=torch.int64)
    return ShardResult(
        ids=ids.cpu(),
        labels=y.cpu(),
        clean=answer.label.cpu(),
        adv=answer.label.cpu().clone(),
        status=status.cpu(),
        distance=zeros.double(),
        forwards=forwards,
        backwards=zeros,
        first_hit=zeros - 1,
        clean_score=answer.score.cpu(),
        adv_score=answer.score.cpu().clone(),
        x_adv=x.cpu(),
        errors=errors,
        counts={"attacked": int((~wrong & answer.finite).sum())},
        extras=extras,
    )


def _columns(n: int, spec: VictimSpec) -> dict[str, Tensor]:
    """Return the columns of a certificate, for n samples of which nothing is certified yet."""
    found = {"radius": torch.full((n,), -1.0, dtype=torch.float64)}
    if spec.task is Task.QUALITY:
        names = ("certified_score", "certified_low", "certified_high")
        found |= {name: torch.full((n,), math.nan, dtype=torch.float64) for name in names}
    return found


def _bounded(found: CertifiedScores, goal: Goal, spec: VictimSpec, extras: dict[str, Tensor]) -> Tensor:
    """Fill in the columns of a certificate on scores, and say which stay within a tenth of their range."""
    low, high = spec.score_range or (0.0, 1.0)
    bounded = torch.isfinite(torch.stack([found.score, found.low, found.high])).all(dim=0).cpu()
    for name, values in (("score", found.score), ("low", found.low), ("high", found.high)):
        extras[f"certified_{name}"][bounded] = values.cpu().double()[bounded]
    extras["radius"][bounded] = found.radius
    return bounded & (found.change(goal).cpu() <= QUALITY_TOLERANCE * (high - low))
