"""Metrics of attacks on quality models: pure functions of clean scores, attacked scores and MOS.

Every array holds one number per image, larger is better. `s` are clean predictions, `a` attacked ones,
`m` mean opinion scores (or pseudo-MOS). A score range is (worst, best).

Source: Antsiferova et al., AAAI 2024 (gains, W, E, R on scaled scores); Liu et al., CVPR 2024 (R on
declared ranges); Zhang et al., NeurIPS 2022 (R); Gushchin et al., ICML 2025 (absolute gains); Ran et al.
(RGO). Differs: R always uses the clean prediction in the maximum, and names its range and scaling.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are first asked: importing them takes half as long as torch
from numpy.typing import ArrayLike
from numpy.typing import NDArray

from robustspike.bench.errors import ConfigError
from robustspike.bench.numbers.stats import clustered_mean
from robustspike.bench.numbers.stats import effective_size
from robustspike.bench.numbers.stats import spearman
from robustspike.bench.numbers.stats import wilson

Floats = NDArray[np.float64]

R_GUARD = 1e-6
"""Added to |s - a| in R: an image whose score does not move at all counts as moved by this much."""

HIDDEN = {"ssim": 0.99, "psnr": 40.0}
"""An attack is called imperceptible on an image whose SSIM and PSNR to the clean one reach these."""


@dataclass(frozen=True)
class Mean:
    """A mean over images with its 95 % interval; the ends are NaN where nothing tells them."""

    value: float
    low: float
    high: float


def mean_of(values: ArrayLike, sources: ArrayLike | None = None) -> Mean:
    """Return the mean of per-image values and its 95 % Student t interval over the images' sources.

    Args:
        values: one number an image.
        sources: which photograph each image was made from; without it, each image from its own.
    """
    data = np.asarray(values, dtype=np.float64)
    of = np.arange(len(data)) if sources is None else np.asarray(sources)
    return Mean(*clustered_mean(data, of))


def share_of(hits: ArrayLike, sources: ArrayLike) -> Mean:
    """Return a share of images and its 95 % Wilson interval for as many images as theirs are worth."""
    data = np.asarray(hits, dtype=np.float64)
    size = effective_size(data, np.asarray(sources))
    share = float(data.mean())
    low, high = wilson(round(share * size), size)
    return Mean(share, min(low, share), max(high, share))


def _pair(s: ArrayLike, a: ArrayLike) -> tuple[Floats, Floats]:
    clean, attacked = np.asarray(s, dtype=np.float64), np.asarray(a, dtype=np.float64)
    if clean.shape != attacked.shape or clean.ndim != 1 or not len(clean):
        raise ConfigError(
            f"quality metrics: expected two lists of scores of one length, got shapes {clean.shape} and "
            f"{attacked.shape}."
        )
    return clean, attacked


def scaled(s: ArrayLike, a: ArrayLike) -> tuple[Floats, Floats]:
    """Scale both by the smallest and largest clean prediction; attacked ones may leave [0, 1].

    A constant clean prediction is scaled to 0 with a span of 1.
    """
    clean, attacked = _pair(s, a)
    span = clean.max() - clean.min() or 1.0
    return (clean - clean.min()) / span, (attacked - clean.min()) / span


def absolute_gain(s: ArrayLike, a: ArrayLike, sources: ArrayLike | None = None) -> Mean:
    """Return the mean change of the scaled score (MSU)."""
    clean, attacked = scaled(s, a)
    return mean_of(attacked - clean, sources)


def relative_gain(s: ArrayLike, a: ArrayLike, sources: ArrayLike | None = None) -> Mean:
    """Return the mean of (A - S) / (S + 1) on scaled scores (MSU)."""
    clean, attacked = scaled(s, a)
    return mean_of((attacked - clean) / (clean + 1), sources)


def shift_share(s: ArrayLike, a: ArrayLike, score_range: tuple[float, float]) -> float:
    """Return the mean |s - a| as a share of the range (Guardians' absolute gain)."""
    clean, attacked = _pair(s, a)
    return float(np.abs(clean - attacked).mean() / (score_range[1] - score_range[0]))


def relative_shift(s: ArrayLike, a: ArrayLike) -> float:
    """Return the mean |s - a| / (s + 1e-6) (Guardians' relative gain)."""
    clean, attacked = _pair(s, a)
    return float((np.abs(clean - attacked) / (clean + 1e-6)).mean())


def mae(s: ArrayLike, a: ArrayLike, sources: ArrayLike | None = None) -> Mean:
    """Return the mean absolute change of the score."""
    clean, attacked = _pair(s, a)
    return mean_of(np.abs(clean - attacked), sources)


def rmse(s: ArrayLike, a: ArrayLike) -> float:
    """Return the root mean square change of the score."""
    clean, attacked = _pair(s, a)
    return float(np.sqrt(np.square(clean - attacked).mean()))


def used_room(s: ArrayLike, a: ArrayLike, score_range: tuple[float, float]) -> float:
    """Return the mean change as a share of the larger possible one (RGO)."""
    clean, attacked = _pair(s, a)
    room = np.maximum(score_range[1] - clean, clean - score_range[0])
    return float((np.abs(attacked - clean) / room).mean())


def robustness(
    s: ArrayLike, a: ArrayLike, score_range: tuple[float, float], sources: ArrayLike | None = None
) -> Mean:
    """Return R = mean log10(largest possible change / change): 0 means all of it, 1 a tenth.

    Clean predictions are clipped to the range first. The number means nothing without its range.
    """
    clean, attacked = _pair(s, a)
    worst, best = score_range
    inside = np.clip(clean, worst, best)
    room = np.maximum(best - inside, inside - worst)
    return mean_of(np.log10(room / (np.abs(clean - attacked) + R_GUARD)), sources)


def scaled_robustness(s: ArrayLike, a: ArrayLike) -> Mean:
    """Return R on scores scaled by the clean predictions, range (0, 1) (MSU)."""
    return robustness(*scaled(s, a), (0.0, 1.0))


def wasserstein(s: ArrayLike, a: ArrayLike) -> float:
    """Return the signed 1-Wasserstein distance between scaled clean and attacked scores."""
    clean, attacked = scaled(s, a)
    sign = np.sign(attacked.mean() - clean.mean())
    return float(sign * np.abs(np.sort(clean) - np.sort(attacked)).mean())


def energy(s: ArrayLike, a: ArrayLike) -> float:
    """Return the signed energy distance between scaled clean and attacked scores."""
    clean, attacked = scaled(s, a)
    sign = np.sign(attacked.mean() - clean.mean())
    return float(sign * scipy.stats.energy_distance(clean, attacked))


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Return Kendall's tau-b; nan where an input is constant."""
    return float(scipy.stats.kendalltau(*_pair(x, y)).statistic)


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Return Pearson's correlation; nan where an input is constant."""
    first, second = _pair(x, y)
    if len(first) < 2 or not np.ptp(first) or not np.ptp(second):
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def srocc(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's rank correlation; nan where an input is constant."""
    return spearman(*_pair(x, y))


def srocc_interval(rho: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a rank correlation (Fisher's z with Fieller's variance 1.06/(n-3)).

    Source: Fieller, Hartley & Pearson 1957, Biometrika 44:470. Differs: none.
    """
    if math.isnan(rho) or n < 4:
        return -1.0, 1.0
    z = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    half = 1.959964 * math.sqrt(1.06 / (n - 3))
    return min(rho, math.tanh(z - half)), max(rho, math.tanh(z + half))


def srocc_of(x: ArrayLike, y: ArrayLike, sources: ArrayLike) -> Mean:
    """Return Spearman's correlation and its 95 % interval over the images' sources.

    With one image a source that of `srocc_interval`; else a delete-one-source jackknife of Fisher's z with
    Student's t over the sources, NaN for fewer than two of them.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 11. Differs: none.
    """
    first, second = _pair(x, y)
    of, rho = np.asarray(sources), srocc(x, y)
    names = np.unique(of)
    if len(names) == len(first):
        return Mean(rho, *srocc_interval(rho, len(first)))
    if len(names) < 2 or math.isnan(rho):
        return Mean(rho, math.nan, math.nan)
    left = [srocc(first[of != name], second[of != name]) for name in names]
    z = np.arctanh(np.clip([rho, *left], -1 + 1e-12, 1 - 1e-12))
    count = len(names)
    half = scipy.stats.t.ppf(0.975, count - 1) * math.sqrt((count - 1) * float(z[1:].var()))
    return Mean(rho, float(np.tanh(z[0] - half)), float(np.tanh(z[0] + half)))


@dataclass(frozen=True)
class Mapping:
    """A monotone map from predictions to MOS: a four-parameter logistic, or a line where that fails.

    Args:
        b: (top, bottom, middle, width) of the logistic, or (slope, offset) of the line.
    """

    b: tuple[float, ...]

    def __call__(self, s: ArrayLike) -> Floats:
        x = np.asarray(s, dtype=np.float64)
        if len(self.b) == 2:
            return self.b[0] * x + self.b[1]
        return _logistic(x, *self.b)


def _logistic(x: Floats, top: float, bottom: float, middle: float, width: float) -> Floats:
    exponent = np.clip(-(x - middle) / max(abs(width), 1e-12), -700, 700)
    return (top - bottom) / (1 + np.exp(exponent)) + bottom


def fit_mapping(s: ArrayLike, m: ArrayLike) -> Mapping:
    """Fit the map from clean predictions to MOS; reuse it for attacked ones."""
    x, y = _pair(s, m)
    spread = float(x.std())
    if not spread:
        return Mapping((0.0, float(y.mean())))
    start = (float(y.max()), float(y.min()), float(x.mean()), spread)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.optimize.OptimizeWarning)  # of a covariance nobody asks for
            found, _ = scipy.optimize.curve_fit(_logistic, x, y, p0=start, maxfev=4000)
    except (RuntimeError, TypeError, ValueError):
        slope, offset = np.polyfit(x, y, 1)
        return Mapping((float(slope), float(offset)))
    return Mapping(tuple(float(value) for value in found))


@dataclass(frozen=True)
class Agreement:
    """How well predictions agree with other scores."""

    srocc: float
    plcc: float
    krocc: float
    rmse: float


def agreement(x: ArrayLike, y: ArrayLike, mapping: Mapping | None = None) -> Agreement:
    """Compare predictions x with y; PLCC and RMSE after the map, where one is given."""
    mapped = np.asarray(x, dtype=np.float64) if mapping is None else mapping(x)
    return Agreement(srocc(x, y), pearson(mapped, y), kendall(x, y), rmse(mapped, y))


def quantile_matched(s: ArrayLike, s_all: ArrayLike, m_all: ArrayLike) -> Floats:
    """Map scores to the MOS distribution by quantiles (for comparing models), linear outside.

    Args:
        s: scores to map.
        s_all, m_all: clean predictions and MOS that define the map.
    """
    x, y = np.sort(np.asarray(s_all, dtype=np.float64)), np.sort(np.asarray(m_all, dtype=np.float64))
    values = np.asarray(s, dtype=np.float64)
    slope = (y[-1] - y[0]) / (x[-1] - x[0]) if x[-1] > x[0] else 0.0
    inside: Floats = np.interp(values, x, y)
    return inside + slope * (np.minimum(values - x[0], 0) + np.maximum(values - x[-1], 0))


def integral_robustness(eps: ArrayLike, gains: ArrayLike) -> float:
    """Return the area under mean gain over eps, divided by the width of the eps range (AT24).

    The published normalisation could not be confirmed; this one makes a constant gain its own integral.
    """
    x, y = _pair(eps, gains)
    if len(x) < 2 or not np.ptp(x):
        return float(y.mean())
    order = np.argsort(x)
    return float(scipy.integrate.trapezoid(y[order], x[order]) / np.ptp(x))


def uap_stability(psnr_loss: ArrayLike, gains: ArrayLike) -> float:
    """Return -100 times the area under gain over PSNR loss (UAP22's stability score)."""
    x, y = _pair(psnr_loss, gains)
    order = np.argsort(x)
    return float(-100 * scipy.integrate.trapezoid(y[order], x[order]))
