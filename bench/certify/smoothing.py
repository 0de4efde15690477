"""Certificates by randomised smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.certify.result import Certified
from robustspike.bench.contract.specs import CertifierSpec
from robustspike.bench.errors import ConfigError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.stats import clopper_pearson_lower
from robustspike.bench.victim.checks import fingerprint_inputs
from robustspike.bench.victim.module import ModuleVictim


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
