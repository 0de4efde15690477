"""Two sets of records compared: paired tests, what changed, what has no counterpart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustspike.bench.cli.compare import command
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.compare import compare
from tests.support.records import make_record
from tests.support.records import write
from tests.unit.leaderboard.test_leaderboard_spikes import flips
from tests.unit.leaderboard.test_owners import ONE
from tests.unit.leaderboard.test_owners import OTHER
from tests.unit.leaderboard.test_owners import of
from tests.unit.leaderboard.test_quality_table import control
from tests.unit.leaderboard.test_quality_table import record as quality_record

WEAK, STRONG = "b" * 20 + "r" * 10, "r" * 28 + "b" * 2


def test_the_same_records_differ_in_nothing() -> None:
    (pair,), first, second = compare([make_record(WEAK)], [make_record(WEAK)])
    assert (pair.wins, pair.losses, pair.p, pair.changed) == (0, 0, 1.0, ())
    assert pair.verdict == "not separated" and first == second == []


def test_other_weights_are_compared_on_shared_samples_and_named_as_the_reason() -> None:
    (pair,), _, _ = compare([of(ONE, make_record(WEAK))], [of(OTHER, make_record(STRONG))])
    assert (pair.first, pair.second) == pytest.approx((1 / 3, 28 / 30))
    assert (pair.wins, pair.losses, pair.verdict) == (20, 2, "better") and pair.changed == ("weights",)
    assert compare([of(OTHER, make_record(STRONG))], [of(ONE, make_record(WEAK))])[0][0].verdict == "worse"


def changed(**changes: object) -> tuple[str, ...]:
    (pair,), _, _ = compare([make_record(WEAK)], [replace(make_record(WEAK), key="new", **changes)])  # type: ignore[arg-type]
    return pair.changed


def test_every_reason_is_named() -> None:
    digests = dict(make_record(WEAK).digests)
    assert changed(digests=digests | {"code": "newer"}) == ("code of pgd.linf",)
    assert changed(digests=digests | {"data": "d2"}) == ("data",)
    assert changed(shard=7) == ("shard size",) and changed(seed=3) == ("attack seeds",)
    assert changed(parameters={"attack": {"steps": 9}}) == ("parameters of pgd.linf",)
    assert changed(suite_version=2)[0].startswith("suite: test v1") and changed() == ("parameters",)
    both = [make_record(WEAK), make_record(STRONG, attack="fgsm.linf")]
    (pair,), _, _ = compare(both, [make_record(WEAK), make_record(WEAK, attack="mine")])
    assert pair.changed == ("attacks: -fgsm.linf +mine",)


def test_all_kinds_of_tables_with_a_rank_are_compared() -> None:
    near, far = flips([1] * 12), flips([9] * 12)
    records = [make_record(WEAK), near, quality_record("a", 5.0), control()]
    later = [make_record(STRONG), far, quality_record("a", 1.0), control()]
    pairs = {pair.column: pair for pair in compare(records, later)[0]}
    assert pairs.keys() == {"worst_case", "median_all", "mae"}
    assert pairs["median_all"].verdict == "better" and pairs["mae"].wins == 8


def test_many_rows_are_corrected_together() -> None:
    before = [make_record("b" * 6 + "r" * 6, victim=f"v{i}") for i in range(9)]
    after = [make_record("r" * 12, victim=f"v{i}") for i in range(9)]
    assert compare(before[:1], after[:1])[0][0].p == pytest.approx(2 / 64)
    assert [pair.p for pair in compare(before, after)[0]] == pytest.approx([9 * 2 / 64] * 9)


def test_two_nets_of_one_name_are_compared_with_themselves_or_with_nobody() -> None:
    two = [of(ONE, make_record(WEAK)), of(OTHER, make_record(STRONG))]
    pairs, first, second = compare(two, two[:1])
    assert [pair.changed for pair in pairs] == [()] and second == []
    assert first == ["digits (test), linf 1/10: net + none #a0a0a0a0"]
    assert compare([make_record(WEAK)], [make_record(WEAK, victim="other")])[0] == []


def folder(root: Path, records: list[CellRecord]) -> Path:
    for record in records:
        write(record, root)
    return root


def test_the_verb_prints_a_line_a_row_and_json(tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    one = folder(tmp_path / "one", [make_record(WEAK), make_record(WEAK, victim="gone")])
    other = folder(tmp_path / "other", [make_record(STRONG)])
    shown = runner.invoke(command, [str(one), str(other)], standalone_mode=False)
    assert shown.return_value == 0, shown.output
    header, line, alone = shown.output.strip().splitlines()
    assert "B better : worse" in header and "20 : 2" in line and " better " in line
    assert alone.startswith("only in A: digits (test), linf 1/10: gone + none")
    found = runner.invoke(command, [str(one), str(other), "--json"], standalone_mode=False)
    value = json.loads(found.output)
    assert value["pairs"][0]["verdict"] == "better" and value["only_in_second"] == []
    few = runner.invoke(command, [str(one), str(other), "--only", "victim=net"], standalone_mode=False)
    assert "only in" not in few.output
