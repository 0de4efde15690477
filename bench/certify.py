"""Certified accuracy: what no attack can undo. A column of its own, never mixed with empirical results.

Two methods. Smoothing: majority votes of a Bernoulli-coded network, certified in l1 with a confidence.
Intervals (S-IBP): sound bounds on every potential and spike of a small deterministic network, in L-inf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contracts import Certifier
from robustspike.bench.contracts import CertifierSpec
from robustspike.bench.contracts import Domain
from robustspike.bench.contracts import Goal
from robustspike.bench.contracts import Task
from robustspike.bench.contracts import ThreatModel
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.interval_bounds import SLACK
from robustspike.bench.interval_bounds import lower_margins
from robustspike.bench.limits import NO_LIMITS
from robustspike.bench.limits import Limits
from robustspike.bench.rng import RowStreams
from robustspike.bench.stats import clopper_pearson_lower
from robustspike.bench.stats import wilson
from robustspike.bench.verdicts import ERROR
from robustspike.bench.verdicts import ROBUST
from robustspike.bench.verdicts import UNCERTIFIED
from robustspike.bench.verdicts import WRONG
from robustspike.bench.verdicts import ShardResult
from robustspike.bench.verdicts import decide
from robustspike.bench.victim import ModuleVictim
from robustspike.bench.victim import fingerprint_inputs

SAME = 1e-3
"""Largest typical gap between a network's margins and their bounds at radius 0 that rounding explains."""


@dataclass(frozen=True)
class Certified:
    """Counts of a certification.

    Args:
        method, norm: "smoothing" in "l1", or "intervals" in "linf".
        n: samples.
        correct: samples that the certified classifier answers correctly (smoothing: the vote's winner).
        abstained: samples on which smoothing is not sure of any class.
        radius: largest certified radius of every sample [N], -1 where wrong or not certified at all.
        confidence: probability that a smoothing certificate holds, sample by sample; 1 for intervals.
    """

    method: str
    norm: str
    n: int
    correct: int
    abstained: int
    radius: Tensor
    confidence: float

    def holds(self, radius: float | Fraction) -> Tensor:
        """Say which samples are certified correct at a radius (strictly inside for smoothing): [N] bool."""
        size = float(radius)
        return self.radius > size if self.method == "smoothing" else self.radius >= size

    def count(self, radius: float | Fraction) -> int:
        """Count the samples certified correct at a radius."""
        return int(self.holds(radius).sum())

    def interval(self, radius: float | Fraction) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the certified accuracy at a radius."""
        return wilson(self.count(radius), self.n)


@dataclass(frozen=True)
class Smoothing:
    """Certify the majority vote over Bernoulli encodings.

    The encodings of x and x' differ in total variation by at most T ||x - x'||_1, so no vote share moves
    by more; with a lower confidence bound p on the winner's share, the vote is safe for
    ||x - x'||_1 < (p - 1/2) / T.

    Args:
        votes, first_votes: passes that certify, and passes that choose the class.
        error: probability that a certificate is wrong, per sample.
    """

    votes: int = 100
    first_votes: int = 10
    error: float = 0.001
    spec: ClassVar[CertifierSpec] = CertifierSpec(
        name="smoothing",
        norm="l1",
        source=(
            "Mukhoty et al., ICLR 2024. Differs: the radius has the factor 1/T that the released code drops, "
            "and error is 0.001 (its default 1.0 makes the bound vacuous)."
        ),
        cost="votes + first_votes forwards per sample",
    )

    def __post_init__(self) -> None:
        if not 0 < self.error < 1 or self.votes < 1 or self.first_votes < 1:
            raise ConfigError(
                f"smoothing: error must be inside (0, 1) and votes and first_votes at least 1, got "
                f"{self.error}, {self.votes}, {self.first_votes}."
            )

    @property
    def confidence(self) -> float:
        """Probability that the certificate of a sample holds."""
        return 1 - self.error

    def fits(self, victim: ModuleVictim) -> str | None:
        codings = [m for m in victim.module.modules() if hasattr(m, "votes_shift_per_l1")]
        noisy = sum(bool(getattr(m, "draws_noise", False)) for m in victim.module.modules())
        if len(codings) != 1 or noisy != 1:
            return (
                "it must draw noise in one Bernoulli input coding and nowhere else "
                f"({noisy} modules draw noise, {len(codings)} are such codings): see rate_smoothing"
            )
        if not _sees_through(victim, codings[0]):
            return "its answers do not follow from the Bernoulli coding of its raw input alone"
        return None

    def certify(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, *, radii: Sequence[float], streams: RowStreams
    ) -> Certified:
        del radii  # it finds the largest one
        shift = next(filter(None, (getattr(m, "votes_shift_per_l1", 0) for m in victim.module.modules())))
        first = _votes(victim, x, self.first_votes, streams.fork("first"))
        winner = first.argmax(dim=1)
        share = _votes(victim, x, self.votes, streams.fork("certify")).gather(1, winner[:, None]).squeeze(1)
        lower = torch.tensor(
            [clopper_pearson_lower(int(k), self.votes, error=self.error) for k in share], dtype=torch.float64
        )
        sure, right = lower > 0.5, (winner == y).cpu()
        radius = torch.where(sure & right, (lower - 0.5) / shift, torch.full_like(lower, -1.0))
        return Certified(
            "smoothing", "l1", len(x), int(right.sum()), int((~sure).sum()), radius, self.confidence
        )


@torch.no_grad()
def _sees_through(victim: ModuleVictim, coding: nn.Module) -> bool:
    """Say whether a network sees its raw input through a coding and in no other way.

    The coding must be handed the input itself, and with its output held fixed no other input may matter.
    """
    x = fingerprint_inputs(victim.spec).to(victim.device)
    streams = RowStreams.derive(range(len(x)), "sees through", device=x.device)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append((args[0], out))

    handle = coding.register_forward_hook(keep)
    try:
        answers = victim.logits(x, noise=streams)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0][0].shape[-x.dim() :] != x.shape:
        return False
    given, coded = seen[0]
    handle = coding.register_forward_hook(lambda *_: coded)
    try:
        held = victim.logits(x.flip(0), noise=streams)
    finally:
        handle.remove()
    return torch.equal(given, x.expand_as(given)) and torch.equal(held, answers)


@torch.no_grad()
def _votes(victim: ModuleVictim, x: Tensor, n: int, streams: RowStreams) -> Tensor:
    counts = torch.zeros(len(x), victim.spec.classes, dtype=torch.int64, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    for vote in range(n):
        winner = victim.logits(x, noise=streams.fork("vote", vote)).argmax(dim=1)
        counts[rows, winner] += 1
    return counts


@dataclass(frozen=True)
class Intervals:
    """Certify by interval bounds on every potential and spike (S-IBP) of a directly coded network."""

    spec: ClassVar[CertifierSpec] = CertifierSpec(
        name="intervals",
        norm="linf",
        source=(
            "Liang et al., NeurIPS 2022, arXiv:2205.01625, S-IBP. Differs: any SpikingJelly leak, input gain "
            "and reset; potentials are widened by 1e-5 against rounding. S-CROWN is not implemented."
        ),
        cost="1 forward, and 2 of twice the size in float64 per radius",
    )
    confidence: ClassVar[float] = 1.0

    def fits(self, victim: ModuleVictim) -> str | None:
        x = fingerprint_inputs(victim.spec).to(victim.device)
        y = torch.zeros(len(x), dtype=torch.int64, device=victim.device)
        try:
            margins = lower_margins(victim, x, y, eps=0.0)[:, 1:]
        except ContractError as error:
            return str(error)
        with torch.no_grad():
            logits = victim.logits(x).double()
        gap = (
            (margins - (logits[:, :1] - logits[:, 1:])).abs().amax(dim=1).median()
        )  # spikes may hang on SLACK
        return None if float(gap) < SAME else "its answers are not those of its layers alone"

    @torch.no_grad()
    def certify(
        self, victim: ModuleVictim, x: Tensor, y: Tensor, *, radii: Sequence[float], streams: RowStreams
    ) -> Certified:
        del streams
        right = victim.logits(x).argmax(dim=1) == y
        best = torch.full((len(x),), -1.0, dtype=torch.float64)
        best[right.cpu()] = 0.0
        for eps in sorted(radii):
            safe = (lower_margins(victim, x, y, eps=eps) > SLACK).all(dim=1) & right
            best[safe.cpu()] = eps
        return Certified("intervals", "linf", len(x), int(right.sum()), 0, best, self.confidence)


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
    certifier: Certifier = Smoothing(**params) if method == "smoothing" else Intervals(**params)
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
    if threat.eps is None or threat.domain is not Domain.STATIC or threat.goal is not Goal.UNTARGETED:
        return None
    factor = {
        ("linf", "linf"): 1.0,
        ("linf", "l1"): float(size),
        ("l2", "linf"): 1.0,
        ("l2", "l1"): math.sqrt(size),
    }.get((threat.geometry, norm))
    return None if factor is None else factor * float(threat.eps)


def cannot_certify(certifier: Certifier, threat: ThreatModel, victim: ModuleVictim) -> str | None:
    """Say why a certifier does not apply to a victim under a threat model, or None where it does."""
    if victim.spec.task is not Task.CLASSIFY:
        return "it is no classifier"
    if radius_needed(threat, certifier.spec.norm, 1) is None:
        return f"no bound in {certifier.spec.norm} covers {threat.label} on {threat.domain} inputs"
    return certifier.fits(victim)


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
    """
    x, y, ids = x.to(victim.device), y.to(victim.device), ids.to(victim.device)
    needed = radius_needed(threat, certifier.spec.norm, x[0].numel())
    if needed is None:
        raise ContractError(f"{certifier.spec.name}: does not apply to {threat.label}.")
    answer = decide(victim, x, y, RowStreams.derive(ids, seed, "verify", device=x.device).fork("clean"))
    wrong = answer.label != y
    status = torch.where(wrong, WRONG, UNCERTIFIED)
    status[~answer.finite] = ERROR
    radius = torch.full((len(x),), -1.0, dtype=torch.float64)
    errors = []
    try:
        streams = RowStreams.derive(ids, seed, "certify", certifier.spec.name, device=x.device)
        with limits.kept():
            found = certifier.certify(victim, x, y, radii=[needed], streams=streams)
        safe = found.holds(needed).to(x.device) & (status == UNCERTIFIED)
        status[safe] = ROBUST
        radius[safe.cpu()] = found.radius.cpu()[safe.cpu()]
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
        forwards=zeros,
        backwards=zeros.clone(),
        first_hit=zeros - 1,
        clean_score=answer.score.cpu(),
        adv_score=answer.score.cpu().clone(),
        x_adv=x.cpu(),
        errors=errors,
        counts={"attacked": int((~wrong & answer.finite).sum())},
        extras={"radius": radius},
    )
