"""Flags: signs that an evaluation, not a network, is what looks robust. Pure functions of counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustspike.bench.contract.specs import BLACK_BOX_STAGE

ZERO_GRADIENT_SHARE = 0.05
"""Share of attacked samples with an all-zero gradient above which a white-box result is suspect."""

BLACK_BOX_SHARE = 0.002
"""Share of the attacked samples that the black-box parts of an ensemble, which follow its first members with
gradients, may be the first to break (AutoAttack's alarm); a single sample never raises it."""


GRADIENT_AGREEMENT = 0.2
"""Mean cosine of gradients a thousandth of the domain apart below which they are called shattered.

Measured on the 30 static digits victims: 0.38 for latency coding, 0.72 to 1.0 for all others.
"""


NOISE_ALLOWANCE = 0.05
"""Share of samples whose decision may change from one set of fresh draws to the next before it is unstable.

Only noise earns it: a deterministic victim's answer may never change. Measured: 0 of 47 on
poisson_cnn.digits; indicator 2 of Pintor et al. 2022 allows 0.1.
"""

INCOMPLETE_SHARE = 0.5
"""Share of the samples still standing nine tenths into an attack that may fall or rise in the last tenth.

Measured on 57 rows of the suite full (eps 1/10, n = 100): at least 0.69 for one gradient step, at most 0.41
for ten (BIM), 0.14 for twenty (PGD), 0 for the ensemble.
"""

INCOMPLETE_LEAST = 5
"""Samples that must still stand there for the share to say anything."""

SURROGATE_GAP = 0.4
"""Share of samples that a mere exchange of the surrogate may break before one surrogate says nothing.

Measured on 57 rows of the suite full (n = 100): at most 0.32, on first_spike_cnn.digits; median 0.13.
"""

LAYER_SHARE = 0.05
"""Share of the probed samples for which a layer's gradient may vanish: that of `ZERO_GRADIENT_SHARE`."""


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
    "refuted": Flag(
        "a check on file found that something in its records does not hold",
        "run robustspike verify on its records, mend what it names, and measure the row again",
    ),
    "withdrawn": Flag(
        "whoever handed it in takes it back; the note beneath the table says why",
        "do not cite the row",
    ),
    "disputed": Flag(
        "somebody disputes it; the note beneath the table says who, and why",
        "read the dispute before citing the row; if it is yours, answer it",
        blocks=False,  # anyone may dispute a row: only what comes of it can cost the rank
    ),
    "errors": Flag(
        "some samples could not be computed and count as neither robust nor broken",
        "read the messages in record.json and fix the attack or the victim",
    ),
    "zero_gradient": Flag(
        f"half of the gradients or more were all-zero for over {ZERO_GRADIENT_SHARE:.0%} of the samples",
        "attack with wider surrogates, another estimator or a margin loss",
    ),
    "shattered_gradient": Flag(
        "the gradient points elsewhere a thousandth of the input range away",
        "attack with averaged or wider gradients, transfer and score-based attacks",
    ),
    "spikes_without_site": Flag(
        "it makes spikes whose derivative cannot be exchanged: it was attacked through its own alone",
        "make the spikes in a torch.autograd.Function, see docs/your-network.md; read the number as a bound",
    ),
    "neurons_in_training_mode": Flag(
        "the network was attacked with its neurons in training mode, where alone they have a gradient",
        "give the neurons a gradient in evaluation mode; check that both modes answer alike",
        blocks=False,
    ),
    "vanishing_layer": Flag(
        f"the victim's own gradient vanishes in one spiking layer for over {LAYER_SHARE:.0%} of the samples",
        "find the layer under zero_layer and sparse_layer in record.json; attack with wider surrogates",
        blocks=False,  # it says where; whether attacks felt it, zero_gradient and the black box decide
    ),
    "member_failed": Flag(
        "a member of an ensemble raised an error: the others' hits stand, what it would have broken is open",
        "read the message in record.json, mend the member or the victim, and run the cell again",
    ),
    "few_members": Flag(
        "fewer than half of the ensemble's gradient members could be run on this victim",
        "see refused: and failed: in record.json; the number is an upper bound from those that could",
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
    "unstable": Flag(
        "fresh passes on the same clean inputs change the victim's decision",
        "fix state, unseeded noise or the device's kernels; decide a stochastic victim on less noise",
    ),
    "silent_success": Flag(
        "an attack returned samples unbroken that it had already broken on the way; they count as broken",
        "let the attack return its best iterate (oracle.best)",
        blocks=False,  # the verdict is taken on what the oracle saw, so the number stands
    ),
    "incomplete_optimisation": Flag(
        "the strongest gradient attack was still gaining on most of the samples that stand when it stopped",
        "give it more steps, a larger step or restarts: the number would fall",
    ),
    "surrogate_gap": Flag(
        "with nothing but the surrogate exchanged, one attack breaks far more than with the victim's own",
        "trust the worst case alone: any number from a single surrogate overstates this network",
        blocks=False,  # the worst case contains the stronger surrogate already
    ),
    "single_surrogate": Flag(
        "every gradient attack went through one and the same surrogate: the number is an upper bound",
        'attack with other estimators, e.g. params = { estimator = "atan(alpha=10)" }: pgd.linf or pgd.l2 on '
        "images, sda.l0 for flips, retime.pgd for retiming, quality.ifgsm on quality models",
        blocks=False,  # an incomplete evaluation, as no_unbounded_check, not a sign of masking
    ),
    "stochastic_without_eot": Flag(
        "the victim draws noise, and no gradient attack averaged its gradients over draws",
        "attack with draws = 10 or more",
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
    "transfer_beats_white_box": Flag(
        "examples made on another network break samples that its own gradient misses, beyond chance",
        "the network's own gradient misleads: attack through a twin, wider surrogates, more steps",
    ),
    "missing_adaptive_attack": Flag(
        "the defense names an adaptive attack that was not run against it",
        "run the attack that robustspike show DEFENSE names; on classifiers autoattack.snn holds it",
    ),
    "certificate_contradicted": Flag(
        "attacks broke samples that were certified: the certificate or the verdict is wrong",
        "report the row with its records: one of the two has a defect",
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
        "add quality.random_sign (in l2: quality.random_gauss) to the suite",
        blocks=False,
    ),
    "no_gradient_attack": Flag(
        "no gradient attack was run: the number is an upper bound from black-box attacks alone",
        "run the full suite",
    ),
}


def cost_rank(flags: str) -> bool:
    """Say whether any of a row's flags, separated by spaces, costs it its rank."""
    return any(FLAGS[flag].blocks for flag in flags.split())


def marked(flags: str) -> str:
    """Return a row's flags for people, those that cost its rank marked with "!"; "none" without any."""
    return ", ".join(flag + "!" * FLAGS[flag].blocks for flag in flags.split()) or "none"


_LAYERS = ("zero_layer:", "sparse_layer:")


def cell_flags(measures: Mapping[str, Any], counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the flags that one cell raises by itself, sorted."""
    raised = set()
    attacked = measures.get("attacked", 0)
    allowed = NOISE_ALLOWANCE * measures.get("noisy", 0)
    if counts["errors"]:
        raised.add("errors")
    if attacked and measures.get("zero_gradient_samples", 0) > ZERO_GRADIENT_SHARE * attacked:
        raised.add("zero_gradient")
    probed = measures.get("probed", 0)
    if probed and measures.get("cosine_milli", 0) < 1000 * GRADIENT_AGREEMENT * probed:
        raised.add("shattered_gradient")
    parts = {key: n for key, n in measures.items() if ":" in key}
    worst_layer = max((n for key, n in parts.items() if key.startswith(_LAYERS)), default=0)
    if worst_layer > LAYER_SHARE * measures.get("layer_probed", 0):
        raised.add("vanishing_layer")
    if measures.get("spikes_without_site", 0):
        raised.add("spikes_without_site")
    if any(key.startswith("failed:") for key in parts):
        raised.add("member_failed")
    if 2 * measures.get("members_applied", 0) < measures.get("members", 0):
        raised.add("few_members")
    if measures.get("non_finite", 0):
        raised.add("non_finite")
    if measures.get("unconfirmed", 0):
        raised.add("unconfirmed")
    if measures.get("unstable", 0) > allowed:
        raised.add("unstable")
    if measures.get("silent", 0) and not measures.get("noisy", 0):  # no query shows the vote of fresh draws
        raised.add("silent_success")
    hits = {key.removeprefix("hits:"): n for key, n in parts.items() if key.startswith("hits:")}
    few = max(1.0, BLACK_BOX_SHARE * attacked)
    if sum(n for name, n in hits.items() if name.startswith(BLACK_BOX_STAGE)) > few:
        raised.add("black_box_beats_white_box")
    if sum(n for name, n in hits.items() if measures.get(f"local:{name}", 0)) > few:
        raised.add("transfer_beats_white_box")
    return tuple(sorted(raised))
