"""Tables of minimum-norm attacks: how small a change is enough, by sample and over all attacks."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from robustspike.bench.numbers.stats import bootstrap_median
from robustspike.bench.numbers.stats import rate
from robustspike.bench.numbers.stats import sign_test
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import costs
from robustspike.leaderboard.spikes import BUDGETS
from robustspike.leaderboard.spikes import median
from robustspike.leaderboard.spikes import nearest_successes

COLUMNS = {
    "rank": "rank by median; shared where a paired sign test cannot separate; none where a flag costs it",
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name",
    "n": "samples evaluated",
    "clean": "share of samples classified correctly without attack",
    "clean_low": "lower end of the 95 % Wilson interval of clean",
    "clean_high": "upper end of it",
    "clean_delta": costs.COLUMNS["clean_delta"],
    "success": "share of attacked samples that some attack breaks at any distance",
    "success_low": "lower end of the 95 % Wilson interval of success",
    "success_high": "upper end of it",
    "median_all": "median over attacked samples of the smallest distance of any attack; failures infinite",
    "median_low": "lower end of its 95 % bootstrap interval",
    "median_high": "upper end of it",
    "median_success": "the same median over the broken samples alone",
    **{f"asr@{b}": f"share of attacked samples broken within distance {b}" for b in BUDGETS},
    "energy_nj": "synaptic energy of a clean answer in nanojoules (4.6 pJ a MAC, 0.9 pJ an AC)",
    "energy_ratio": "synaptic energy on the adversarial inputs over that on the same clean inputs",
    "training": costs.COLUMNS["training"],
    "propagations": "forward and backward passes per attacked sample, all attacks together",
    "flags": "signs that the evaluation is incomplete or misleading",
}


def nearest(records: Sequence[CellRecord]) -> dict[int, float]:
    """Return for every attacked sample the smallest distance at which one of the records breaks it."""
    successes = nearest_successes(records)
    return {key: float("inf") if row is None else row.distance for key, row in successes.items()}


def distance_row(records: Sequence[CellRecord], labels: Sequence[str]) -> dict[str, object]:
    """Return the measured columns of one victim and defense (all but names, rank and flags)."""
    distances = nearest(records)
    values = np.array([distances[key] for key in sorted(distances)])
    reached = values[np.isfinite(values)]
    n = records[0].counts["n"]
    low, high = bootstrap_median(values)
    attacked = max((record.cost["attacked"] for record in records), default=0)
    spent = sum(record.cost["forwards"] + record.cost["backwards"] for record in records)
    row: dict[str, object] = {
        "n": n,
        **rate("clean", max(record.counts["clean"] for record in records), n),
        **rate("success", len(reached), len(values)),
        "median_all": median(values),
        "median_low": low,
        "median_high": high,
        "median_success": median(reached),
    }
    for budget in BUDGETS:
        row[f"asr@{budget}"] = float((values <= budget).mean()) if len(values) else float("nan")
    row |= energy(records)
    row["propagations"] = spent / attacked if attacked else 0.0
    for label in labels:
        own = nearest([record for record in records if record.label == label])
        row[f"acc:{label}"] = median(list(own.values()))
    return row


def energy(records: Sequence[CellRecord]) -> dict[str, float]:
    """Return the energy columns: per clean answer, and under attack over clean on the broken samples."""
    total = {
        name: sum(record.measures.get(f"energy_{name}_pj", 0) for record in records)
        for name in ("clean", "broken", "adv")
    }
    answers = sum(record.counts["n"] for record in records if "energy_clean_pj" in record.measures)
    return {
        "energy_nj": total["clean"] / answers / 1000 if answers else float("nan"),
        "energy_ratio": total["adv"] / total["broken"] if total["broken"] else float("nan"),
    }


def separated(farther: Mapping[int, float], nearer: Mapping[int, float], level: float) -> bool:
    """Say whether a paired sign test separates two victims by the distances of shared samples."""
    shared = [key for key in farther if key in nearer]
    wins = sum(farther[key] > nearer[key] for key in shared)
    losses = sum(nearer[key] > farther[key] for key in shared)
    return sign_test(wins, losses) < level


def leads(farther: Mapping[int, float], nearer: Mapping[int, float]) -> bool:
    """Say whether the first has the larger distance on more of the shared samples."""
    shared = [key for key in farther if key in nearer]
    return sum(farther[key] > nearer[key] for key in shared) > sum(
        farther[key] < nearer[key] for key in shared
    )
