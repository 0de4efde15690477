"""What a record declares about its geometry, its data and its draws, and what older records left unsaid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord


@dataclass(frozen=True)
class Reach:
    """What a table must know about a geometry.

    Args:
        unit: what a distance counts.
        everywhere: whether an attack without a bound can reach every input.
        moves: whether changes are moves of spikes, so that as many are added as are removed.
        natural: whether nobody chooses the changes, so that no gradient could lead to them.
    """

    unit: str = "distance"
    everywhere: bool = True
    moves: bool = False
    natural: bool = False


_BEFORE_GEOMETRIES_SAID = {
    "linf": Reach("largest change of an element"),
    "l2": Reach("Euclidean norm of the change"),
    "l0": Reach("flipped cells"),
    "retime_l0": Reach("moved spikes", everywhere=False, moves=True),
    "retime_l1": Reach("time steps moved, all spikes together", everywhere=False, moves=True),
    "retime_linf": Reach("time steps moved, of the spike that moved farthest", everywhere=False, moves=True),
}

_BEFORE_DATA_SAID = dict.fromkeys(("photopatch_iqa", "photopatch_iqa_2"), "pseudo-MOS (HaarPSI)")
_PATCHES_A_PHOTOGRAPH = 608
"""Of those two data sets, whose ids count the patches photograph by photograph."""

_DRAWS_OF_PROTOCOL_1 = 20


def _declared(record: CellRecord, name: str) -> Any:
    declared = record.parameters.get("declared", {})
    return declared.get(name) if isinstance(declared, Mapping) else None


def reach(record: CellRecord) -> Reach:
    """Return what a record's geometry declared of itself."""
    said = _declared(record, "geometry")
    if not isinstance(said, Mapping):
        return _BEFORE_GEOMETRIES_SAID.get(record.threat.geometry, Reach())
    return Reach(
        str(said.get("unit", "distance")),
        said.get("everywhere") is not False,
        said.get("moves") is True,
        said.get("natural") is True,
    )


def score_label(record: CellRecord) -> str:
    """Return what the labels of a record's data set are where they are no human opinion; else nothing."""
    said = _declared(record, "score_label")
    return said if isinstance(said, str) else _BEFORE_DATA_SAID.get(record.dataset, "")


def source(record: CellRecord, row: SampleRecord) -> float:
    """Return the number of the photograph that a sample was made from; its own where it has none."""
    said = row.extras.get("source", math.nan)
    if not math.isnan(said):
        return said
    return float(row.row // _PATCHES_A_PHOTOGRAPH if record.dataset in _BEFORE_DATA_SAID else row.row)


def draws(record: CellRecord) -> int:
    """Return how many draws of the victim's noise decide one answer; 1 for a deterministic victim."""
    said = _declared(record, "draws")
    if isinstance(said, int) and said > 0:
        return said
    return _DRAWS_OF_PROTOCOL_1 if record.measures.get("noisy") else 1


def training_passes(record: CellRecord) -> tuple[Any, Any]:
    """Return the sample passes that training the weights took, and those of plain training; None: unsaid."""
    passes = _declared(record, "training_passes")
    own, plain = (passes.get(name) if isinstance(passes, Mapping) else None for name in ("own", "plain"))
    return own, plain


def level(record: CellRecord) -> str:
    """Return the level of a standard verdict ("quick", "full"); nothing for an attack without levels."""
    given = record.parameters.get("attack", {})
    said = given.get("level") if isinstance(given, Mapping) else None
    return said if isinstance(said, str) else ""


def attack_name(record: CellRecord) -> str:
    """Return an attack's label in tables; one that has levels always says its own."""
    said = level(record)
    return record.label if not said or f"level={said}" in record.label else f"{record.label} ({said})"


def steps(record: CellRecord) -> int | None:
    """Return the time steps of a record's victim; None where the record does not say."""
    said = _declared(record, "steps")
    return said if isinstance(said, int) else None
