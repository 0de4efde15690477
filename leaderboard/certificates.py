"""Certificates beside attacks: a column of their own, checked against what attacks broke, never ranked by."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustspike.bench.contract.specs import Status
from robustspike.bench.numbers.stats import wilson
from robustspike.bench.record.schema import CellRecord

NAN = float("nan")

COLUMNS = {
    "certified": "share of samples that provably no input of the threat model breaks; a dash: no certificate",
    "certified_low": "lower end of its 95 % Wilson interval",
    "certified_high": "upper end of it",
    "certified_by": "the certifier, with its changed parameters",
}

FRAME = {
    "victim": "registry name, changed parameters, training seed",
    "defense": "registry name, with changed parameters",
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


def of_same_weights(proofs: Sequence[CellRecord], records: Sequence[CellRecord]) -> list[CellRecord]:
    """Return the certificates on weights that were attacked; all of them where nothing was."""
    attacked = {record.digests["weights"] for record in records}
    return [proof for proof in proofs if not attacked or proof.digests["weights"] in attacked]


def row(proofs: Sequence[CellRecord]) -> dict[str, object]:
    """Return the columns of one victim and defense: of the certifier that certifies the most samples."""
    if not proofs:
        return dict(zip(COLUMNS, (NAN, NAN, NAN, ""), strict=True))
    best = max(proofs, key=lambda record: (record.counts["robust"], record.label))
    k, n = best.counts["robust"], best.counts["n"]
    return dict(zip(COLUMNS, (k / n, *wilson(k, n), best.label), strict=True))


def frame(groups: Mapping[tuple[str, str], Sequence[CellRecord]]) -> pd.DataFrame:
    """Return one line a certificate: the columns of `FRAME`."""
    lines = []
    for (victim, defense), proofs in sorted(groups.items()):
        for record in sorted(proofs, key=lambda r: (r.label, r.seed)):
            radii = [sample.extras.get("radius", NAN) for sample in record.rows]
            values = (
                victim,
                defense,
                record.label,
                record.counts["n"],
                record.counts["clean"],
                record.counts["robust"],
                _stated(record).get("norm", ""),
                float(np.max([r for r in radii if r >= 0], initial=0.0)),
                confidence(record),
            )
            lines.append(dict(zip(FRAME, values, strict=True)))
    return pd.DataFrame(lines)


def _stated(record: CellRecord) -> Mapping[str, object]:
    declared = record.parameters.get("declared", {})
    stated = declared.get("certificate", {}) if isinstance(declared, Mapping) else {}
    return stated if isinstance(stated, Mapping) else {}


def confidence(record: CellRecord) -> float:
    """Return the probability that the certificate of one sample holds; 0 where it is not on record."""
    value = _stated(record).get("confidence", 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def contradicted(proofs: Sequence[CellRecord], records: Sequence[CellRecord]) -> bool:
    """Say whether attacks refute a certificate.

    A proof is refuted by one certified sample that was broken. A vote with less than full confidence is
    decided on other draws than the attack was, so there the counts are compared: no more samples may be
    certified than survive.
    """
    broken = {row.row for record in records for row in record.rows if row.status is Status.BROKEN}
    known = {row.row for record in records for row in record.rows if row.status is not Status.WRONG_CLEAN}
    for proof in proofs:
        safe = {row.row for row in proof.rows if row.status is Status.ROBUST}
        if confidence(proof) == 1 and safe & broken:
            return True
        if records and len(safe) > len(known - broken):
            return True
    return False
