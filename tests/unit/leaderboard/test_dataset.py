"""A board as a data set: Croissant that mlcroissant reads, and YAML as the hub documents it."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from robustspike.bench.cli.export import command
from robustspike.bench.errors import ConfigError
from robustspike.leaderboard.write import tidy
from tests.support.records import make_record
from tests.support.records import write

ROOT = Path(__file__).resolve().parents[3]
QUICK = make_record("rbbbw", eps=Fraction(1, 10), attack="autoattack.snn")
RECORDS = [
    make_record("rrrbw", eps=Fraction(1, 20)),
    replace(QUICK, parameters=dict(QUICK.parameters) | {"attack": {"level": "quick"}}),
    make_record("bbbbw", eps=Fraction(1, 10), defense="sr", measures={"non_finite": 1}),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    for record in RECORDS:
        write(record, root / "results")
    words = [str(root / "results"), "--out", str(root / "set"), "--hub", "me/board", "--date", "2026-11-29"]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert len(done.stdout.splitlines()) == len([p for p in (root / "set").rglob("*") if p.is_file()])
    return root / "set"


def test_croissant_is_valid_and_every_record_is_read_with_it(exported: Path) -> None:
    mlc = pytest.importorskip("mlcroissant", reason="needs mlcroissant (extra test)")
    dataset = mlc.Dataset(jsonld=str(exported / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors and not dataset.metadata.ctx.issues.warnings
    cells = list(dataset.records("cells"))
    assert len(cells) == 3 and {cell["cells/robust"] for cell in cells} == {3, 1, 0}
    assert len(list(dataset.records("rows"))) == 3


def test_croissant_defines_every_column(exported: Path) -> None:
    value = json.loads((exported / "croissant.json").read_text("utf-8"))
    named = {part["@id"]: [field["name"] for field in part["field"]] for part in value["recordSet"]}
    assert named == {"cells": [*tidy.CELLS], "rows": [*tidy.row_columns()]}
    assert value["url"] == "https://huggingface.co/datasets/me/board"


def test_eval_yaml_has_the_fields_that_the_hub_requires_and_a_task_a_table(exported: Path) -> None:
    value = yaml.safe_load((exported / "eval.yaml").read_text("utf-8"))
    assert {"name", "description", "evaluation_framework", "tasks"} == value.keys()
    assert value["evaluation_framework"] == "robustspike"
    assert [task["id"] for task in value["tasks"]] == [
        "digits_test_n_5_linf_1_over_20",
        "digits_test_n_5_linf_1_over_10",
    ]
    head = (exported / "README.md").read_text("utf-8").split("---")[1]
    configs = {config["config_name"] for config in yaml.safe_load(head)["configs"]}
    assert {task["config"] for task in value["tasks"]} <= configs


def test_results_are_for_ranked_rows_and_name_weights_and_interval(exported: Path) -> None:
    (path,) = (exported / "eval_results").glob("*.yaml")  # the other row has lost its rank by a flag
    entries = yaml.safe_load(path.read_text("utf-8"))
    assert [entry["value"] for entry in entries] == [0.6, 0.2]
    assert all(entry["dataset"]["id"] == "me/board" for entry in entries)
    assert all("weights netnone" in entry["notes"] and "95 % interval" in entry["notes"] for entry in entries)
    assert ["quick verdict" in entry["notes"] for entry in entries] == [False, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give --hub"),
        (["--hub", "board"], "OWNER/NAME"),
        (["--hub", "a/b", "--date", "1.2.26"], "YYYY-MM"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(command, [str(tmp_path), "--out", "x", *words], catch_exceptions=False)


def test_the_citation_has_what_its_format_requires() -> None:
    value = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= value.keys()
    assert value["cff-version"] == "1.2.0" and value["type"] in ("software", "dataset")
    assert all("name" in author or {"family-names"} <= author.keys() for author in value["authors"])
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{value["version"]}"' in project and f'license = "{value["license"]}"' in project
