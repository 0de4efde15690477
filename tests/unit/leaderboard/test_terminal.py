"""Tables in a terminal: one line a row at any usual width, filters, sorting, JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result

from robustspike.bench.cli.leaderboard import command
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import count
from robustspike.bench.record.schema import digest
from robustspike.bench.record.schema import encode_samples
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.write.terminal import lines
from tests.support.records import make_record
from tests.support.records import write
from tests.unit.leaderboard.test_facts import noisy
from tests.unit.leaderboard.test_leaderboard_spikes import flips
from tests.unit.leaderboard.test_quality_table import control
from tests.unit.leaderboard.test_quality_table import record as quality_record

LONG = "ttfs_b1_mapped.digits"


def board() -> list[CellRecord]:
    """Rows with the longest names that ship, in every kind of table with ranks."""
    return [
        make_record("rrbbw", victim=LONG, measures={"energy_clean_pj": 10_000}),
        make_record("rrrbw", victim=LONG, defense="robust_conversion"),
        noisy("rrrrw", 0.9, 0.8, draws=20),
        flips([3, 6, None], victim="lif_cnn.digits_events"),
        quality_record("a", 5.0, victim="snn_iqa.photopatch"),
        control(victim="snn_iqa.photopatch"),
    ]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_row_is_a_line_and_names_are_never_cut(width: int) -> None:
    for section in build(board()):
        table = section.tables(narrow=True)[0]
        text = lines(table, width)
        assert len(text.rows) == len(section.frame)
        assert max(map(len, [*text.head, *text.rows])) <= width
        owners = zip(section.frame["name"], section.frame["defense"], strict=True)
        for line, (name, defense) in zip(text.rows, owners, strict=True):
            assert name in line and defense in line
        assert table.best is not None and table.headers[table.best] not in text.dropped


def test_wide_shows_every_column() -> None:
    for section in build(board()):
        table = section.tables()[0]
        text = lines(table, None)
        words = " ".join(text.head).split()
        assert not text.dropped and all(word in words for head in table.headers for word in head.split())


def test_columns_are_taken_in_their_order_of_importance() -> None:
    table = Table(
        ["a", "bb", "long head", "d"], [["x" * 9, "y" * 9, "1", "22"]], first=("d", "long head", "a")
    )
    text = lines(table, 20)
    assert (text.head, text.rows) == (["a          long   d", "           head"], ["xxxxxxxxx     1  22"])
    assert text.dropped == ["bb"]
    assert lines(table, 1).dropped == ["bb"]  # what is named first stands at any width


def sealed(record: CellRecord) -> CellRecord:
    """Return a record whose counts, digests and key can be read back."""
    digests = {"code": "c", **record.digests, "samples": sha256(encode_samples(record.rows))}
    return replace(record, key=digest([record.key]), counts=count(record.rows), digests=digests)


def call(root: Path, *options: str, width: int = 100) -> Result:
    for record in map(sealed, board()):
        if not (root / "records" / record.key).exists():
            write(record, root)
    return CliRunner(env={"COLUMNS": str(width)}).invoke(
        command, [str(root), *options], standalone_mode=False
    )


def test_the_verb_filters_sorts_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    shown = call(tmp_path, width=80).output
    assert "not shown: " in shown and "(--wide)" in shown
    only = call(tmp_path, "--only", f"victim={LONG}", "--only", "victim=net", "--only", "dataset=digits")
    assert LONG in only.output and "lif_cnn" not in only.output and "snn_iqa" not in only.output
    descending, ascending = (
        call(tmp_path, "--only", f"victim={LONG}", "--sort", f"clean_single{end}").output
        for end in (":desc", "")
    )
    assert descending == ascending  # nothing measured: the order stays
    rows = []
    for key in ("worst_case", "worst_case:desc"):
        output = call(tmp_path, "--only", f"victim={LONG}", "--sort", key).output
        rows.append([line.split()[2] for line in output.splitlines() if LONG in line][:2])
    assert rows == [["none", "robust_conversion"], ["robust_conversion", "none"]]


def test_wrong_filters_and_columns_are_one_line(tmp_path: Path) -> None:
    for options, message in (
        (("--only", "victm=net"), "Did you mean 'victim'"),
        (("--only", "victim=nobody"), "none of the 6 records passes"),
        (("--only", "victim"), "expected KEY=GLOB"),
        (("--sort", "wors_case"), "Did you mean 'worst_case'"),
    ):
        error = call(tmp_path, *options).exception
        assert isinstance(error, ConfigError) and message in str(error)


def test_json_on_stdout_is_the_document_and_tells_its_filter(tmp_path: Path) -> None:
    found = json.loads(call(tmp_path, "--json", "--only", "weights=net").output)
    assert found["format"] == "robustspike-leaderboard" and found["filter"] == ["weights=net"]
    assert {cell["victim"] for cell in found["cells"]} == {"net"}


def test_a_filtered_board_says_so_in_its_files(tmp_path: Path) -> None:
    call(tmp_path, "--only", "attack=pgd.linf", "--out", str(tmp_path / "out"))
    for name in ("leaderboard.md", "leaderboard.html"):
        assert "attack=pgd.linf: worst cases are over" in (tmp_path / "out" / name).read_text("utf-8")
