"""Records to tables: per-sample worst case, intervals, shared ranks, flags. A pure function.

A section is one protocol: task, data (by digest), threat model, shard size. Rows of different
sections are never compared, and a section never mixes protocols, eps or data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from robustspike.bench.contracts import Access
from robustspike.bench.contracts import Status
from robustspike.bench.contracts import Task
from robustspike.bench.flags import FLAGS
from robustspike.bench.records import CellRecord
from robustspike.bench.stats import sign_test
from robustspike.bench.stats import wilson

SIGNIFICANCE = 0.05
"""Two rows share a rank where the paired test's p-value is not below this."""

COLUMNS = {
    "rank": "rank by worst case; shared where a paired test cannot separate; none for flagged rows",
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name",
    "n": "samples evaluated",
    "clean": "share of samples classified correctly without attack",
    "worst_case": "share of samples that stay correct under every attack of the section",
    "low": "lower end of the 95 % Wilson interval of worst_case",
    "high": "upper end of it",
    "asr": "attack success rate: broken samples over samples correct without attack",
    "propagations": "forward and backward passes per attacked sample, all attacks together",
    "flags": "signs that the evaluation is incomplete or misleading",
}


@dataclass(frozen=True)
class Section:
    """One comparable group of rows.

    Args:
        title: data set, threat model, samples.
        task: what the victims do.
        frame: one row per victim and defense, columns of `COLUMNS` in order, with one column
            "acc:LABEL" per attack before "flags". Shares are floats in [0, 1].
    """

    title: str
    task: Task
    frame: pd.DataFrame


@dataclass(frozen=True)
class _Group:
    """All records of one victim and defense in one section."""

    victim: str
    defense: str
    records: tuple[CellRecord, ...]


def is_unbounded(record: CellRecord) -> bool:
    """Say whether a record's threat allows the whole input domain: a check, not a competition."""
    low, high = record.threat.bounds
    eps = record.threat.eps
    return record.threat.geometry == "linf" and eps is not None and float(eps) >= high - low


def _section_key(record: CellRecord) -> tuple[str, ...]:
    return (
        str(record.task),
        record.dataset,
        record.split,
        record.digests["data"],
        str(record.threat.domain),
        record.threat.label,
        str(record.shard),
    )


def sections(records: Iterable[CellRecord]) -> list[Section]:
    """Build the tables of the classification records.

    Args:
        records: finished cells, from one or several folders; a key that comes twice counts once.
    """
    unique = {record.key: record for record in records if record.task is Task.CLASSIFY}
    ordered = [unique[key] for key in sorted(unique)]
    checks: dict[tuple[str, str, str], list[CellRecord]] = defaultdict(list)
    grouped: dict[tuple[str, ...], list[CellRecord]] = defaultdict(list)
    for record in ordered:
        if is_unbounded(record):
            checks[(record.victim, record.defense, record.digests["weights"])].append(record)
        else:
            grouped[_section_key(record)].append(record)
    made = []
    for key in sorted(grouped, key=lambda k: (k[0], k[1], k[4], _threat_order(grouped[k][0]), k)):
        members = grouped[key]
        first = members[0]
        title = f"{first.dataset} ({first.split}, n = {first.samples}), {first.threat.label}"
        made.append(Section(title, first.task, _frame(members, checks)))
    return made


def _threat_order(record: CellRecord) -> tuple[str, float]:
    eps = record.threat.eps
    return record.threat.geometry, float("inf") if eps is None else float(eps)


def robust_by_sample(records: Sequence[CellRecord]) -> dict[int, bool]:
    """Return for every sample whether it is robust against all the records' attacks together."""
    verdict: dict[int, bool] = {}
    for record in records:
        for row in record.rows:
            verdict[row.row] = verdict.get(row.row, True) and row.status is Status.ROBUST
    return verdict


def _frame(
    members: Sequence[CellRecord], checks: dict[tuple[str, str, str], list[CellRecord]]
) -> pd.DataFrame:
    by_row: dict[tuple[str, str], list[CellRecord]] = defaultdict(list)
    for record in members:
        by_row[(record.victim, record.defense)].append(record)
    groups = [_Group(victim, defense, tuple(rs)) for (victim, defense), rs in sorted(by_row.items())]
    labels = sorted({record.label for record in members})
    rows = []
    verdicts: dict[tuple[str, str], dict[int, bool]] = {}
    for group in groups:
        verdict = robust_by_sample(group.records)
        verdicts[(group.victim, group.defense)] = verdict
        rows.append(_row(group, verdict, labels, checks))
    frame = pd.DataFrame(rows)
    frame["ranked"] = [not _blocked(flags) for flags in frame["flags"]]
    frame = frame.sort_values(
        ["ranked", "worst_case", "clean", "victim", "defense"],
        ascending=[False, False, False, True, True],
        ignore_index=True,
    )
    frame.insert(0, "rank", _ranks(frame, verdicts))
    return frame.drop(columns="ranked")


def _blocked(flags: str) -> bool:
    return any(FLAGS[flag].blocks for flag in flags.split() if flag in FLAGS)


def _row(
    group: _Group,
    verdict: dict[int, bool],
    labels: Sequence[str],
    checks: dict[tuple[str, str, str], list[CellRecord]],
) -> dict[str, object]:
    n, robust = len(verdict), sum(verdict.values())
    clean = max(record.counts["clean"] for record in group.records)
    low, high = wilson(robust, n)
    attacked = max((record.cost["attacked"] for record in group.records), default=0)
    spent = sum(record.cost["forwards"] + record.cost["backwards"] for record in group.records)
    row: dict[str, object] = {
        "victim": group.victim,
        "defense": group.defense,
        "n": n,
        "clean": clean / n,
        "worst_case": robust / n,
        "low": low,
        "high": high,
        "asr": (clean - robust) / clean if clean else float("nan"),
        "propagations": spent / attacked if attacked else 0.0,
    }
    for label in labels:
        of_label = [record for record in group.records if record.label == label]
        share = sum(robust_by_sample(of_label).values()) / n if of_label else float("nan")
        row[f"acc:{label}"] = share
    row["flags"] = " ".join(_flags(group, checks))
    return row


def _flags(group: _Group, checks: dict[tuple[str, str, str], list[CellRecord]]) -> list[str]:
    raised = {flag for record in group.records for flag in record.flags}
    white = [r for r in group.records if r.threat.access is Access.WHITE]
    black = [r for r in group.records if r.threat.access is not Access.WHITE]
    if not white:
        raised.add("no_gradient_attack")
    elif black:
        held, fell = robust_by_sample(white), robust_by_sample(black)
        only_black = sum(held[i] and not fell[i] for i in held if i in fell)
        only_white = sum(fell[i] and not held[i] for i in held if i in fell)
        if only_black > only_white and sign_test(only_black, only_white) < SIGNIFICANCE:
            raised.add("black_box_beats_white_box")
    weights = group.records[0].digests["weights"]
    unbounded = checks.get((group.victim, group.defense, weights), [])
    if not unbounded:
        raised.add("no_unbounded_check")
    else:
        verdict = robust_by_sample(unbounded)
        classes = 1 + max(int(row.label) for record in unbounded for row in record.rows)
        chance = len(verdict) / max(classes, 2)
        if sum(verdict.values()) > chance:
            raised.add("unbounded_attack_fails")
    return sorted(raised)


def _ranks(frame: pd.DataFrame, verdicts: dict[tuple[str, str], dict[int, bool]]) -> list[int | None]:
    """Rank rows; a row shares the rank of its group's leader where the sign test cannot separate them."""
    ranks: list[int | None] = []
    leader: dict[int, bool] | None = None
    leading = 0
    for position, row in enumerate(frame.itertuples(index=False), start=1):
        if not row.ranked:
            ranks.append(None)
            continue
        own = verdicts[(str(row.victim), str(row.defense))]
        if leader is None or _separated(leader, own):
            leader, leading = own, position
        ranks.append(leading)
    return ranks


def _separated(better: dict[int, bool], worse: dict[int, bool]) -> bool:
    wins = sum(better[i] and not worse[i] for i in better if i in worse)
    losses = sum(worse[i] and not better[i] for i in better if i in worse)
    return sign_test(wins, losses) < SIGNIFICANCE
