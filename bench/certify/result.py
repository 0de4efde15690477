"""What a certifier says about a batch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from robustspike.bench.numbers.stats import wilson


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
