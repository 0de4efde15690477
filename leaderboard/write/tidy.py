"""Tidy data: one row a cell, one row a table row; numbers as numbers, shares in [0, 1], nothing to split.

A row of a table says which section it belongs to by the section's fields (data set, threat model), so that
rows of several boards can be put together. Columns that a kind of section lacks are empty there.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from robustspike.bench.numbers.stats import rate
from robustspike.bench.record.flags import cell_flags
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import canonical
from robustspike.leaderboard import facts
from robustspike.leaderboard import seeds
from robustspike.leaderboard.sections import KINDS
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections.base import IDENTITY
from robustspike.leaderboard.sections.base import STANDING

THREAT = {
    "dataset": "registry name of the data set",
    "split": "train, validation or test",
    "n": "samples",
    "domain": "static pixels, binary spikes or event counts",
    "geometry": "registered name of the geometry",
    "eps": "budget as an exact fraction; empty: none, the distance is minimised",
    "eps_value": "budget as a number",
    "goal": "what counts as success",
}

CELLS = {
    **THREAT,
    "victim": "registry name with changed parameters, without its training seed",
    "family": "family of the victim: direct, converted, timing, ...; empty where the record does not say",
    "T": "time steps of the victim, 0 without time; empty where the record does not say",
    "training_seed": "seed that the victim was trained from",
    "weights": "sha256 of all parameters and buffers",
    "defense": "registry name, with changed parameters",
    "attack": "registry name",
    "label": "attack with its changed parameters",
    "parameters": "all parameters of the attack, JSON",
    "estimator": "gradient estimator of the attack; empty where it takes none",
    "level": "level of a standard verdict",
    "access": "what the attack sees of the victim",
    "attack_seed": "root seed of the attack",
    "task": "classify, quality or certify",
    "clean": "samples correct without attack",
    "robust": "of them, still correct under the attack (certify: proven)",
    "broken": "of them, broken",
    "errors": "samples that could not be computed",
    "robust_share": "robust / n",
    "robust_share_low": "lower end of its 95 % Wilson interval",
    "robust_share_high": "upper end of it",
    "forwards": "forward passes of the attack, summed over samples",
    "backwards": "backward passes of it",
    "energy_nj": "synaptic energy of one clean answer of one draw",
    "draws": "draws that decide an answer",
    "flags": "codes raised by this cell alone",
    "suite": "suite that last asked for it",
    "suite_version": "its version",
    "code": "digest of the code that measured it",
    "key": "digest of the experiment: the name of its record",
}

SECTION = {
    "kind": "what the section is about: " + ", ".join(kind.name for kind in KINDS),
    "section": "title of the section",
    **{name: text for name, text in THREAT.items() if name != "n"},
    "training_seed": "seed that the victim was trained from",
}


def threat_of(record: CellRecord) -> dict[str, Any]:
    """Return the columns of `THREAT` but for n."""
    threat = record.threat
    return {
        "dataset": record.dataset,
        "split": record.split,
        "domain": str(threat.domain),
        "geometry": threat.geometry,
        "eps": None if threat.eps is None else str(threat.eps),
        "eps_value": None if threat.eps is None else float(threat.eps),
        "goal": str(threat.goal),
    }


def cells(records: Iterable[CellRecord]) -> Iterator[dict[str, Any]]:
    """Yield one row a cell, in the order of `CELLS`; None where nothing is known."""
    unique = {record.key: record for record in records}
    yield from (_cell(unique[key]) for key in sorted(unique))


def _cell(record: CellRecord) -> dict[str, Any]:
    counts, measures = record.counts, record.measures
    kept = record.parameters.get("cell", {})
    victim, seed = seeds.split(record.victim)
    given = record.parameters.get("attack", {})
    n, robust = counts["n"], counts.get("robust")
    spent = measures.get("energy_clean_pj")
    value = threat_of(record) | {
        "n": n,
        "victim": victim,
        "family": facts.family(record) or None,
        "T": facts.steps(record),
        "training_seed": kept.get("victim_seed", seed),
        "weights": record.digests["weights"],
        "defense": record.defense,
        "attack": record.attack,
        "label": record.label,
        "parameters": canonical(given).decode(),
        "estimator": given.get("estimator"),
        "level": facts.level(record) or None,
        "access": str(record.threat.access),
        "attack_seed": record.seed,
        "task": str(record.task),
        **{name: counts.get(name) for name in ("clean", "robust", "broken", "errors")},
        **({} if robust is None else rate("robust_share", robust, n)),
        "forwards": record.cost["forwards"],
        "backwards": record.cost["backwards"],
        "energy_nj": spent / n / 1000 if spent is not None and n else None,
        "draws": facts.draws(record),
        "flags": " ".join(cell_flags(measures, counts)),
        "suite": record.suite,
        "suite_version": record.suite_version,
        "code": record.digests.get("code"),
        "key": record.key,
    }
    return {name: plain(value.get(name)) for name in CELLS}


def rows(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Return one row a table row: `SECTION`, `IDENTITY` and the columns of all kinds, without the attacks."""
    columns = row_columns()
    found = []
    for section in sections:
        about = {"kind": section.kind.name, "section": section.title, **threat_of(section.first)}
        for row in section.frame.to_dict("records"):
            about["training_seed"] = seeds.split(str(row["victim"]))[1]
            found.append({name: plain((about | row).get(name)) for name in columns})
    return found


def row_columns() -> dict[str, str]:
    """Return every column of `rows` with its definition."""
    columns = {**SECTION, **IDENTITY}
    for kind in KINDS:
        columns |= {name: text for name, text in kind.columns.items() if name != "flags"}
    columns |= STANDING
    return columns | {"flags": "signs that the evaluation is incomplete or misleading, separated by spaces"}


def plain(value: Any) -> Any:
    """Return a cell as a plain value; None for one that was not measured."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def to_csv(found: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """Return rows as CSV: six significant digits or more, empty cells for what was not measured."""
    named, out = list(columns), io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(named)
    writer.writerows([_text(row[column]) for column in named] for row in found)
    return out.getvalue()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)
