"""Records to tables: per-sample worst case, intervals, shared ranks, flags. A pure function.

A section is one protocol: task, data (by digest), threat model, shard size. Rows of different
sections are never compared, and a section never mixes protocols, eps or data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field

import pandas as pd

from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Task
from robustspike.bench.numbers.stats import rate
from robustspike.bench.numbers.stats import sign_test
from robustspike.bench.numbers.stats import wilson
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.flags import cost_rank
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import certificates
from robustspike.leaderboard import costs
from robustspike.leaderboard import distances
from robustspike.leaderboard import protocol
from robustspike.leaderboard import spikes
from robustspike.leaderboard.row_flags import SIGNIFICANCE
from robustspike.leaderboard.row_flags import Checks
from robustspike.leaderboard.row_flags import beats
from robustspike.leaderboard.row_flags import is_unbounded
from robustspike.leaderboard.row_flags import robust_by_sample
from robustspike.leaderboard.row_flags import row_flags
from robustspike.leaderboard.row_flags import row_owner

COLUMNS = {
    "rank": "rank by worst case; shared where a paired test cannot separate; none where a flag costs it",
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name",
    "n": "samples evaluated",
    "clean": "share of samples classified correctly without attack",
    "clean_low": "lower end of the 95 % Wilson interval of clean",
    "clean_high": "upper end of it",
    "clean_delta": costs.COLUMNS["clean_delta"],
    "worst_case": "share of samples that stay correct under every attack of the section",
    "low": "lower end of the 95 % Wilson interval of worst_case",
    "high": "upper end of it",
    **certificates.COLUMNS,
    "asr": "attack success rate: broken samples over samples correct without attack",
    "asr_low": "lower end of the 95 % Wilson interval of asr",
    "asr_high": "upper end of it",
    "energy_nj": distances.COLUMNS["energy_nj"],
    "energy_ratio": distances.COLUMNS["energy_ratio"],
    "training": costs.COLUMNS["training"],
    "propagations": "forward and backward passes per attacked sample, all attacks together",
    "flags": "signs that the evaluation is incomplete or misleading",
}


@dataclass(frozen=True)
class Section:
    """One comparable group of rows.

    Args:
        title: data set, threat model, samples.
        kind: "accuracy" (bounded threats), "distance" (minimum-norm threats), "quality" or "visibility".
        frame: one row per victim and defense: the columns of `COLUMNS` (of `distances.COLUMNS` for
            distances) in order, with one column "acc:LABEL" per attack before "flags": the accuracy, or
            the median distance, under that attack alone. Shares are floats in [0, 1].
        attacks: what every attack had to change (`spikes.COLUMNS`), for minimum-norm threats and on
            binary frames; else empty.
        curves: success over budget of every attack (`spikes.CURVE_COLUMNS`), for minimum-norm threats.
        geometry: name of the geometry of its threat.
        targeted: whether success is one given class.
        certificates: what was certified (`certificates.FRAME`); empty without certificates.
        protocol: the rules and suites that it was measured by, a line.
    """

    title: str
    kind: str
    frame: pd.DataFrame
    attacks: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    geometry: str = ""
    targeted: bool = False
    certificates: pd.DataFrame = field(default_factory=pd.DataFrame)
    protocol: str = ""


def sections(records: Iterable[CellRecord]) -> list[Section]:
    """Build the tables of the classification records and of certificates on classifiers.

    Args:
        records: finished cells, from one or several folders; a key that comes twice counts once.
    """
    unique = {record.key: record for record in records if record.task in (Task.CLASSIFY, Task.CERTIFY)}
    apart = protocol.competing(unique.values())
    checks: Checks = defaultdict(list)
    grouped: dict[tuple[str, ...], list[CellRecord]] = defaultdict(list)
    for record in (unique[key] for key in sorted(unique)):
        if is_unbounded(record) and record.task is Task.CLASSIFY:
            checks[row_owner(record)].append(record)
        else:
            grouped[protocol.rules(record, apart)].append(record)
    made = []
    for key in sorted(grouped, key=lambda k: (k[0], *_threat_order(grouped[k][0]), k)):
        first = grouped[key][0]
        title = f"{first.dataset} ({first.split}, n = {first.samples}), {first.threat.label}"
        title += protocol.remarks(first, apart)
        kind = "distance" if first.threat.is_minimum_norm else "accuracy"
        groups = _by_owner([record for record in grouped[key] if record.task is Task.CLASSIFY])
        proofs = _by_owner([record for record in grouped[key] if record.task is Task.CERTIFY])
        frame = _frame(groups, proofs, checks, kind)
        owners = zip(frame["victim"], frame["defense"], strict=True)
        groups = {owner: groups[owner] for owner in owners if owner in groups}
        made.append(
            Section(
                title,
                kind,
                frame,
                attacks=spikes.attack_frame(groups, beats=beats) if spikes.applies(first) else pd.DataFrame(),
                curves=spikes.curve_frame(groups) if kind == "distance" else pd.DataFrame(),
                geometry=first.threat.geometry,
                targeted=first.threat.goal is Goal.TARGETED,
                certificates=certificates.frame(proofs),
                protocol=protocol.line(grouped[key]),
            )
        )
    return made


def _threat_order(record: CellRecord) -> tuple[str, str, float, bool]:
    threat = record.threat
    size = float("inf") if threat.eps is None else float(threat.eps)
    return str(threat.domain), threat.geometry, size, threat.goal is Goal.TARGETED


Groups = dict[tuple[str, str], list[CellRecord]]
"""The records of every victim and defense."""


def _by_owner(members: Sequence[CellRecord]) -> Groups:
    groups: Groups = defaultdict(list)
    for record in members:
        groups[(record.victim, record.defense)].append(record)
    return groups


def _frame(groups: Groups, proofs: Groups, checks: Checks, kind: str) -> pd.DataFrame:
    labels = sorted({record.label for members in groups.values() for record in members})
    measure = distances.distance_row if kind == "distance" else accuracy_row
    rows = []
    for owner in sorted(groups.keys() | proofs.keys()):
        records = groups.get(owner, [])
        proven = certificates.of_same_weights(proofs.get(owner, []), records)
        row: dict[str, object] = {"victim": owner[0], "defense": owner[1]}
        row |= measure(records, labels) if records else _unattacked(proven[0], labels)
        row |= certificates.row(proven) | {"training": costs.training(records or proven)}
        flags = set(row_flags(records, checks)) if records else {"no_gradient_attack"}
        flags |= {flag for record in proven for flag in cell_flags(record.measures, record.counts)}
        if certificates.contradicted(proven, records):
            flags.add("certificate_contradicted")
        rows.append(row | {"flags": " ".join(sorted(flags))})
    costs.add_delta(rows)
    frame = pd.DataFrame(rows)
    frame["ranked"] = [not cost_rank(flags) for flags in frame["flags"]]
    value = "median_all" if kind == "distance" else "worst_case"
    frame = frame.sort_values(
        ["ranked", value, "clean", "victim", "defense"],
        ascending=[False, False, False, True, True],
        ignore_index=True,
    )
    frame.insert(0, "rank", _ranks(frame, groups, kind))
    columns = distances.COLUMNS if kind == "distance" else COLUMNS
    attacks = [c for c in frame.columns if c.startswith("acc:")]
    return frame[[c for c in columns if c != "flags"] + attacks + ["flags"]]


def _unattacked(proof: CellRecord, labels: Sequence[str]) -> dict[str, object]:
    """Return the measured columns of a victim that was certified and never attacked."""
    n = proof.counts["n"]
    unknown = ("worst_case", "low", "high", "asr", "asr_low", "asr_high", "energy_nj", "energy_ratio")
    row: dict[str, object] = {"n": n, **rate("clean", proof.counts["clean"], n), "propagations": 0.0}
    return row | dict.fromkeys([*unknown, *(f"acc:{label}" for label in labels)], float("nan"))


def accuracy_row(records: Sequence[CellRecord], labels: Sequence[str]) -> dict[str, object]:
    """Return the measured columns of one victim and defense (all but names, rank and flags)."""
    verdict = robust_by_sample(records)
    n, robust = len(verdict), sum(verdict.values())
    clean = max(record.counts["clean"] for record in records)
    low, high = wilson(robust, n)
    attacked = max((record.cost["attacked"] for record in records), default=0)
    spent = sum(record.cost["forwards"] + record.cost["backwards"] for record in records)
    row: dict[str, object] = {
        "n": n,
        **rate("clean", clean, n),
        "worst_case": robust / n,
        "low": low,
        "high": high,
        **rate("asr", clean - robust, clean),
        **distances.energy(records),
        "propagations": spent / attacked if attacked else 0.0,
    }
    for label in labels:
        of_label = [record for record in records if record.label == label]
        share = sum(robust_by_sample(of_label).values()) / n if of_label else float("nan")
        row[f"acc:{label}"] = share
    return row


def _ranks(frame: pd.DataFrame, groups: Groups, kind: str) -> list[int | None]:
    """Rank rows; a row shares the rank of its group's leader where the sign test cannot separate them."""
    ranks: list[int | None] = []
    leader: list[CellRecord] | None = None
    leading = 0
    for position, row in enumerate(frame.itertuples(index=False), start=1):
        if not row.ranked:
            ranks.append(None)
            continue
        own = groups[(str(row.victim), str(row.defense))]
        if leader is None or _separated(leader, own, kind):
            leader, leading = own, position
        ranks.append(leading)
    return ranks


def _separated(better: Sequence[CellRecord], worse: Sequence[CellRecord], kind: str) -> bool:
    if kind == "distance":
        return distances.separated(distances.nearest(better), distances.nearest(worse), SIGNIFICANCE)
    first, second = robust_by_sample(better), robust_by_sample(worse)
    wins = sum(first[i] and not second[i] for i in first if i in second)
    losses = sum(second[i] and not first[i] for i in first if i in second)
    return sign_test(wins, losses) < SIGNIFICANCE
