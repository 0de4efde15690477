"""Data files: tidy rows and cells, JSON that keeps its schema."""

from __future__ import annotations

import csv
import io
import json
import math
from fractions import Fraction

import jsonschema
import pytest

from robustspike.bench.contract.specs import Access
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.write import tidy
from robustspike.leaderboard.write.csv import tidy_csv
from robustspike.leaderboard.write.json import document
from robustspike.leaderboard.write.json import schema
from robustspike.leaderboard.write.json import to_json
from tests.support.records import make_proof
from tests.support.records import make_record
from tests.unit.leaderboard.test_facts import noisy
from tests.unit.leaderboard.test_facts import standing
from tests.unit.leaderboard.test_leaderboard_spikes import flips
from tests.unit.leaderboard.test_quality_table import at_budgets
from tests.unit.leaderboard.test_quality_table import control


def everything() -> list[CellRecord]:
    """Records of every kind of section, with failures, votes, levels and certificates."""
    return [
        make_record("rrbbw", measures={"energy_clean_pj": 10_000}),
        make_record("rrbbe", victim="net@2", defense="sr"),
        make_record("bbbbw", eps=Fraction(1)),
        standing("quick", "rrbbw"),
        noisy("rrbbw", 0.9, 0.5, draws=8),
        make_proof("rrruu"),
        flips([3, 6, None]),
        flips([None, None, None], attack="flip.random", access=Access.LABEL),
        *at_budgets("a", {1: (10.0, 0.996), 2: (16.0, 0.984), 4: (30.0, 0.93)}),
        control(),
    ]


def checked(records: list[CellRecord]) -> dict[str, object]:
    """Return the document of records, read back and held against its schema."""
    found = json.loads(to_json(document(build(records), records, ["robustspike run"], ["victim=*"])))
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(found, schema(), cls=jsonschema.Draft202012Validator)
    return dict(found)


def test_the_document_keeps_its_schema_for_every_kind_of_table() -> None:
    found = checked(everything())
    assert {s["kind"] for s in found["sections"]} == {"accuracy", "distance", "quality", "visibility"}
    assert found["version"] == 1 and found["filter"] == ["victim=*"]
    for section in found["sections"]:
        for row in section["rows"]:
            assert set(row) - {"attacks"} == set(section["columns"])
    assert checked([])["sections"] == []


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        (("version",), 2),
        (("sections", 0, "kind"), "guess"),
        (("sections", 0, "eps"), 0.1),
        (("sections", 0, "rows", 0, "worst_case"), 75.0),
        (("sections", 0, "rows", 0, "rank_low"), "1-2"),
        (("cells", 0, "robust"), "3"),
        (("cells", 0, "extra"), 1),
    ],
)
def test_the_schema_refuses_what_is_no_leaderboard(where: tuple[str | int, ...], wrong: object) -> None:
    found = checked(everything())
    place: object = found
    for step in where[:-1]:
        place = place[step]  # type: ignore[index]
    place[where[-1]] = wrong  # type: ignore[index]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema(), cls=jsonschema.Draft202012Validator)


def test_infinite_distances_and_what_was_not_measured_are_told_apart() -> None:
    found = checked([flips([None, None, 4])])
    (row,) = found["sections"][0]["rows"]
    assert row["median_all"] == "Infinity" and row["energy_nj"] is None


def read(records: list[CellRecord], name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tidy_csv(build(records), records)[name])))


def test_one_row_a_cell_with_counts_and_nothing_to_split() -> None:
    records = everything()
    cells = {cell["key"]: cell for cell in read(records, "cells")}
    assert cells.keys() == {record.key for record in records}
    for record in records:
        cell = cells[record.key]
        assert list(cell) == list(tidy.CELLS)
        assert int(cell["n"]) == record.counts["n"] and int(cell["errors"]) == record.counts["errors"]
        assert cell["eps"] == ("" if record.threat.eps is None else str(record.threat.eps))
        assert not cell["eps"] or float(cell["eps_value"]) == pytest.approx(float(record.threat.eps or 0))
        assert json.loads(cell["parameters"]) == record.parameters.get("attack", {})
    hardened = next(cell for cell in cells.values() if cell["defense"] == "sr")
    assert (hardened["victim"], hardened["training_seed"]) == ("net", "2")
    assert float(hardened["robust_share"]) == 2 / 5
    quick = next(cell for cell in cells.values() if cell["level"])
    assert (quick["attack"], quick["level"]) == ("autoattack.snn", "quick")


def test_one_row_a_table_row_with_every_figure_as_a_number() -> None:
    records = everything()
    built, rows = build(records), read(records, "rows")
    assert len(rows) == sum(len(section.frame) for section in built)
    assert {row["kind"] for row in rows} == {"accuracy", "distance", "quality", "visibility"}
    texts = {"kind", "section", "dataset", "split", "domain", "geometry", "eps", "goal", "name", "victim"}
    texts |= {"defense", "weights", "certified_by", "levels", "attack", "status", "notes", "flags"}
    for row in rows:
        for column, value in row.items():
            assert column in texts or not value or not math.isnan(float(value)), column
            if column not in texts:
                assert "%" not in value and "[" not in value
    first = next(row for row in rows if row["kind"] == "accuracy" and row["defense"] == "none")
    assert float(first["worst_case"]) <= float(first["clean"])


def test_files_depend_on_the_records_alone() -> None:
    records = everything()
    again = [*reversed(records), records[0]]
    assert tidy_csv(build(records), records) == tidy_csv(build(again), again)
    assert to_json(document(build(records), records)) == to_json(document(build(again), again))
