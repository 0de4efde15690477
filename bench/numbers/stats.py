"""Statistics of counts: intervals and paired comparisons. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import scipy  # scipy.stats is loaded when it is first asked: that takes half as long as torch
from scipy.special import stdtrit


@cache  # tables of many cells ask for few different counts, and each takes half a millisecond
def wilson(k: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of k successes in n trials; (0, 1) for n = 0.

    Source: Wilson 1927, JASA 22:209. Differs: none.
    """
    if n == 0:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(k, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def rate(name: str, k: int, n: int) -> dict[str, float]:
    """Return a share and its 95 % Wilson interval under three names: name, name_low, name_high.

    NaN for n = 0: nothing was observed.
    """
    low, high = wilson(k, n) if n else (math.nan, math.nan)
    return {name: k / n if n else math.nan, f"{name}_low": low, f"{name}_high": high}


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test (McNemar's exact test on discordant pairs)."""
    return float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation (ties share the mean rank); nan where an input is constant."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (a, b)]
    centred = [r - r.mean() for r in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / scale if scale else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: np.ndarray = ((last - counts + 1 + last) / 2)[inverse.reshape(-1)]
    return mean_rank


def bootstrap_median(values: np.ndarray, *, level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a median; infinity is a value, NaN for no values.

    The resamples come from a fixed generator, so equal values give an equal interval.
    Source: Efron 1979. Differs: percentiles are taken at resampled medians, never between two of them.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        return math.nan, math.nan
    picked = np.random.default_rng(0).integers(0, len(ordered), size=(draws, len(ordered)))
    resampled = np.sort(ordered[picked], axis=1)
    low_middle, high_middle = resampled[:, (len(ordered) - 1) // 2], resampled[:, len(ordered) // 2]
    same = low_middle == high_middle  # also where both are infinite
    with np.errstate(invalid="ignore"):
        medians = np.sort(np.where(same, low_middle, (low_middle + high_middle) / 2))
    tail = (1 - level) / 2
    return float(medians[math.floor(tail * (draws - 1))]), float(medians[math.ceil((1 - tail) * (draws - 1))])


def clopper_pearson_lower(k: int, n: int, *, error: float) -> float:
    """Return the exact one-sided lower confidence bound of a binomial share: P(share < bound) <= error.

    Source: Clopper & Pearson 1934, Biometrika 26:404, as a quantile of the beta distribution. Differs: none.
    """
    return float(scipy.stats.beta.ppf(error, k, n - k + 1)) if k else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given.

    Rejecting where the adjusted value is below a level keeps the chance of any false rejection below it.
    Source: Holm 1979, Scand. J. Statist. 6:65. Differs: none.
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, largest = [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = largest
    return adjusted


def clustered_mean(
    values: np.ndarray, clusters: np.ndarray, *, level: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of values with its interval, where values of one cluster are not independent.

    Student's t with as many degrees of freedom as there are clusters but one; with one value a cluster it is
    the ordinary t interval. The ends are NaN for fewer than two clusters: nothing tells how they differ.

    Source: Liang & Zeger 1986, Biometrika 73:13; factor G/(G-1) and t(G-1) as in Cameron & Miller 2015,
    J. Human Resources 50:317. Differs: none.
    """
    mean = float(values.mean())
    _, of = np.unique(clusters, return_inverse=True)
    groups = int(of.max()) + 1
    if groups < 2:
        return mean, math.nan, math.nan
    sums = np.bincount(of.reshape(-1), weights=values - mean)
    error = math.sqrt(groups / (groups - 1) * float(np.square(sums).sum())) / len(values)
    half = float(stdtrit(groups - 1, 0.5 + level / 2)) * error
    return mean, mean - half, mean + half


def effective_size(values: np.ndarray, clusters: np.ndarray) -> int:
    """Return how many independent values a clustered sample is worth: at least one a cluster, at most all.

    The number of values over the design effect, which is the variance of the clustered mean over that of the
    mean of as many independent values; values that are all alike are worth one a cluster.

    Source: Kish 1965, Survey Sampling, section 8.2. Differs: rounded, and kept between clusters and values.
    """
    groups = len(np.unique(clusters))
    if groups in (1, len(values)):
        return groups
    spread = float(values.var(ddof=1)) / len(values)
    _, low, high = clustered_mean(values, clusters)
    error = (high - low) / 2 / float(stdtrit(groups - 1, 0.975))
    size = len(values) * spread / error**2 if error > 0 else math.inf
    return groups if not spread else min(len(values), max(groups, round(min(size, len(values)))))
