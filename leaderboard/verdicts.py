"""What the records of one row say together, sample by sample. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from robustspike.bench.contract.specs import Status
from robustspike.bench.record import given
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.bench.record.schema import Samples
from robustspike.leaderboard import facts


def robust_by_sample(records: Sequence[CellRecord]) -> dict[int, bool]:
    """Return for every sample whether it is robust against all the records' attacks together."""
    cells = [Samples.of(record.rows) for record in records]
    columns = [(samples.column("row"), samples.is_status(Status.ROBUST)) for samples in cells]
    if columns and all(np.array_equal(rows, columns[0][0]) for rows, _ in columns):
        rows, robust = columns[0][0], np.logical_and.reduce([holds for _, holds in columns])
        verdict = dict(zip(rows.tolist(), robust.tolist(), strict=True))
        if len(verdict) == len(rows):
            return verdict
    verdict = {}
    for rows, robust in columns:
        for row, holds in zip(rows.tolist(), robust.tolist(), strict=True):
            verdict[row] = verdict.get(row, True) and holds
    return verdict


def nearest_successes(records: Sequence[CellRecord]) -> dict[int, SampleRecord | None]:
    """Return for every attacked sample the nearest success of the records, or None where all failed."""
    found: dict[int, tuple[float, SampleRecord | None]] = {}
    for record in records:
        samples = Samples.of(record.rows)
        attacked = ~samples.is_status(Status.WRONG_CLEAN, Status.ERROR)
        broken, distances = samples.is_status(Status.BROKEN), samples.column("distance")
        for place in np.flatnonzero(attacked).tolist():
            row = int(samples.column("row")[place])
            known, _ = found.setdefault(row, (math.inf, None))
            if broken[place] and (found[row][1] is None or distances[place] < known):
                found[row] = float(distances[place]), samples[place]
    return {row: success for row, (_, success) in found.items()}


def nearest(records: Sequence[CellRecord]) -> dict[int, float]:
    """Return for every attacked sample the smallest distance at which one of the records breaks it."""
    successes = nearest_successes(records)
    return {key: math.inf if row is None else row.distance for key, row in successes.items()}


def outcome(records: Sequence[CellRecord]) -> dict[int, float]:
    """Return for every sample how robust it is under all the records together, larger is more.

    Without a bound the distance that it takes to break it; within one, whether it holds.
    """
    if records[0].threat.is_minimum_norm:
        return nearest(records)
    return {key: float(held) for key, held in robust_by_sample(records).items()}


def credits(records: Sequence[CellRecord]) -> list[str]:
    """Say, of each who handed in inputs alone, on how many samples they beat all else that was tried."""
    found = []
    for who in sorted({given.by(record) for record in records} - {""}):
        own = [record for record in records if given.by(record) == who]
        others = [record for record in records if given.by(record) != who]
        if others:
            before, now = outcome(others), outcome(records)
            fallen = sum(now[sample] < value for sample, value in before.items())
            where = " ".join(sorted({given.source(record) for record in own} - {""}))
            found.append(f"{fallen} samples fall to inputs by {who} alone" + (f": {where}" if where else ""))
    return found


def propagations(records: Sequence[CellRecord], samples: int) -> float:
    """Return the forward and backward passes a sample, of all the records' attacks together."""
    spent = sum(record.cost["forwards"] + record.cost["backwards"] for record in records)
    return spent / samples if samples else 0.0


def attacked(records: Sequence[CellRecord]) -> int:
    """Return how many samples were attacked."""
    return max((record.cost["attacked"] for record in records), default=0)


ENERGY = {
    "energy_nj": "synaptic energy of a clean answer in nanojoules (4.6 pJ a MAC, 0.9 pJ an AC), all draws "
    "that decide it; inputs that are zero cost nothing, the first layer is paid at every step",
    "energy_once_nj": "the same with the first layer paid once for all steps",
    "energy_dense_nj": "the same with every input of a layer on real values paid, zero or not",
    "energy_dense_once_nj": "both: every input paid, the first layer once",
    "energy_ratio": "synaptic energy on the adversarial inputs over that on the same clean inputs",
    "draws": "draws of the victim's noise that decide an answer by their vote; 1: deterministic",
}

_OF_ONE_ANSWER = {"energy_nj": "clean", "energy_once_nj": "once", "energy_dense_nj": "dense"}
_OF_ONE_ANSWER["energy_dense_once_nj"] = "dense_once"


def energy(records: Sequence[CellRecord]) -> dict[str, float]:
    """Return the columns of `ENERGY`; NaN where no record measured one."""
    draws = max(map(facts.draws, records))
    found = {}
    for column, name in _OF_ONE_ANSWER.items():
        known = [r for r in records if f"energy_{name}_pj" in r.measures]
        answers = sum(record.counts["n"] for record in known)
        spent = sum(record.measures[f"energy_{name}_pj"] for record in known)
        found[column] = draws * spent / answers / 1000 if answers else math.nan
    total = {
        name: sum(record.measures.get(f"energy_{name}_pj", 0) for record in records)
        for name in ("broken", "adv")
    }
    ratio = total["adv"] / total["broken"] if total["broken"] else math.nan
    return found | {"energy_ratio": ratio, "draws": draws}


SINGLE = {
    "clean_single": "for a vote over draws: accuracy of one draw without attack",
    "worst_case_single": "for a vote over draws: accuracy of one draw on each sample's worst input",
}


def single_draw(records: Sequence[CellRecord]) -> dict[str, float]:
    """Return the columns of `SINGLE`: NaN for a deterministic victim, or where no record says."""
    shares: dict[str, dict[int, float]] = {"right_clean": {}, "right_attacked": {}}
    for record in records:
        samples = Samples.of(record.rows)
        for name in shares.keys() & {*samples.names}:
            found, values = shares[name], samples.column(name).tolist()
            for row, share in zip(samples.column("row").tolist(), values, strict=True):
                if not math.isnan(share):
                    found[row] = min(found.get(row, 1.0), share)
    clean, attacked_ = (list(found.values()) for found in shares.values())
    return {
        "clean_single": sum(clean) / len(clean) if clean else math.nan,
        "worst_case_single": sum(attacked_) / len(attacked_) if attacked_ else math.nan,
    }
