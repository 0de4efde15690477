"""A board as a published data set: Croissant metadata, a card, and what the Hugging Face hub reads.

Croissant: Akhtar et al. 2024, arXiv:2403.19546, format 1.0 (https://docs.mlcommons.org/croissant). eval.yaml
and .eval_results: https://huggingface.co/docs/hub/eval-results, read in November 2026; it is work in
progress. Pure functions of tables; nothing is sent anywhere.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pandas as pd

from robustspike.bench.files import sha256
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.text import with_defense
from robustspike.leaderboard.write import tidy
from robustspike.leaderboard.write.json import schema

FRAMEWORK = "robustspike"
"""Name of this harness in eval.yaml; the hub keeps a list of the names that it knows."""

TABLES = {"cells": "one row a measured cell", "rows": "one row a table row"}

_TYPES = {"integer": "sc:Integer", "number": "sc:Float", "string": "sc:Text", "boolean": "sc:Boolean"}

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The names of Croissant 1.0, as its specification wants them in every file."""


@dataclass(frozen=True)
class About:
    """What its publisher says of a board.

    Args:
        name: of the data set.
        url: where it will be.
        license: an SPDX identifier.
        date: of publication, ISO 8601.
        hub: "OWNER/NAME" on the Hugging Face hub; nothing where it does not go there.
    """

    name: str
    url: str
    license: str
    date: str
    hub: str = ""


def files(sections: Sequence[Section], tables: Mapping[str, str], about: About) -> dict[str, str]:
    """Return the files of the data set by path.

    Args:
        sections: the tables for people.
        tables: "cells" and "rows" as CSV (`tidy_csv`).
        about: what its publisher says of it.
    """
    found = {f"{name}.csv": tables[name] for name in TABLES}
    found["croissant.json"] = json.dumps(croissant(tables, about), indent=1) + "\n"
    found["README.md"] = card(about)
    found["eval.yaml"] = eval_yaml(sections, about)
    return found | ({} if not about.hub else eval_results(sections, about))


def croissant(tables: Mapping[str, str], about: About) -> dict[str, Any]:
    """Return the Croissant 1.0 description of cells.csv and rows.csv, as JSON-LD values."""
    columns = {"cells": tidy.CELLS, "rows": tidy.row_columns()}
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": about.name,
        "description": (
            "Adversarial robustness of spiking neural networks, measured by RobustSpike "
            f"{version('robustspike')}: every number comes from an attack whose results were checked against "
            "its threat model and answered afresh."
        ),
        "license": f"https://spdx.org/licenses/{about.license}.html",
        "url": about.url,
        "datePublished": about.date,
        "version": "1.0.0",
        "citeAs": (
            "@software{robustspike, title={RobustSpike: a benchmark of the adversarial robustness of spiking "
            "neural networks}, author={{The RobustSpike maintainers}}, version={"
            + version("robustspike")
            + "}}"
        ),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": f"{name}.csv",
                "name": f"{name}.csv",
                "description": TABLES[name],
                "contentUrl": f"{name}.csv",
                "encodingFormat": "text/csv",
                "sha256": sha256(tables[name].encode()),
            }
            for name in TABLES
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": name,
                "name": name,
                "description": TABLES[name],
                "field": [_field(name, column, text) for column, text in columns[name].items()],
            }
            for name in TABLES
        ],
    }


def _field(table: str, column: str, text: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{table}/{column}",
        "name": column,
        "description": text,
        "dataType": _type(table, column),
        "source": {"fileObject": {"@id": f"{table}.csv"}, "extract": {"column": column}},
    }


def _type(table: str, column: str) -> str:
    """Return a column's type, as the JSON Schema has it; what it leaves open are figures."""
    if column in ("kind", "section"):
        return _TYPES["string"]
    definitions = schema()["$defs"]
    known = definitions["cell"]["properties"]
    if table == "rows":
        known = known | definitions["row"]["properties"]
    rule = known.get(column, {})
    said = rule.get("type", "string" if "enum" in rule else "number")
    if isinstance(said, str):
        return _TYPES[said]
    (kind,) = (one for one in said if one != "null")
    return _TYPES["number" if kind == "integer" else kind]  # with gaps, whole numbers are read as others


def card(about: About) -> str:
    """Return README.md of the data set: the hub's front matter, and how to read and check the numbers."""
    configs = "".join(
        f"  - config_name: {name}\n    data_files:\n      - split: test\n        path: {name}.csv\n"
        for name in TABLES
    )
    return (
        f"---\nlicense: {about.license.lower()}\npretty_name: {json.dumps(about.name)}\n"
        "tags:\n  - spiking-neural-networks\n  - adversarial-robustness\n"
        f"configs:\n{configs}---\n\n# {about.name}\n\n"
        f"Measured by RobustSpike {version('robustspike')}. `cells.csv` has one row a measured cell, "
        "`rows.csv` one row a table row; `croissant.json` defines every column. Shares are in [0, 1], empty "
        "cells were not measured.\n\n"
        "A number belongs to one victim, one defense and one set of weights (`weights` is their sha256). "
        "`key` names the record behind a cell: `robustspike verify RECORDS --only KEY` judges it afresh.\n"
    )


def eval_yaml(sections: Sequence[Section], about: About) -> str:
    """Return eval.yaml, by which the hub's data set becomes a benchmark: one task a ranked table.

    Scalars are written as JSON, which YAML contains.
    """
    lines = [
        f"name: {json.dumps(about.name)}",
        "description: "
        + json.dumps("Adversarial robustness of spiking neural networks, worst case per sample."),
        f"evaluation_framework: {FRAMEWORK}",
        "tasks:",
    ]
    for section in _ranked(sections):
        lines += [f"  - id: {task_id(section)}", "    config: rows", "    split: test"]
    return "\n".join(lines) + "\n"


def eval_results(sections: Sequence[Section], about: About) -> dict[str, str]:
    """Return .eval_results files by path, one a victim and defense: for the repository of that network.

    A row whose flags cost it its rank is left out, since the hub ranks by the value alone.
    """
    entries: dict[str, list[str]] = defaultdict(list)
    for section in _ranked(sections):
        column = section.kind.by[0][0]
        for _, row in section.frame.iterrows():
            value = float(row[column])
            if not math.isfinite(value) or pd.isna(row["rank_low"]):
                continue
            notes = f"{section.title}; weights {row['weights']}"
            if f"{column}_low" in row:
                notes += f"; 95 % interval {row[f'{column}_low']:.4f} to {row[f'{column}_high']:.4f}"
            notes += f"; {row['levels']} verdict" if row.get("levels") else ""
            notes += f"; flags: {row['flags']}" if row["flags"] else ""
            entries[with_defense(row)].append(
                f"- dataset:\n    id: {json.dumps(about.hub)}\n    task_id: {task_id(section)}\n"
                f"  value: {value:.6g}\n  date: {json.dumps(about.date)}\n"
                f"  evaluation_framework: {FRAMEWORK}\n  notes: {json.dumps(notes)}\n"
            )
    return {f"eval_results/{_slug(name)}.yaml": "".join(parts) for name, parts in sorted(entries.items())}


def _ranked(sections: Sequence[Section]) -> list[Section]:
    return [section for section in sections if section.kind.by]


def task_id(section: Section) -> str:
    """Return the name of a table as a task: data set, threat model and samples."""
    return _slug(section.title)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", text.lower().replace("/", "-over-")).strip("_")
