"""Flags of a row: what its records show together that none of them shows alone. Pure functions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence

from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.record import given
from robustspike.bench.record.flags import INCOMPLETE_LEAST
from robustspike.bench.record.flags import INCOMPLETE_SHARE
from robustspike.bench.record.flags import SURROGATE_GAP
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import Samples
from robustspike.leaderboard import facts
from robustspike.leaderboard.owners import Owner
from robustspike.leaderboard.owners import owner_of
from robustspike.leaderboard.ranks import is_ahead
from robustspike.leaderboard.verdicts import nearest
from robustspike.leaderboard.verdicts import outcome
from robustspike.leaderboard.verdicts import robust_by_sample

Checks = Mapping[Owner, list[CellRecord]]
"""The unbounded sanity checks of every owner of a row."""


def is_unbounded(record: CellRecord) -> bool:
    """Say whether a record's threat allows the whole input domain: a check, not a competition.

    Any class will do for it: that one given class cannot be reached proves nothing.
    """
    low, high = record.threat.bounds
    eps, goal = record.threat.eps, record.threat.goal
    whole = record.threat.geometry == "linf" and eps is not None and float(eps) >= high - low
    return whole and goal is Goal.UNTARGETED


def row_flags(records: Sequence[CellRecord], checks: Checks) -> list[str]:
    """Return the flags of one victim and defense under one threat model, sorted.

    Those of single cells are computed anew from their measures: what a record says of its flags, a forger
    may have said.

    Args:
        records: its cells.
        checks: the unbounded sanity checks of all victims.
    """
    raised = {flag for record in records for flag in cell_flags(record.measures, record.counts)}
    if any(record.environment.get("attack_from") == "file" for record in records):
        raised.add("unpublished")
    raised |= declared_flags(records)
    tried = [r for r in records if not given.by(r)]  # inputs alone do not say how they were found
    white = [r for r in tried if r.threat.access is Access.WHITE]
    black = [r for r in tried if r.threat.access is not Access.WHITE]
    if not white:
        if not facts.reach(records[0]).natural:
            raised.add("no_gradient_attack")
    else:
        transfer = [r for r in black if r.measures.get("local")]
        if black and beats(white, black):
            raised.add("black_box_beats_white_box")
        if transfer and beats(white, transfer):
            raised.add("transfer_beats_white_box")
        raised |= _optimisation(white)
    if records[0].threat.geometry == "linf":
        unbounded = checks.get(owner_of(records[0]), [])
        if not unbounded:
            raised.add("no_unbounded_check")
        else:
            verdict = robust_by_sample(unbounded)
            classes = 1 + max(int(Samples.of(r.rows).column("label").max(initial=0)) for r in unbounded)
            if sum(verdict.values()) > len(verdict) / max(classes, 2):
                raised.add("unbounded_attack_fails")
    elif _may_always_win(records[0]) and white:
        reached = nearest(white).values()
        if sum(value == float("inf") for value in reached) > 0.01 * len(reached):
            raised.add("unbounded_attack_fails")
    return sorted(raised)


def _may_always_win(record: CellRecord) -> bool:
    """Say whether an unbounded threat lets an attack reach any input, and any wrong answer will do."""
    threat = record.threat
    return threat.is_minimum_norm and facts.reach(record).everywhere and threat.goal is Goal.UNTARGETED


def declared_flags(records: Sequence[CellRecord]) -> set[str]:
    """Return the flags that follow from what victim and defense declare about themselves."""
    declared = records[0].parameters.get("declared", {})
    notes = declared.get("notes", ())
    raised = {"poor_conversion" for note in notes if note.startswith("conversion lost")}
    raised |= {"neurons_in_training_mode" for note in notes if "neurons in training mode" in note}
    white = [record for record in records if record.threat.access is Access.WHITE]
    varied = [r for r in white if r.attack.startswith("autoattack.") or estimators(r) - {"native"}]
    for need in declared.get("adaptive", ()):
        run = {"eot": [r for r in white if _averages(r)], "straight_through": white, "wide_surrogate": varied}
        if not run.get(need, [r for r in records if r.attack == need]):
            raised.add("missing_adaptive_attack")
    return raised


def _optimisation(white: Sequence[CellRecord]) -> set[str]:
    """Return the flags that say whether the gradient attacks were tried hard enough."""
    raised = set()
    if any(r.measures.get("noisy") for r in white) and not any(map(_averages, white)):
        raised.add("stochastic_without_eot")
    if _incomplete(white):
        raised.add("incomplete_optimisation")
    if surrogate_gap(white) > SURROGATE_GAP:
        raised.add("surrogate_gap")
    if has_single_surrogate(white):
        raised.add("single_surrogate")
    return raised


def has_single_surrogate(white: Sequence[CellRecord]) -> bool:
    """Say whether all gradients of a spiking victim came from one and the same estimator."""
    neurons = max(r.parameters.get("declared", {}).get("neurons", 0) for r in white)
    return bool(neurons) and len(set().union(*map(estimators, white))) == 1


def _averages(record: CellRecord) -> bool:
    """Say whether most gradients of a cell were averages over the victim's noise."""
    gradients = record.measures.get("gradients", 0)
    return bool(gradients) and 2 * record.measures.get("averaged_gradients", 0) >= gradients


def _incomplete(white: Sequence[CellRecord]) -> bool:
    """Say whether the attack that leaves the fewest samples was still gaining when it stopped.

    Only for perturbations of pixels: a search that adds flips or moves gains until its budget is used up.
    """
    done = [r for r in white if r.threat.domain is Domain.STATIC and "rising" in r.measures]
    if not done:
        return False
    fewest = min(r.counts["robust"] for r in done)
    return all(_gains(r) for r in done if r.counts["robust"] == fewest)


def _gains(record: CellRecord) -> bool:
    late = record.measures.get("late_hits", 0)
    stood = record.measures.get("standing", 0) + late
    return stood >= INCOMPLETE_LEAST and record.measures["rising"] + late > INCOMPLETE_SHARE * stood


def estimators(record: CellRecord) -> set[str]:
    """Return the gradient estimators of a cell: its attack's, or those that its parts are named for."""
    parts = {key.rpartition("/")[2] for key, n in record.measures.items() if _is_part(key) and n}
    return parts or {str(record.parameters.get("attack", {}).get("estimator", "native"))}


def _is_part(key: str) -> bool:
    """Say whether a measure counts the backwards of a part that is named attack/estimator."""
    return key.startswith("backwards:") and "/" in key


def surrogate_gap(white: Sequence[CellRecord]) -> float:
    """Return the largest share of samples that one attack breaks by exchanging its estimator alone.

    Measured against the victim's own gradient ("native"): over cells that differ in the estimator only, and
    over the parts of an ensemble that do, where the native one came first (it made the most passes, as each
    part sees what the earlier ones left standing).
    """
    gaps = [0.0]
    swaps: dict[str, dict[str, CellRecord]] = defaultdict(dict)
    for record in white:
        given = dict(record.parameters.get("attack", {}))
        if "estimator" in given:
            estimator = str(given.pop("estimator"))
            swaps[json.dumps([record.attack, record.seed, given], sort_keys=True)][estimator] = record
    for group in swaps.values():
        if "native" in group and len(group) > 1:
            own = robust_by_sample([group["native"]])
            left = sum(robust_by_sample(list(group.values())).values())
            gaps.append((sum(own.values()) - left) / len(own))
    for record in white:
        parts: dict[str, dict[str, str]] = defaultdict(dict)
        for key in filter(_is_part, record.measures):
            name = key.removeprefix("backwards:")
            attack, _, estimator = name.partition("/")
            parts[attack][estimator] = name
        for names in parts.values():
            spent = {e: record.measures[f"backwards:{name}"] for e, name in names.items()}
            if spent.get("native", 0) and spent["native"] == max(spent.values()):
                hits = sum(
                    record.measures.get(f"hits:{name}", 0) for e, name in names.items() if e != "native"
                )
                gaps.append(hits / max(1, record.cost["attacked"]))
    return max(gaps)


def beats(white: Sequence[CellRecord], black: Sequence[CellRecord]) -> bool:
    """Say whether attacks without gradients win on significantly more samples than they lose."""
    return is_ahead(outcome(white), outcome(black))
