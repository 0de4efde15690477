"""What a table says of every attack on spikes: both medians, changes, queries, the whole curve."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustspike.bench.cli.leaderboard import publish
from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Goal
from robustspike.bench.record.flags import FLAGS
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.spikes import TOGETHER
from robustspike.leaderboard.spikes import median
from robustspike.leaderboard.write.csv import details_csv
from robustspike.leaderboard.write.curves import charts
from robustspike.leaderboard.write.markdown import to_markdown
from robustspike.leaderboard.write.page import to_html
from tests.support.records import make_record


def flips(
    distances: list[int | None],
    *,
    attack: str = "sda.l0",
    victim: str = "net",
    access: Access = Access.WHITE,
    seed: int = 0,
    goal: Goal = Goal.UNTARGETED,
    geometry: str = "l0",
) -> CellRecord:
    """Make a minimum-norm record: one distance a sample, None where the attack failed.

    A third of the flips are removals; the clean inputs hold 100 spikes.
    """
    verdicts = "".join("r" if d is None else "b" for d in distances)
    record = make_record(verdicts, victim=victim, attack=attack, eps=None, access=access, seed=seed)
    rows = tuple(
        replace(
            row,
            distance=0.0 if d is None else float(d),
            extras={"spikes": 100.0, "removed": (d or 0) // 3, "added": (d or 0) - (d or 0) // 3},
        )
        for row, d in zip(record.rows, distances, strict=True)
    )
    threat = replace(record.threat, geometry=geometry, domain=Domain.SPIKES, goal=goal)
    return replace(record, rows=rows, threat=threat, key=f"{record.key}{goal}{distances}")


def only(records: list[CellRecord]) -> Section:
    (section,) = build(records)
    return section


def csv(section: Section, name: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(details_csv([section])[name]))


def test_every_attack_has_a_row_with_both_medians_changes_and_queries() -> None:
    section = only([flips([3, 6, 9, None]), flips([30, 60, 90, 120], attack="flip.random")])
    found = csv(section, "attacks").set_index("attack")
    sda = found.loc["sda.l0"]
    assert (sda["attacked"], sda["broken"]) == (4, 3)
    assert sda["median_success"] == 6
    assert sda["median_all"] == 7.5  # of 3, 6, 9, infinity
    assert (sda["added"], sda["removed"], sda["spikes"]) == (4, 2, 100)
    assert (sda["forwards"], sda["backwards"]) == (5, 4)
    assert (sda["asr@5"], sda["asr@10"], sda["asr@800"]) == (0.25, 0.75, 0.75)
    assert found.loc["flip.random", "access"] == "white"


def test_a_gradient_attack_that_loses_to_a_control_is_marked() -> None:
    """Each by itself: the row keeps its rank where another gradient attack does better than the control."""
    weak, strong = flips([9] * 12), flips([2] * 12, attack="sda_greedy.l0")
    control = flips([3] * 12, attack="scar", access=Access.SCORE)
    random = flips([50] * 12, attack="flip.random", access=Access.LABEL)
    section = only([weak, strong, control, random])
    lost = csv(section, "attacks").set_index("attack")["loses_to"].fillna("")
    assert lost.to_dict() == {"sda.l0": "scar", "sda_greedy.l0": "", "scar": "", "flip.random": ""}
    assert section.frame["flags"].iloc[0] == ""
    alone = only([weak, control, random])
    assert "black_box_beats_white_box" in alone.frame["flags"].iloc[0]
    few = only([flips([9] * 3), flips([3] * 3, attack="scar", access=Access.SCORE)])
    assert few.attacks["loses_to"].tolist() == ["", ""]  # chance


def test_a_failure_is_infinite_in_one_median_and_absent_from_the_other() -> None:
    row = only([flips([4, None, None])]).attacks.iloc[0]
    assert row["median_all"] == math.inf and row["median_success"] == 4
    none = only([flips([None, None])]).attacks.iloc[0]
    assert none["median_all"] == math.inf and math.isnan(none["median_success"])
    assert math.isnan(none["added"])
    assert math.isnan(median([]))


def test_the_curve_steps_at_every_distance_and_starts_at_zero() -> None:
    found = csv(only([flips([4, 10, None, 5, 4])]), "curves")
    assert found["budget"].tolist() == [0, 4, 5, 10]
    assert found["broken"].tolist() == [0, 2, 3, 4]
    assert (found["attacked"] == 5).all()
    assert csv(only([flips([None])]), "curves")["broken"].tolist() == [0]


@given(st.lists(st.one_of(st.none(), st.integers(1, 900)), min_size=1, max_size=30))
def test_curve_table_and_medians_agree(distances: list[int | None]) -> None:
    section = only([flips(distances)])
    row, curve = section.attacks.iloc[0], section.curves
    for budget in (5, 10, 20, 50, 200, 800):
        within = curve.loc[curve["budget"] <= budget, "broken"].iloc[-1]
        assert row[f"asr@{budget}"] == within / len(distances)
    assert curve["broken"].is_monotonic_increasing and curve["budget"].is_monotonic_increasing
    assert curve["broken"].iloc[-1] == row["broken"]
    half = curve.loc[curve["broken"] >= len(distances) / 2 + 0.5, "budget"]
    assert (half.iloc[0] if len(half) else math.inf) >= row["median_all"]


def test_the_curve_of_all_attacks_is_that_of_the_nearest_success() -> None:
    found = csv(
        only([flips([3, 9, None]), flips([8, 2, None], attack="scar", access=Access.SCORE)]), "curves"
    )
    whole = found[found["attack"] == TOGETHER]
    assert whole["budget"].tolist() == [0, 2, 3]
    assert whole["broken"].tolist() == [0, 1, 2]
    assert set(whole["access"]) == {"white/score"}
    assert TOGETHER not in set(csv(only([flips([3])]), "curves")["attack"])


def test_seeds_of_one_attack_share_a_row_by_the_nearest_success() -> None:
    row = only([flips([3, None]), flips([9, 6], seed=1)]).attacks.iloc[0]
    assert (row["broken"], row["median_all"], row["forwards"]) == (2, 4.5, 10)
    assert (row["added"], row["removed"]) == (3, 1.5)


def test_records_without_spike_counts_have_no_such_columns() -> None:
    image = make_record("rb", eps=None)  # a minimum-norm attack on images
    page = to_markdown([only([image])])
    assert "median over successes" in page and "| spikes added" not in page
    assert not len(only([make_record("rb")]).attacks)
    assert details_csv(build([make_record("rb")])) == {}


def test_a_retiming_table_counts_moves() -> None:
    page = to_markdown([only([flips([6, 9], geometry="retime_l0")])])
    assert "| spikes moved" in page and "| spikes added" not in page
    assert '"unit":"moved spikes"' in to_html([only([flips([6, 9], geometry="retime_l0")])])


def test_a_victim_that_no_move_can_fool_is_not_called_masked() -> None:
    assert only([flips([None, None], geometry="retime_l0")]).frame["flags"].tolist() == [""]
    assert only([flips([None, None])]).frame["flags"].tolist() == ["unbounded_attack_fails"]


def test_targeted_records_are_a_section_of_their_own() -> None:
    built = build([flips([3, 6]), flips([None, 6], goal=Goal.TARGETED)])
    assert [s.title.rpartition(", ")[2] for s in built] == ["l0 min", "l0 min targeted"]
    assert [s.attacks["broken"].tolist() for s in built] == [[2], [1]]
    flags = [s.frame["flags"].iloc[0] for s in built]
    assert flags == ["", ""]  # one class that cannot be reached is no sign of masking
    assert "any other wrong answer is none" in to_markdown(built)
    assert "any other wrong answer" not in to_markdown(built[:1])


def test_an_unbounded_targeted_attack_is_no_sanity_check() -> None:
    bounded = make_record("r" * 10)
    whole = make_record("r" * 10, eps=1)  # type: ignore[arg-type]
    aimed = replace(whole, threat=replace(whole.threat, goal=Goal.TARGETED))
    assert "unbounded_attack_fails" in str(only([bounded, whole]).frame["flags"].iloc[0])
    built = build([bounded, aimed])
    assert len(built) == 2
    assert "no_unbounded_check" in built[0].frame["flags"].iloc[0]


def test_the_page_holds_every_step_of_every_curve() -> None:
    built = build([flips([3, 6, 40]), flips([5, 300, None], attack="scar<b>", access=Access.SCORE)])
    page = to_html(built)
    assert '"unit":"flipped cells"' in page and "scar<b>" not in page and "`curves.csv`" in to_markdown(built)
    text = re.findall(r'id="data">(.*?)</script>', page)[0]
    (board,) = json.loads(text)["boards"]
    assert board["labels"] == ["scar<b>", "sda.l0"]
    assert board["rows"][0]["curves"] == [
        [-1, 3, [3, 1, 6, 2, 40, 3]],
        [0, 3, [5, 1, 300, 2]],
        [1, 3, [3, 1, 6, 2, 40, 3]],
    ]


def test_a_chart_has_one_labelled_curve_an_attack() -> None:
    records = [flips([3, 6, 40]), flips([5, 300, None], attack="scar<b>", access=Access.SCORE)]
    found = charts(only([*records, flips([7], victim="other")]))
    assert [label for label, _ in found.key] == ["all attacks", "sda.l0", "scar<b>"]
    assert [chart.count("<title>") for _, chart in found.figures] == [1, 3]  # in the order of the ranks
    chart = found.figures[1][1]
    assert "<title>scar&lt;b&gt;</title>" in chart and "scar<b>" not in chart
    assert "budget: flipped cells" in chart and "success (% of attacked)" in chart
    styles = [style for _, style in found.key]
    assert len(set(styles)) == 3 and "dasharray" in styles[2] and "dasharray" not in styles[1]


def test_a_curve_ends_at_its_share_and_stays_inside_the_chart() -> None:
    ((_, chart),) = charts(only([flips([1, 10, 1000, None])])).figures
    (path,) = re.findall(r'<path d="([^"]*)" fill="none"', chart)
    start, *moves = re.findall(r"([MHV])([\d.]+)(?: ([\d.]+))?", path)
    heights = [float(start[2]), *(float(y) for kind, y, _ in moves if kind == "V")]
    places = [float(x) for kind, x, _ in moves if kind == "H"]
    assert heights == [260, 197, 134, 71]  # 0, 25, 50 and 75 % of 252 pixels over the floor at 260
    assert places == pytest.approx([42, 182, 462, 462], abs=0.1)  # 1, 10, 1000, the right edge


def test_many_attacks_keep_styles_of_their_own() -> None:
    names = [f"white{i}" for i in range(12)] + [f"score{i}" for i in range(12)]
    records = [
        flips([3], attack=name, access=Access.WHITE if name.startswith("w") else Access.SCORE)
        for name in names
    ]
    styles = [style for _, style in charts(only(records)).key]
    assert len(set(styles)) == len(styles) == 25


def test_files_of_a_board(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    publish([flips([3, 6])], out=tmp_path / "board")
    always = {
        "cells.csv",
        "how-to-read.html",
        "leaderboard.html",
        "leaderboard.json",
        "leaderboard.md",
        "rows.csv",
    }
    assert {p.name for p in (tmp_path / "board").iterdir()} == always | {"attacks.csv", "curves.csv"}
    shown = capsys.readouterr().out
    assert "median over successes" in shown and "spikes added" in shown
    publish([make_record("rb")], out=tmp_path / "plain", csv=tmp_path / "wide" / "board.csv")
    assert {p.name for p in (tmp_path / "plain").iterdir()} == always
    assert [p.name for p in (tmp_path / "wide").iterdir()] == ["board.csv"]


def test_the_terminal_explains_flags_and_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    many = [flips([3, None], attack=f"attack{i}.l0", victim=f"net{v}") for i in range(9) for v in range(4)]
    publish(many)
    shown = capsys.readouterr().out
    assert "36 lines (victim, attack alone, ...)" in shown and "loses to" not in shown
    assert f"unbounded_attack_fails!: {FLAGS['unbounded_attack_fails'].meaning}" in shown
    publish([make_record("rb")])
    assert " lines (" not in capsys.readouterr().out
