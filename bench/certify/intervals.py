"""Certificates by interval bound propagation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.certify.interval_bounds import SLACK
from robustspike.bench.certify.interval_bounds import lower_margins
from robustspike.bench.certify.result import Certified
from robustspike.bench.contract.specs import CertifierSpec
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.victim.checks import fingerprint_inputs
from robustspike.bench.victim.module import ModuleVictim

SAME = 1e-3
"""Largest typical gap between a network's margins and their bounds at radius 0 that rounding explains."""


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
