"""What a board's folder says of rows: checks, disputes, withdrawals, editions; all by the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest

from robustspike.bench.record.bundle import pack
from robustspike.bench.record.checks import Check
from robustspike.bench.record.checks import Found
from robustspike.bench.record.checks import How
from robustspike.bench.record.checks import stored_digest
from robustspike.bench.record.checks import write_checks
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.write.json import schema
from tests.support.commands import Done
from tests.support.commands import robustspike
from tests.support.records import make_record
from tests.support.records import write

SQUARE = make_record("rrbbw", victim="net", attack="square.linf")
PGD = make_record("rrrbw", victim="net")
OTHER = make_record("rbbbw", victim="other", defense="sr")
DISPUTE = """
kind = "dispute"
of = { victim = "net", threat = "linf 1/10" }
by = "Jane Doe"
date = 2026-11-30
text = "Its gradient is cut at the third layer."
url = "https://example.org/17"
"""


def bundle(folder: Path, *records: CellRecord, name: str = "records.zip") -> Path:
    for record in records:
        write(record, folder / name.removesuffix(".zip"))
    pack(folder / name.removesuffix(".zip"), folder / name, inputs=False)
    return folder / name


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a bundle of three records and a board that is empty."""
    bundle(tmp_path, PGD, SQUARE, OTHER)
    (tmp_path / "board" / "notes").mkdir(parents=True)
    return tmp_path


def note(place: Path, text: str, name: str = "one") -> None:
    (place / "board" / "notes" / f"{name}.toml").write_text(text)


def checked(place: Path, *found: tuple[CellRecord, Found, How]) -> None:
    checks = [
        Check(record.key, stored_digest(record), what, how, "2026-11-30", "0") for record, what, how in found
    ]
    write_checks(place / "board" / "checks" / "a.csv", checks)


def board(place: Path, *more: object) -> Done:
    return robustspike("leaderboard", "records.zip", "--board", "board", "--out", "out", *more, cwd=place)


def rows(place: Path) -> dict[str, dict[str, str]]:
    lines: Sequence[dict[str, str]] = list(csv.DictReader((place / "out" / "rows.csv").open()))
    return {line["victim"]: line for line in lines}


def test_a_row_is_as_verified_as_its_least_checked_record(place: Path) -> None:
    assert board(place).returncode == 0
    assert {row["status"] for row in rows(place).values()} == {"claimed"}
    inputs, rerun = (Found.CONFIRMED, How.INPUTS), (Found.CONFIRMED, How.RERUN)
    checked(place, (PGD, *rerun), (OTHER, *rerun))
    board(place)
    assert {name: row["status"] for name, row in rows(place).items()} == {
        "net": "claimed",
        "other": "verified",
    }
    checked(place, (SQUARE, *inputs))  # beside those that are there
    done = board(place, "--wide")
    assert {name: row["status"] for name, row in rows(place).items()} == {
        "net": "re-scored",
        "other": "verified",
    }
    assert "re-scored" in done.stdout and "verified" in (place / "out" / "leaderboard.md").read_text()
    found = json.loads((place / "out" / "leaderboard.json").read_text())
    jsonschema.validate(found, schema(), cls=jsonschema.Draft202012Validator)
    assert {row["status"] for row in found["sections"][0]["rows"]} == {"re-scored", "verified"}


def test_a_record_that_was_written_anew_is_unchecked_and_one_that_is_refuted_loses_its_rank(
    place: Path,
) -> None:
    checked(place, (OTHER, Found.CONFIRMED, How.RERUN))
    other = make_record("rrrrw", victim="other", defense="sr")
    lines = (place / "board" / "checks" / "a.csv").read_text().replace(OTHER.key, other.key)
    (place / "board" / "checks" / "a.csv").write_text(lines)
    bundle(place, other, name="new.zip")
    robustspike("leaderboard", "new.zip", "--board", "board", "--out", "out", cwd=place)
    assert rows(place)["other"]["status"] == "claimed"
    checked(place, (OTHER, Found.REFUTED, How.INPUTS))
    board(place)
    assert (rows(place)["other"]["status"], rows(place)["other"]["rank_low"]) == ("claimed", "")
    assert "refuted" in rows(place)["other"]["flags"].split()


def test_without_a_board_tables_for_people_show_no_standing(place: Path) -> None:
    done = robustspike("leaderboard", "records.zip", "--wide", "--out", "out", cwd=place)
    assert "claimed" not in done.stdout and "claimed" not in (place / "out" / "leaderboard.md").read_text()


def test_a_dispute_is_shown_and_credited_and_costs_no_rank_until_it_is_settled(place: Path) -> None:
    board(place)
    before = rows(place)["net"]
    note(place, DISPUTE)
    done = board(place, "--wide")
    row = rows(place)["net"]
    assert "disputed" in row["flags"].split() and row["rank_low"] == before["rank_low"]
    line = "disputed by Jane Doe, 2026-11-30: Its gradient is cut at the third layer. https://example.org/17"
    assert row["notes"] == line and not rows(place)["other"]["notes"]
    assert line in done.stdout and line in (place / "out" / "leaderboard.md").read_text()
    note(place, DISPUTE + 'settled = "The cut is in the paper\'s code too; the row says so."\n')
    board(place)
    assert "disputed" not in rows(place)["net"]["flags"] and "Settled: The cut" in rows(place)["net"]["notes"]


def test_a_withdrawn_row_stays_and_loses_its_rank(place: Path) -> None:
    note(
        place,
        f'kind = "withdrawal"\nof = {{ key = "{OTHER.key[:8]}" }}\nby = "Us"\n'
        'date = "2026-12-01"\ntext = "Bug."',
    )
    done = board(place)
    row = rows(place)["other"]
    assert row["rank_low"] == "" and "withdrawn" in row["flags"].split() and row["worst_case"]
    assert "withdrawn!" in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DISPUTE.replace("dispute", "disput"), "kind: expected dispute or withdrawal, got 'disput'"),
        (
            DISPUTE.replace("victim =", "victm ="),
            "of: expected a table of patterns by victim, defense, attack",
        ),
        (
            DISPUTE.replace("2026-11-30", '"yesterday"'),
            "date: expected a day such as 2026-11-30, got 'yesterday'",
        ),
        (DISPUTE.replace("by =", "from ="), "unknown key 'from'"),
        (DISPUTE.replace('by = "Jane Doe"', ""), "lacks 'by'"),
        (DISPUTE.replace('"Jane Doe"', '""'), "by: expected a text that is not empty, got ''"),
        ("kind = ", "not a readable TOML file"),
    ],
)
def test_a_bad_note_is_one_clear_error(place: Path, text: str, said: str) -> None:
    note(place, text)
    done = board(place)
    assert done.returncode == 2 and said in done.stderr and "notes/one.toml" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key\n", "line 1 must name the columns key,stored,found"),
        (
            "key,stored,found,how,date,version\na,b,maybe,inputs,d,0\n",
            "line 2 is not a check (found: expected",
        ),
        ("key,stored,found,how,date,version\na,b\n", "line 2 is not a check"),
    ],
)
def test_a_bad_file_of_checks_is_one_clear_error(place: Path, text: str, said: str) -> None:
    (place / "board" / "checks").mkdir()
    (place / "board" / "checks" / "a.csv").write_text(text)
    done = board(place)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_an_edition_is_cut_listed_and_built_again_whatever_came_later(place: Path) -> None:
    assert (
        "no edition was made yet"
        in robustspike("leaderboard", "--board", "board", "--editions", cwd=place).stderr
    )
    note(place, DISPUTE)
    assert board(place, "--cut", "2026.2").returncode == 0
    then = (place / "out" / "rows.csv").read_bytes()
    found = json.loads((place / "out" / "leaderboard.json").read_text())
    jsonschema.validate(found, schema(), cls=jsonschema.Draft202012Validator)
    assert found["edition"]["name"] == "2026.2" and found["edition"]["reproduced"] is True
    assert [known["name"] for known in found["editions"]] == ["2026.2"]
    listed = robustspike("leaderboard", "--board", "board", "--editions", cwd=place).stdout
    assert listed.startswith("2026.2  ") and "2 rows" in listed and "records.zip" in listed

    bundle(place, make_record("rrrrr", victim="newer"), name="later.zip")
    checked(place, (OTHER, Found.CONFIRMED, How.RERUN))
    board(place, "later.zip")
    assert (place / "out" / "rows.csv").read_bytes() != then
    done = board(place, "later.zip", "--edition", "2026.2")
    assert "not part of edition 2026.2: later.zip" in done.stderr
    assert (place / "out" / "rows.csv").read_bytes() == then
    assert "edition 2026.2 of " in (place / "out" / "leaderboard.md").read_text()


def test_an_edition_that_cannot_be_made_or_built_says_why(place: Path) -> None:
    bundle(place, make_record("rrrrr", victim="newer"), name="later.zip")
    assert board(place, "--cut", "2026.2").returncode == 0
    for more, said in (
        (("--cut", "2026.2"), "that no edition has yet"),
        (("--cut", "../x"), "expected a name such as 2026.2"),
        (("--cut", "2026.3", "records"), "records is a folder. An edition is made of bundles"),
        (("--edition", "2026.1"), "Did you mean '2026.2'?"),
        (("--edition", "2026.2", "--only", "victim=net"), "neither with --only"),
    ):
        done = board(place, *more)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    done = robustspike("leaderboard", "later.zip", "--board", "board", "--edition", "2026.2", cwd=place)
    assert done.returncode == 2 and "needs the bundle records.zip" in done.stderr
    assert "Add --board" in robustspike("leaderboard", "later.zip", "--edition", "2026.2", cwd=place).stderr
    note(place, DISPUTE)
    assert board(place, "--cut", "2026.3").returncode == 0
    note(place, DISPUTE.replace("third", "second"))
    done = board(place, "--edition", "2026.3")
    assert done.returncode == 2 and "not the file that the edition was made with" in done.stderr
