"""Flags: signs that an evaluation, not a network, is what looks robust. Pure functions of counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustspike.bench.contracts import BLACK_BOX_STAGE

ZERO_GRADIENT_SHARE = 0.05
"""Share of attacked samples with an all-zero gradient above which a white-box result is suspect."""

BLACK_BOX_SHARE = 0.002
"""Share of the attacked samples that the black-box parts of an ensemble, which run last, may be the first
to break (AutoAttack's alarm); a single sample never raises it."""


GRADIENT_AGREEMENT = 0.2
"""Mean cosine of gradients a thousandth of the domain apart below which they are called shattered.

Measured on the 30 static digits victims: 0.38 for latency coding, 0.72 to 1.0 for all others.
"""


@dataclass(frozen=True)
class Flag:
    """What a flag means and what to do about it.

    Args:
        meaning: one line for readers of the table.
        advice: one line for whoever ran the evaluation.
        blocks: whether a row that carries it loses its rank.
    """

    meaning: str
    advice: str
    blocks: bool = True


FLAGS: dict[str, Flag] = {
    "errors": Flag(
        "some samples could not be computed and count as neither robust nor broken",
        "read the messages in record.json and fix the attack or the victim",
    ),
    "zero_gradient": Flag(
        f"more than {ZERO_GRADIENT_SHARE:.0%} of the attacked samples had an all-zero gradient",
        "attack with wider surrogates, another estimator or a margin loss",
    ),
    "shattered_gradient": Flag(
        "the gradient points elsewhere a thousandth of the input range away",
        "attack with averaged or wider gradients, transfer and score-based attacks",
    ),
    "non_finite": Flag(
        "the victim answered NaN or infinity to a query",
        "fix the victim; such answers are never counted as adversarial",
    ),
    "unconfirmed": Flag(
        "hits seen by the oracle were not confirmed by the fresh forward pass",
        "the decision hangs on rounding or on noise: average more draws",
        blocks=False,
    ),
    "unbounded_attack_fails": Flag(
        "a white-box attack allowed the whole input domain still leaves more samples than chance",
        "the gradient or the loss is at fault, not the network: change estimator or loss",
    ),
    "no_unbounded_check": Flag(
        "no white-box attack over the whole domain was run as a sanity check",
        "add a threat with eps equal to the width of the domain to the suite",
        blocks=False,
    ),
    "black_box_beats_white_box": Flag(
        "an attack without gradients breaks samples that every gradient attack misses, beyond chance",
        "gradients are masked: add estimators, transfer attacks, more steps",
    ),
    "missing_adaptive_attack": Flag(
        "the defense names an adaptive attack that was not run against it",
        "run autoattack.snn, or the attack that robustspike show DEFENSE names",
    ),
    "poor_conversion": Flag(
        "the spiking network is more than 2 points less accurate than the ANN it was converted from",
        "its robustness says little: use more time steps or another conversion",
    ),
    "unpublished": Flag(
        "an attack of this row came from a single file, not from an installed package",
        "publish it as a package so that others can install what was run",
        blocks=False,
    ),
    "constant_score": Flag(
        "a quality model gives every clean image the same score: there is nothing to attack",
        "fix the victim",
    ),
    "noise_sensitive": Flag(
        "random signs move the score at least half as far as the attacks: it follows noise",
        "train with noise; read the numbers as sensitivity, not as an attack",
    ),
    "no_noise_control": Flag(
        "the random-sign control was not run",
        "add quality.random_sign to the suite",
        blocks=False,
    ),
    "no_gradient_attack": Flag(
        "no gradient attack was run: the number is an upper bound from black-box attacks alone",
        "run the full suite",
    ),
}


def cell_flags(measures: Mapping[str, Any], counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the flags that one cell raises by itself, sorted."""
    raised = set()
    attacked = measures.get("attacked", 0)
    if counts["errors"]:
        raised.add("errors")
    if attacked and measures.get("zero_gradient_samples", 0) > ZERO_GRADIENT_SHARE * attacked:
        raised.add("zero_gradient")
    probed = measures.get("probed", 0)
    if probed and measures["cosine_milli"] < 1000 * GRADIENT_AGREEMENT * probed:
        raised.add("shattered_gradient")
    if measures.get("non_finite", 0):
        raised.add("non_finite")
    if measures.get("unconfirmed", 0):
        raised.add("unconfirmed")
    black = sum(n for key, n in measures.items() if key.startswith(f"hits:{BLACK_BOX_STAGE}"))
    if black > max(1.0, BLACK_BOX_SHARE * attacked):
        raised.add("black_box_beats_white_box")
    return tuple(sorted(raised))
