"""Certified accuracy: what no attack can undo. A column of its own, never mixed with empirical results.

Two methods. Smoothing: majority votes of a Bernoulli-coded network, certified in l1 with a confidence.
Intervals (S-IBP): sound bounds on every potential and spike of a small deterministic network, in L-inf.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.errors import ContractError
from robustspike.bench.neurons import Neuron
from robustspike.bench.neurons import find_neurons
from robustspike.bench.neurons import reset
from robustspike.bench.rng import RowStreams
from robustspike.bench.stats import clopper_pearson_lower
from robustspike.bench.stats import wilson
from robustspike.bench.victim import ModuleVictim

SLACK = 1e-5
"""Widening of every potential's interval: covers float32 rounding of potentials of order one."""


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

    def count(self, radius: float | Fraction) -> int:
        """Count the samples certified correct at a radius (strictly inside for smoothing)."""
        size = float(radius)
        if self.method == "smoothing":
            return int((self.radius > size).sum())
        return int((self.radius >= size).sum())

    def interval(self, radius: float | Fraction) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the certified accuracy at a radius."""
        return wilson(self.count(radius), self.n)


def certify(
    victim: ModuleVictim,
    x: Tensor,
    y: Tensor,
    *,
    method: Literal["smoothing", "intervals"],
    radii: Sequence[Fraction | float] = (),
    votes: int = 100,
    first_votes: int = 10,
    error: float = 0.001,
    seed: int = 0,
) -> Certified:
    """Certify a victim's answers on a batch.

    Args:
        victim: for "smoothing", one coded by Bernoulli spikes alone; for "intervals", a deterministic
            directly coded network of convolutions, pools, linear layers, batch normalisation and
            SpikingJelly's LIF and IF nodes.
        x, y: inputs and labels.
        method: see the module's docstring.
        radii: L-inf radii that "intervals" tries ("smoothing" finds its own).
        votes, first_votes: passes that certify, and passes that choose the class, for "smoothing".
        error: probability that a smoothing certificate is wrong, per sample.
        seed: root seed of the votes.

    Raises: ContractError: the victim is not of the kind that the method can certify.
    """
    if method == "smoothing":
        return smoothing(victim, x, y, votes=votes, first_votes=first_votes, error=error, seed=seed)
    return intervals(victim, x, y, radii=radii)


def smoothing(
    victim: ModuleVictim,
    x: Tensor,
    y: Tensor,
    *,
    votes: int = 100,
    first_votes: int = 10,
    error: float = 0.001,
    seed: int = 0,
) -> Certified:
    """Certify the majority vote over Bernoulli encodings.

    The encodings of x and x' differ in total variation by at most T ||x - x'||_1, so no vote share moves
    by more; with a lower confidence bound p on the winner's share, the vote is safe for
    ||x - x'||_1 < (p - 1/2) / T.

    Cost: votes + first_votes forwards per sample.
    Source: Mukhoty et al., ICLR 2024. Differs: the radius has the factor 1/T that the released code
        drops, and error is 0.001 (its default 1.0 makes the bound vacuous).
    """
    shifts = [getattr(m, "votes_shift_per_l1", None) for m in victim.module.modules()]
    known = [int(s) for s in shifts if s is not None]
    noisy = [m for m in victim.module.modules() if getattr(m, "draws_noise", False)]
    if len(known) != 1 or len(noisy) != 1:
        raise ContractError(
            f"certify: victim '{victim.spec.name}' must draw noise in one Bernoulli input coding and nowhere "
            f"else; {len(noisy)} modules draw noise, {len(known)} are such codings. Harden it with "
            "rate_smoothing."
        )
    if not 0 < error < 1 or votes < 1 or first_votes < 1:
        raise ContractError(
            f"certify: error must be inside (0, 1) and votes at least 1, got {error}, {votes}, {first_votes}."
        )
    streams = RowStreams.derive(range(len(x)), seed, "certify", device=x.device)
    first = _votes(victim, x, first_votes, streams.fork("first"))
    winner = first.argmax(dim=1)
    share = _votes(victim, x, votes, streams.fork("certify")).gather(1, winner[:, None]).squeeze(1)
    lower = torch.tensor(
        [clopper_pearson_lower(int(k), votes, error=error) for k in share], dtype=torch.float64
    )
    sure, right = lower > 0.5, (winner == y).cpu()
    radius = torch.where(sure & right, (lower - 0.5) / known[0], torch.full_like(lower, -1.0))
    return Certified(
        "smoothing", "l1", len(x), int(right.sum()), int((~sure).sum()), radius, confidence=1 - error
    )


@torch.no_grad()
def _votes(victim: ModuleVictim, x: Tensor, n: int, streams: RowStreams) -> Tensor:
    counts = torch.zeros(len(x), victim.spec.classes, dtype=torch.int64, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    for vote in range(n):
        winner = victim.logits(x, noise=streams.fork("vote", vote)).argmax(dim=1)
        counts[rows, winner] += 1
    return counts


@torch.no_grad()
def intervals(victim: ModuleVictim, x: Tensor, y: Tensor, *, radii: Sequence[Fraction | float]) -> Certified:
    """Certify by interval bounds on every potential and spike (S-IBP).

    Cost: two forwards of twice the size per radius, in float64.
    Source: Liang et al., NeurIPS 2022, arXiv:2205.01625, S-IBP. Differs: any SpikingJelly leak, input gain
        and reset; potentials are widened by 1e-5 against rounding. S-CROWN is not implemented.
    """
    with torch.enable_grad():
        logits = victim.logits(x)
    right = logits.argmax(dim=1) == y
    best = torch.full((len(x),), -1.0, dtype=torch.float64)
    best[right.cpu()] = 0.0
    for eps in sorted(float(r) for r in radii):
        safe = (lower_margins(victim, x, y, eps=eps) > 0).all(dim=1) & right
        best[safe.cpu()] = eps
    return Certified("intervals", "linf", len(x), int(right.sum()), 0, best, confidence=1.0)


@dataclass
class Interval:
    """Elementwise bounds."""

    low: Tensor
    high: Tensor

    def through(self, centre: Callable[[Tensor], Tensor], radius: Callable[[Tensor], Tensor]) -> Interval:
        """Map by an affine layer, given its action on centres and on radii."""
        middle, half = centre((self.low + self.high) / 2), radius((self.high - self.low) / 2)
        return Interval(middle - half, middle + half)


def lower_margins(victim: ModuleVictim, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
    """Return lower bounds on z_y - z_k over the L-inf ball within the domain, +inf at k = y: [N, K]."""
    features, head = bounds_before_head(victim, x, eps=eps)
    weight, bias = head.weight, head.bias
    mean = Interval(features.low.mean(dim=0), features.high.mean(dim=0))
    rows = weight[y][:, None, :] - weight[None]  # C_y W, [N, K, F]
    centre, half = (mean.low + mean.high) / 2, (mean.high - mean.low) / 2
    margins = torch.einsum("nkf,nf->nk", rows, centre) - torch.einsum("nkf,nf->nk", rows.abs(), half)
    if bias is not None:
        margins = margins + bias[y][:, None] - bias[None]
    return margins.scatter(1, y[:, None], torch.inf)


def bounds_before_head(victim: ModuleVictim, x: Tensor, *, eps: float) -> tuple[Interval, nn.Linear]:
    """Return bounds [T, N, F] on the read-out's inputs over the ball, and the read-out in float64."""
    body, steps = getattr(victim.module, "body", None), getattr(victim.module, "steps", 0)
    where = f"certify: victim '{victim.spec.name}'"
    if not isinstance(body, nn.Sequential) or victim.spec.stochastic or not steps:
        raise ContractError(
            f"{where} is not a deterministic, directly coded sequence of layers. Certify a lif_cnn or if_cnn."
        )
    network = copy.deepcopy(body).double().eval()
    reset(network)
    neurons = {id(neuron.module): neuron for neuron in find_neurons(network)}
    low, high = victim.spec.bounds
    point = x.double().unsqueeze(0).expand(steps, *x.shape)
    interval = Interval((point - eps).clamp(low, high), (point + eps).clamp(low, high))
    layers = list(network)
    head = layers.pop()
    if not isinstance(head, nn.Linear):
        raise ContractError(f"{where} does not end in a linear read-out.")
    for layer in layers:
        interval = _layer_bounds(layer, interval, neurons.get(id(layer)), where)
    return interval, head


def _layer_bounds(layer: nn.Module, given: Interval, neuron: Neuron | None, where: str) -> Interval:
    if neuron is not None:
        # A parameter (PLIF's w) or another submodule (a defense's gate or scale) changes the neuron.
        if [*layer.children()] != [layer.surrogate_function] or [*layer.parameters()]:
            raise ContractError(f"{where}: neuron '{neuron.name}' is not a plain LIF or IF node.")
        return _neuron_bounds(neuron, given)
    if isinstance(layer, nn.Conv2d):

        def spread(r: Tensor) -> Tensor:
            out = functional.conv2d(
                r.flatten(0, 1),
                layer.weight.abs(),
                None,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
            return out.unflatten(0, r.shape[:2])

        return given.through(layer, spread)
    if isinstance(layer, nn.Linear):
        return given.through(layer, lambda r: functional.linear(r, layer.weight.abs()))
    if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
        scale = (layer.weight / (layer.running_var + layer.eps).sqrt()).abs()[:, None, None]
        return given.through(layer, lambda r: r * scale)
    if isinstance(layer, nn.AvgPool2d | nn.Flatten | nn.Identity):
        return Interval(layer(given.low), layer(given.high))
    raise ContractError(f"{where}: no interval bounds for a {type(layer).__name__}.")


def _neuron_bounds(neuron: Neuron, current: Interval) -> Interval:
    """Bound the spikes of one layer given bounds on its input current: [T, N, ...] of 0 and 1."""
    threshold, leak, gain = neuron.threshold, neuron.leak, neuron.gain
    to: float | None = neuron.module.v_reset  # type: ignore[assignment]
    rest = 0.0 if to is None else float(to)
    v = Interval(torch.full_like(current.low[0], rest), torch.full_like(current.low[0], rest))
    drift = (1 - leak) * rest  # SpikingJelly decays towards the reset potential
    lows, highs = [], []
    for t in range(len(current.low)):
        u_low = leak * v.low + gain * current.low[t] + drift - SLACK
        u_high = leak * v.high + gain * current.high[t] + drift + SLACK
        surely, maybe = u_low >= threshold, u_high >= threshold
        lows.append(surely.to(u_low.dtype))
        highs.append(maybe.to(u_low.dtype))
        if to is None:  # silent keeps u (below the threshold), firing subtracts the threshold
            fired_low, fired_high = (u_low - threshold).clamp(min=0.0), u_high - threshold
            fired_low = torch.where(surely, u_low - threshold, fired_low)
        else:
            fired_low = fired_high = torch.full_like(u_low, rest)
        silent_high = u_high.clamp(max=threshold)
        open_low, open_high = torch.minimum(u_low, fired_low), torch.maximum(silent_high, fired_high)
        v = Interval(
            torch.where(surely, fired_low, torch.where(maybe, open_low, u_low)),
            torch.where(surely, fired_high, torch.where(maybe, open_high, u_high)),
        )
    return Interval(torch.stack(lows), torch.stack(highs))
