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


_WITHOUT_TIME = ("ann_cnn.", "causal_", "cnn_iqa.", "integer_cnn.", "ttfs_b1")
"""Victims that have no time steps, of records that say nothing of them."""

_FRAMES = {"digits_events": 4, "digits_events_t8": 8, "digits_events_t10": 10}
"""Time steps of event frames, which those of their victims are."""

_BEFORE_FAMILIES_SAID = {
    f"{name}.digits": family
    for family, names in {
        "reference": "ann_cnn",
        "direct": "count_cnn if_cnn lif_cnn lif_cnn_attached lif_cnn_soft lif_cnn_t8 lif_cnn_tet plif_cnn "
        "sew_net tandem_cnn",
        "converted": "maxnorm_cnn maxnorm_half_cnn nq_cnn percentile_cnn qcfs_cnn qcfs_cnn_t8 two_phase_cnn",
        "compressed": "admm_pruned_cnn admm_quant_cnn hybrid_cnn int8_cnn integer_cnn",
        "coded input": "early_exit_cnn first_spike_cnn fused_cnn latency_cnn phase_cnn poisson_cnn "
        "ratesyn_cnn ttfs_cnn",
        "timing": "causal_exp causal_lif2 causal_lin ttfs_b1 ttfs_b1_mapped",
    }.items()
    for name in names.split()
} | {
    "lif_cnn.digits_events": "events",
    "lif_cnn.digits_events_t8": "events",
    "plif_cnn.digits_events": "events",
    "rate_only.digits_events": "events",
    "cnn_iqa.photopatch": "quality",
    "snn_iqa.photopatch": "quality",
}


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
    """Return the time steps of a record's victim, 0 without time; None where the record does not say."""
    said = _declared(record, "steps")
    if isinstance(said, int):
        return said
    name = _registry_name(record)
    if name.startswith(_WITHOUT_TIME):
        return 0
    given = record.parameters.get("victim", {}).get("steps", _FRAMES.get(record.dataset))
    return given if isinstance(given, int) else None


def family(record: CellRecord) -> str:
    """Return the family of a record's victim ("timing"); nothing where the record does not say."""
    said = _declared(record, "family")
    if isinstance(said, str):
        return said
    return _BEFORE_FAMILIES_SAID.get(_registry_name(record), "")


def _registry_name(record: CellRecord) -> str:
    name = record.parameters.get("victim", {}).get("name", "")
    return name if isinstance(name, str) else ""
