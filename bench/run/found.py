"""What is told of a network from outside before anything is attacked."""

from __future__ import annotations

import math

import torch

from robustspike.bench.data.base import Split
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.stats import spearman
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.sites import Site

LOOKED_AT = 500
"""Samples of which the clean accuracy is told before anything is attacked."""

_LEAST_SPREAD = 0.05
"""Share of its declared scale that a quality model's answers should fill."""


def found_in_regressor(victim: ModuleVictim, samples: Split) -> list[str]:
    """Say what a quality model is: its neurons, gradient, scale, and how its scores agree with the labels.

    Raises: ContractError: its answers are not on the scale that was given.
    """
    spec = victim.spec
    assert spec.score_range is not None
    part = samples[:LOOKED_AT]
    told = (
        ["gradient: none, so that it is a black box: attacks that need one do not apply"]
        if spec.black_box
        else [f"neurons: {line}" for line in neurons_of(victim)]
    )
    with torch.no_grad():
        parts = [
            victim.logits(x.to(victim.device), noise=noise_of(victim, len(x))).squeeze(1).double().cpu()
            for x in part.x.split(25)
        ]
    scores = torch.cat(parts)
    low, high = spec.score_range
    answered = f"{float(scores.min()):.4g} to {float(scores.max()):.4g}"
    outside = int(((scores < low) | (scores > high)).sum())
    told.append(
        f"scores: {answered} on {len(part)} images (larger is better), on a scale from {low:g} to {high:g}"
        + (f"; {outside} lie outside" if outside else "")
    )
    if outside > len(part) / 2:
        raise ContractError(
            f"victim '{spec.name}': {outside} of {len(part)} scores lie outside {low:g} to {high:g}: "
            f"they run from {answered}. Give the scale that it answers on as --score-range."
        )
    agreement = spearman(scores.numpy(), part.y.numpy()) if len(part) > 2 else math.nan
    if math.isnan(agreement):
        told.append("clean: every image has the same score, or they are too few for a rank correlation")
        return told
    told.append(f"clean: rank correlation {agreement:.3f} with the labels of {len(part)} images")
    if agreement < 0:
        told.append(
            "clean: the worse the label, the better the score: where smaller scores are better, give "
            "--score-range with the larger number first"
        )
    if float(scores.max() - scores.min()) < _LEAST_SPREAD * (high - low):
        told.append(
            f"scores: they fill less than {_LEAST_SPREAD:.0%} of the scale; is it the scale of this network?"
        )
    return told


def neurons_of(victim: ModuleVictim) -> list[str]:
    known = [n for n in victim.neurons if not n.refusal and not isinstance(n, Site)]
    sites = [n for n in victim.neurons if isinstance(n, Site)]
    lines = []
    if known:
        lines.append(f"{len(known)} known by class ({_few([n.name for n in known])})")
    if sites:
        lines.append(f"{len(sites)} found by their spike function ({_few([n.name for n in sites])})")
    lines += [f"{n.name} {n.refusal}; it has its own gradient only" for n in victim.neurons if n.refusal]
    return lines or ["none: the network is attacked as an ANN"]


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def noise_of(victim: ModuleVictim, n: int) -> RowStreams | None:
    if not victim.spec.stochastic:
        return None
    return RowStreams.derive(range(n), "inspect", device=victim.device)
