"""Metrics of spike attacks: how few spikes must flip, or move, to fool a victim. Pure functions on arrays.

The rows of a record give `status` (codes of `STATUS`: 0 robust, 1 broken, 2 wrong on the clean input,
3 error) and `distance` (cells flipped for "l0"; spikes moved or time steps for retiming). Attacked
samples are those with code 0 or 1; errors are counted apart and are in no rate.

A minimum-norm record gives the whole curve: ASR(b) is the share of attacked samples that were broken
within distance b. Records of bounded attacks are one run a budget and give one point each.

Source: Buechel et al. 2022, arXiv:2110.02929 (median over all attacked samples, failures infinite) and
Lun et al. 2025, arXiv:2503.03272 (median over successes). Differs: both are always reported; the ASR at
a budget is taken over all attacked samples, and distances equal to the budget count as within it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from numpy.typing import NDArray

from robustspike.bench.errors import ConfigError
from robustspike.bench.stats import wilson

BUDGETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Budgets at which the ASR of a minimum-norm record is tabulated."""

_ROBUST, _BROKEN, _ERROR = 0, 1, 3

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SpikeSummary:
    """What one record says about an attack on spikes.

    Args:
        attacked: samples that were attacked and could be judged.
        broken: successes among them.
        errors: samples that could not be computed; in none of the other figures.
        median_all: median distance over all attacked samples, failures counted as infinite (medL0_all).
        median_success: median distance over the successes; NaN without any (medL0_succ).
        mean_success: mean distance over the successes; NaN without any.
        budgets, within: successes within each budget.
    """

    attacked: int
    broken: int
    errors: int
    median_all: float
    median_success: float
    mean_success: float
    budgets: tuple[float, ...]
    within: tuple[int, ...]

    @property
    def asr(self) -> float:
        """Share of the attacked samples that were broken, without regard to distance."""
        return self.broken / self.attacked if self.attacked else float("nan")

    def interval(self, budget: float | None = None) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the ASR, or of the ASR at one of the budgets."""
        k = self.broken if budget is None else self.within[self.budgets.index(budget)]
        return wilson(k, self.attacked)


def attacked_distances(status: ArrayLike, distance: ArrayLike) -> Floats:
    """Return the distances of the attacked samples, infinite where the attack failed.

    Raises: ConfigError: the arrays differ in length, or a broken sample has no finite distance.
    """
    codes, sizes = np.asarray(status), np.asarray(distance, dtype=np.float64)
    if codes.shape != sizes.shape or codes.ndim != 1:
        raise ConfigError(
            f"spike metrics: status and distance must be one row a sample, got shapes {codes.shape} and "
            f"{sizes.shape}. Pass the two columns of one record."
        )
    broken = codes == _BROKEN
    if not np.isfinite(sizes[broken]).all() or (sizes[broken] < 0).any():
        raise ConfigError(
            "spike metrics: a broken sample has a distance that is negative, infinite or NaN. The record "
            "is damaged, or its distance column is not a count of spikes."
        )
    rows = broken | (codes == _ROBUST)
    values: Floats = np.where(broken, sizes, np.inf)[rows]
    return values


def median(values: ArrayLike) -> float:
    """Return the median, the mean of the middle two for even n; NaN for none. Infinity is a value."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        return float("nan")
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(low) if low == high else float((low + high) / 2)


def summarise(status: ArrayLike, distance: ArrayLike, *, budgets: Sequence[float] = BUDGETS) -> SpikeSummary:
    """Summarise one record. Raises: ConfigError: see `attacked_distances`."""
    values = attacked_distances(status, distance)
    successes = values[np.isfinite(values)]
    return SpikeSummary(
        attacked=len(values),
        broken=len(successes),
        errors=int((np.asarray(status) == _ERROR).sum()),
        median_all=median(values),
        median_success=median(successes),
        mean_success=float(successes.mean()) if len(successes) else float("nan"),
        budgets=tuple(budgets),
        within=tuple(int((values <= b).sum()) for b in budgets),
    )


def asr_curve(status: ArrayLike, distance: ArrayLike) -> tuple[Floats, NDArray[np.int64], int]:
    """Return the whole ASR-versus-budget curve of a minimum-norm record.

    Returns: the distinct distances of successes in rising order, the successes within each of them,
    and the number of attacked samples. Between two budgets the curve is flat; below the first it is 0.
    """
    values = attacked_distances(status, distance)
    steps, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    return steps, counts.cumsum().astype(np.int64), len(values)


def area_over_log_budget(
    status: ArrayLike, distance: ArrayLike, *, low: float = 1.0, high: float = 1000.0
) -> float:
    """Return the mean ASR over budgets in [low, high], uniform in their logarithm: 1 is weakest victim.

    Exact for the step curve: a success at distance d counts for the share of the log range above d.
    Raises: ConfigError: not 0 < low < high.
    """
    if not 0 < low < high:
        raise ConfigError(f"spike metrics: need 0 < low < high for a log range, got {low} and {high}.")
    values = attacked_distances(status, distance)
    if not len(values):
        return float("nan")
    reached = np.clip(values, low, high)
    return float((np.log(high / reached) / np.log(high / low)).mean())


def envelope(columns: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[NDArray[np.int64], Floats]:
    """Return status and distance of the per-sample best of several attacks on the same samples.

    A sample is broken by the nearest of its successes; it is an error only if no attack broke it and
    one of them could not be computed.
    Raises: ConfigError: no attack, or different samples.
    """
    codes = [np.asarray(status) for status, _ in columns]
    if not codes or len({c.shape for c in codes}) != 1:
        raise ConfigError("spike metrics: an envelope needs one or more records of the same samples.")
    stack = np.stack(codes)
    sizes = np.stack([np.asarray(distance, dtype=np.float64) for _, distance in columns])
    best = np.where(stack == _BROKEN, sizes, np.inf).min(axis=0)
    broken = (stack == _BROKEN).any(axis=0)
    status = np.where(broken, _BROKEN, stack.max(axis=0)).astype(np.int64)
    return status, np.where(broken, best, 0.0)


def spikes_changed(x0: ArrayLike, x: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the spikes added and removed per sample. Shape: [N, ...] twice -> [N], [N]."""
    before, after = np.asarray(x0) != 0, np.asarray(x) != 0
    rows = (len(before), -1)
    added = (after & ~before).reshape(rows).sum(axis=1)
    removed = (before & ~after).reshape(rows).sum(axis=1)
    return added.astype(np.int64), removed.astype(np.int64)


def relative_change(x0: ArrayLike, x: ArrayLike) -> Floats:
    """Return flipped cells over the spikes of the clean input; infinite for spikes out of nothing."""
    added, removed = spikes_changed(x0, x)
    spikes = (np.asarray(x0) != 0).reshape(len(added), -1).sum(axis=1)
    flips = (added + removed).astype(np.float64)
    values: Floats = np.where(spikes > 0, flips / np.maximum(spikes, 1), np.where(flips > 0, np.inf, 0.0))
    return values


def shifts(x0: ArrayLike, x: ArrayLike) -> list[NDArray[np.int64]]:
    """Return, per sample, the shift in time steps of every spike of count-preserving frames.

    On each line (all axes but time) the k-th spike of x is the k-th spike of x0 moved.
    Shape: [N, T, ...] twice -> N arrays of one signed shift a spike, lines in order.
    Raises: ConfigError: a line gained or lost spikes.
    """
    before, after = np.asarray(x0) != 0, np.asarray(x) != 0
    if not np.array_equal(before.sum(axis=1), after.sum(axis=1)):
        raise ConfigError(
            "spike metrics: shifts need as many spikes on every line before and after; use "
            "spikes_changed for attacks that add or remove."
        )
    found = []
    for old, new in zip(before, after, strict=True):
        start, end = (np.nonzero(v.reshape(len(v), -1).T)[1] for v in (old, new))
        found.append((end - start).astype(np.int64))
    return found


def bin_count_distance(x0: ArrayLike, x: ArrayLike) -> Floats:
    """Return the Kolmogorov-Smirnov distance between the spike counts per time bin, per sample.

    0 where both are empty, 1 where only one is. Shape: [N, T, ...] twice -> [N].
    """

    def profile(frames: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
        spikes = (np.asarray(frames) != 0).astype(np.float64)
        counts = spikes.reshape(len(spikes), spikes.shape[1], -1).sum(axis=2)
        total = counts.sum(axis=1, keepdims=True)
        return counts.cumsum(axis=1) / np.maximum(total, 1), total[:, 0] > 0

    before, some = profile(x0)
    after, any_after = profile(x)
    distance: Floats = np.abs(before - after).max(axis=1)
    return np.where(some == any_after, distance, 1.0)
