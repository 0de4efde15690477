"""Victims measured as a small suite would measure them, for tests of flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from robustspike.bench.api import Access
from robustspike.bench.api import Budget
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Split
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry
from robustspike.bench.attack.fitting import domains_of
from robustspike.bench.attack.fitting import refused_gradient
from robustspike.bench.attack.saving import sample_records
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import count
from robustspike.bench.record.schema import digest
from robustspike.bench.training.weights import plain
from robustspike.leaderboard.sections import build
from tests.support.records import make_record

Attacks = Sequence[tuple[str, dict[str, Any], Fraction | None]]

TENTH = Fraction(1, 10)
SMALL: Attacks = (
    ("pgd.linf", {"steps": 10}, TENTH),
    ("pgd.linf", {"steps": 10, "estimator": "triangle(gamma=0.5)"}, TENTH),
    ("noise", {}, TENTH),
    ("square.linf", {}, TENTH),
    ("pgd.linf", {"steps": 20}, Fraction(1)),
)
"""What a small suite would ask for, with the sanity check over the whole domain."""


def cell(victim: ModuleVictim, attack: Any, eps: Fraction | None, data: Split) -> CellRecord:
    """Measure one cell as a run would."""
    budget = Budget(forwards=150, backwards=150)
    access, domain = Access(attack.spec.access), victim.spec.domain
    geometry = next(g for g in attack.spec.geometries if domain in (domains_of(g) or [domain]))
    bounds = victim.spec.bounds
    threat = ThreatModel(
        domain=domain, geometry=geometry, eps=eps, bounds=bounds, access=access, budget=budget
    )
    shard = evaluate_shard(victim, attack, threat, data.x, data.y, data.ids)
    rows = tuple(sample_records(shard))
    counts = count(rows)
    return replace(
        make_record("r" * len(rows), victim="v", attack=attack.spec.name, eps=eps, access=access),
        key=digest([attack.spec.name, plain(attack), str(eps)]),
        rows=rows,
        counts=counts,
        threat=threat,
        parameters={"attack": plain(attack), "declared": {"neurons": len(victim.neurons)}},
        measures=shard.counts,
        flags=cell_flags(shard.counts, counts),
        cost={"attacked": shard.counts.get("attacked", 0), "forwards": 1, "backwards": 1},
    )


def measured(victim: ModuleVictim, data: Split, attacks: Attacks = SMALL) -> tuple[set[str], Any]:
    """Attack a victim as a small suite would; return the flags of its row, and the row."""
    asked = [(registry("attacks").get(name, **given), eps) for name, given, eps in attacks]
    records = [
        cell(victim, attack, eps, data) for attack, eps in asked if refused_gradient(attack, victim) is None
    ]
    (section,) = build(records)
    row = section.frame.iloc[0]
    return set(str(row["flags"]).split()), row
