"""What must be run against every built-in defense, why, and that a run without it is called incomplete."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Access
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.training.defense import DefenseBase
from robustspike.leaderboard.sections import build
from tests.support.records import make_record

SURROGATE_LOSS = "its penalty is measured with one surrogate, and lowering it may shrink that one only"
SURROGATE_POINTS = "its training points come from one surrogate, and others break such nets where it fails"
SURROGATE_PLACE = "it moves potentials or currents away from where the training surrogate has a slope"
NOISE = "it draws noise at test time: one draw of a gradient says little"
FILTER = "it rounds or drops inputs: attacks must differentiate past it"

EXPECTED: dict[str, tuple[dict[str, str], str]] = {
    # name: what it declares with the reason; or the reason why it declares nothing
    "background_filter": ({"straight_through": FILTER}, ""),
    "dsd": ({"wide_surrogate": SURROGATE_POINTS}, ""),
    "feel": ({"wide_surrogate": SURROGATE_PLACE}, ""),
    "fgsm_at": ({"wide_surrogate": SURROGATE_POINTS}, ""),
    "gaussian": ({}, "trains on noise: no gradient enters the training, and nothing changes at test time"),
    "gradient_penalty": ({"wide_surrogate": SURROGATE_LOSS}, ""),
    "hosnn": ({"wide_surrogate": SURROGATE_PLACE}, ""),
    "iqa_at": ({}, "for quality models, whose table asks for gradient attacks itself (no_gradient_attack)"),
    "jpeg": ({"straight_through": FILTER}, ""),
    "mart": ({"wide_surrogate": SURROGATE_POINTS}, ""),
    "mask_filter": ({"straight_through": FILTER, "dvs_mask_dash.l0": "the attack made for such filters"}, ""),
    "mpd_sgr": ({"wide_surrogate": SURROGATE_PLACE}, ""),
    "median_smoothing": ({"eot": NOISE}, ""),
    "mppd": ({"wide_surrogate": SURROGATE_POINTS}, ""),
    "mppd_gaussian": ({"wide_surrogate": SURROGATE_PLACE}, ""),
    "none": ({}, "plain training: the flags of every row are all there is to ask"),
    "nt": ({"wide_surrogate": SURROGATE_LOSS}, ""),
    "pgd_at": ({"wide_surrogate": SURROGATE_POINTS}, ""),
    "purify_blur": ({}, "has a gradient of its own, which attacks go through"),
    "purify_crop": ({}, "has a gradient of its own, which attacks go through"),
    "purify_flip": ({}, "has a gradient of its own, which attacks go through"),
    "purify_median": ({}, "has a gradient of its own, which attacks go through"),
    "purify_noise": ({"eot": NOISE}, ""),
    "purify_quantise": ({"straight_through": FILTER}, ""),
    "purify_resize": ({}, "has a gradient of its own, which attacks go through"),
    "purify_rotate": ({}, "has a gradient of its own, which attacks go through"),
    "purify_unsharp": ({}, "has a gradient of its own, which attacks go through"),
    "rate_smoothing": ({"eot": NOISE}, ""),
    "robust_conversion": ({"wide_surrogate": SURROGATE_POINTS}, ""),
    "rsc": ({"eot": NOISE}, ""),
    "snn_rat": ({"wide_surrogate": SURROGATE_POINTS}, ""),
    "sr": ({"wide_surrogate": SURROGATE_LOSS}, ""),
    "sr_star": ({"wide_surrogate": SURROGATE_LOSS}, ""),
    "stog": ({"eot": NOISE, "wide_surrogate": SURROGATE_POINTS}, ""),
    "tgo": ({"eot": NOISE, "wide_surrogate": SURROGATE_PLACE}, ""),
    "trades": ({"wide_surrogate": SURROGATE_POINTS}, ""),
    "tv_l1": ({"wide_surrogate": SURROGATE_POINTS}, ""),
}

BUILT_IN = [
    name
    for name in registry("defenses").names()
    if registry("defenses").entry(name).distribution == "robustspike"
]


def declaring(needs: tuple[str, ...]) -> CellRecord:
    record = make_record(measures={"gradients": 10, "averaged_gradients": 0, "noisy": int("eot" in needs)})
    return replace(record, parameters={"declared": {"adaptive": list(needs)}, "attack": {}})


def answering(need: str) -> CellRecord:
    """A record of the attack that a need asks for."""
    record = make_record(measures={"gradients": 10, "averaged_gradients": 10 * (need == "eot")})
    if need == "wide_surrogate":
        return replace(record, key=need, attack="autoattack.snn", label="autoattack.snn")
    if need in ("eot", "straight_through"):
        return replace(record, key=need, label="pgd.linf[steps=9]")
    return replace(record, key=need, attack=need, label=need)


def is_incomplete(*records: CellRecord) -> bool:
    (section,) = build(records)
    return "missing_adaptive_attack" in section.frame["flags"][0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_defense_says_what_must_be_run_against_it(name: str) -> None:
    rule: DefenseBase = registry("defenses").get(name)
    needs, why_none = EXPECTED[name]
    assert rule.spec.adaptive == tuple(needs)
    assert bool(needs) != bool(why_none)
    assert ("eot" in needs) == rule.spec.stochastic
    assert ("straight_through" in needs) == rule.spec.hides_gradient
    black_box = replace(
        declaring(rule.spec.adaptive), threat=replace(make_record().threat, access=Access.SCORE)
    )
    assert is_incomplete(black_box) == bool(needs)
    assert not is_incomplete(declaring(rule.spec.adaptive), *map(answering, needs))
    for need in set(needs) - {"straight_through"}:  # which any gradient attack answers
        assert is_incomplete(declaring(rule.spec.adaptive), *(answering(n) for n in needs if n != need))
