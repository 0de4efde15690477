"""Certificates beside attacks: a column of their own, checked against what attacks broke, never ranked by."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.numbers.stats import wilson
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.owners import Owner
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.text import number

NAN = float("nan")

COLUMNS = {
    "certified": "share of samples that provably no input of the threat model breaks; a dash: no certificate",
    "certified_low": "lower end of its 95 % Wilson interval",
    "certified_high": "upper end of it",
    "certified_by": "the certifier, with its changed parameters",
}

FRAME = {
    "name": "victim, with the first digits of its weights where several nets share a victim's name",
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name, with changed parameters",
    "weights": "sha256 of all parameters and buffers",
    "certified_by": COLUMNS["certified_by"],
    "n": "samples",
    "clean": "samples classified correctly without attack",
    "certified": "samples certified correct",
    "norm": "the norm of its radii",
    "radius": "largest radius that was certified",
    "confidence": "probability that the certificate of one sample holds; 1 for a proof",
}

INTRODUCTION = (
    "*Certified*: the share of samples that provably no perturbation of the section can break (smoothing: "
    "that no perturbation changes the majority vote over fresh draws, with the stated confidence). It is a "
    "lower bound, found without attacks; the worst case is an upper bound; the truth lies between. Ranks "
    "ignore it."
)


def of_classes(record: CellRecord) -> bool:
    """Say whether a record is a certificate on a classifier's answers."""
    return record.task is Task.CERTIFY and record.threat.goal in (Goal.UNTARGETED, Goal.TARGETED)


def of_scores(record: CellRecord) -> bool:
    """Say whether a record is a certificate on a quality model's scores."""
    return record.task is Task.CERTIFY and not of_classes(record)


def row(proofs: Sequence[CellRecord]) -> dict[str, object]:
    """Return the columns of one row: of the certifier that certifies the most samples."""
    if not proofs:
        return dict(zip(COLUMNS, (NAN, NAN, NAN, ""), strict=True))
    best = max(proofs, key=lambda record: (record.counts["robust"], record.label))
    k, n = best.counts["robust"], best.counts["n"]
    return dict(zip(COLUMNS, (k / n, *wilson(k, n), best.label), strict=True))


def frame(groups: Mapping[Owner, Sequence[CellRecord]], names: Mapping[Owner, str]) -> pd.DataFrame:
    """Return one line a certificate: the columns of `FRAME`."""
    lines = []
    for owner, proofs in sorted(groups.items()):
        for record in sorted(proofs, key=lambda r: (r.label, r.seed)):
            radii = [sample.extras.get("radius", NAN) for sample in record.rows]
            values = (
                names[owner],
                *owner,
                record.label,
                record.counts["n"],
                record.counts["clean"],
                record.counts["robust"],
                stated(record).get("norm", ""),
                float(np.max([r for r in radii if r >= 0], initial=0.0)),
                confidence(record),
            )
            lines.append(dict(zip(FRAME, values, strict=True)))
    return pd.DataFrame(lines)


def table(found: pd.DataFrame) -> Table | None:
    """Return every certificate of a section with its n, radius and confidence; None without one."""
    if not len(found):
        return None
    headers = ["victim", "defense", "certified by", "certified of n", "largest radius", "confidence"]
    return Table(
        headers,
        [
            [
                row["name"],
                row["defense"],
                row["certified_by"],
                f"{row['certified']}/{row['n']}",
                f"{row['norm']} {number(row['radius'])}",
                f"{row['confidence']:.6g}",
            ]
            for _, row in found.iterrows()
        ],
    )


def stated(record: CellRecord) -> Mapping[str, object]:
    """Return what a certificate's record says of the certifier: norm and confidence."""
    declared = record.parameters.get("declared", {})
    said = declared.get("certificate", {}) if isinstance(declared, Mapping) else {}
    return said if isinstance(said, Mapping) else {}


def confidence(record: CellRecord) -> float:
    """Return the probability that the certificate of one sample holds; 0 where it is not on record."""
    value = stated(record).get("confidence", 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def contradicted(proofs: Sequence[CellRecord], records: Sequence[CellRecord]) -> bool:
    """Say whether attacks refute a certificate.

    A proof is refuted by one certified sample that was broken. A vote with less than full confidence is
    decided on other draws than the attack was, so there the counts are compared: no more samples may be
    certified than survive.
    """
    if not proofs:
        return False
    broken = {row.row for record in records for row in record.rows if row.status is Status.BROKEN}
    known = {row.row for record in records for row in record.rows if row.status is not Status.WRONG_CLEAN}
    for proof in proofs:
        safe = {row.row for row in proof.rows if row.status is Status.ROBUST}
        if confidence(proof) == 1 and safe & broken:
            return True
        if records and len(safe) > len(known - broken):
            return True
    return False
