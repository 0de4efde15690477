"""Whether an attack was still getting somewhere when it stopped."""

from __future__ import annotations

import torch
from torch import Tensor

LAST = 0.1
"""The end of an attack, as a share of the forwards it spent on a sample."""

RISE = 0.05
"""Share of its whole rise that the best merit may still gain at the end (Pintor et al. 2022, indicator 4)."""

_NOTES = 32
"""Notes that are kept before they are written down together."""

_GRID = tuple(sorted({int(1.05**k) for k in range(285)}))
"""Numbers of forwards at which the best merit so far is kept: every one at first, then 5 % apart."""


class Trace:
    """How the best merit of every sample grew with the forwards spent on it.

    Merit is what the goal is judged by: the margin of a classifier, the score change of a quality model.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.grid = torch.tensor(_GRID, device=device)
        self._best = torch.full((n, len(_GRID)), -torch.inf, dtype=torch.float64, device=device)
        self._notes: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(self, rows: Tensor, spent: Tensor, merit: Tensor) -> None:
        """Remember the merit of queries; a row may stand several times.

        Shape: rows, spent (forwards of the row so far) and merit [q].
        """
        self._notes.append((rows, spent, merit))
        if len(self._notes) >= _NOTES:
            self._write()

    def _write(self) -> None:
        rows, spent, merit = (torch.cat(parts) for parts in zip(*self._notes, strict=True))
        self._notes.clear()
        at = torch.searchsorted(self.grid, spent.clamp(max=_GRID[-1]))
        finite = torch.where(torch.isfinite(merit), merit, -torch.inf)
        self._best.view(-1).scatter_reduce_(0, rows * len(_GRID) + at, finite, "amax")

    @property
    def best(self) -> Tensor:
        """The best merit of every sample at every number of the grid [N, grid]."""
        if self._notes:
            self._write()
        return self._best

    def rising(self, spent: Tensor) -> Tensor:
        """Say whose best merit still grew by more than `RISE` of its whole rise in the last tenth: [N]."""
        used = int(torch.searchsorted(self.grid, spent.max().clamp(max=_GRID[-1]))) + 1
        best = self.best[:, :used].cummax(dim=1).values  # beyond, nothing was written
        before = torch.searchsorted(self.grid, ((1 - LAST) * spent).long().clamp(min=1), right=True) - 1
        then = best.gather(1, before[:, None]).squeeze(1)
        final = best[:, -1]
        start = torch.where(torch.isfinite(best), best, torch.inf).amin(dim=1)
        return (final - then > RISE * (final - start)) & torch.isfinite(final) & (final > start)


def late_hits(first_hit: Tensor, spent: Tensor, hit: Tensor) -> Tensor:
    """Say which samples fell in the last tenth of what the attack spends on one that stands: [N].

    Shape: first_hit, spent (forwards) and hit [N]. No sample standing: nothing was late.
    """
    if bool(hit.all()):
        return torch.zeros_like(hit)
    return hit & (first_hit > (1 - LAST) * spent[~hit].max())
