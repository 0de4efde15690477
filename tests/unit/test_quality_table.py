"""The quality table: worst case per image, control apart, flags, ranks, rendering."""

from __future__ import annotations

import csv
import io
from fractions import Fraction

import numpy as np
import pytest

from robustspike.bench.contracts import Access
from robustspike.bench.contracts import Goal
from robustspike.bench.contracts import Status
from robustspike.bench.contracts import Task
from robustspike.bench.contracts import ThreatModel
from robustspike.bench.records import CellRecord
from robustspike.bench.records import SampleRecord
from robustspike.leaderboard import quality_table
from robustspike.leaderboard.render import sort_sections
from robustspike.leaderboard.render import to_csv
from robustspike.leaderboard.render import to_html
from robustspike.leaderboard.render import to_markdown

CLEAN = np.array([20.0, 40.0, 60.0, 80.0, 30.0, 50.0, 70.0, 90.0])
MOS = CLEAN + np.array([3, -2, 1, 0, -1, 4, 2, -3])


def record(
    attack: str,
    change: object,
    *,
    victim: str = "cnn",
    access: Access = Access.WHITE,
    clean: np.ndarray = CLEAN,
    ssim: float = 0.995,
    failed: int = -1,
) -> CellRecord:
    moves = np.broadcast_to(np.asarray(change, dtype=float), clean.shape)
    rows = tuple(
        SampleRecord(
            row=i,
            label=float(MOS[i]),
            clean=0,
            adv=0,
            status=Status.ERROR if i == failed else Status.BROKEN if abs(moves[i]) > 10 else Status.ROBUST,
            distance=4 / 255,
            forwards=2,
            backwards=1,
            first_hit=1,
            clean_score=float(clean[i]),
            adv_score=float(clean[i] + moves[i]),
            extras={"ssim": ssim, "psnr": 45.0, "gradient_l1": 70.0, "slope": 50.0},
        )
        for i in range(len(clean))
    )
    return CellRecord(
        key=f"{victim}-{attack}",
        suite="test",
        task=Task.QUALITY,
        victim=victim,
        defense="none",
        attack=attack,
        label=attack,
        parameters={},
        dataset="photopatch_iqa",
        split="test",
        samples=len(clean),
        shard=8,
        threat=ThreatModel(eps=Fraction(4, 255), goal=Goal.SHIFT, levels=255, access=access),
        seed=0,
        counts={"n": len(clean)},
        cost={"forwards": 16, "backwards": 8, "attacked": 8},
        measures={"score_range": [0.0, 100.0]},
        flags=(),
        errors=(),
        digests={"data": "d", "weights": "w"},
        environment={},
        rows=rows,
    )


def control(change: float = 1.0, **changes: object) -> CellRecord:
    return record("quality.random_sign", change, access=Access.SCORE, **changes)


def row_of(records: list[CellRecord]) -> dict[str, object]:
    (section,) = quality_table.sections(records)
    (row,) = section.frame.to_dict("records")
    return row


def test_each_image_counts_under_its_worst_attack_without_the_control() -> None:
    up, down = np.array([30.0, 2, 2, 2, 2, 2, 2, 2]), np.array([-5.0] * 8)
    row = row_of([record("a", up), record("b", down), control(99.0 / 8)])
    assert row["mae"] == pytest.approx((30 + 7 * 5) / 8)
    assert (row["mae:a"], row["mae:b"]) == (pytest.approx(44 / 8), 5.0)
    assert row["mae_random"] == pytest.approx(99 / 8) and row["moved"] == pytest.approx(1 / 8)
    assert row["propagations"] == pytest.approx(3 * 24 / 8)
    assert row["gradient_l1"] == pytest.approx(70) and row["n"] == 8
    assert row["srocc_clean_low"] < row["srocc_clean"] <= row["srocc_clean_high"]


def test_visible_attacks_do_not_count_as_hidden() -> None:
    row = row_of([record("seen", 20.0, ssim=0.9), record("hidden", 6.0), control()])
    assert row["mae"] == 20 and row["mae_hidden"] == 6


@pytest.mark.parametrize(
    ("records", "flag"),
    [
        ([record("a", 20.0), control(15.0)], "noise_sensitive"),
        ([record("a", 0.0, clean=np.full(8, 50.0)), control(0.0, clean=np.full(8, 50.0))], "constant_score"),
        ([record("a", 20.0)], "no_noise_control"),
        ([record("sq", 20.0, access=Access.SCORE), control()], "no_gradient_attack"),
        ([record("a", 5.0), record("sq", 20.0, access=Access.SCORE), control()], "black_box_beats_white_box"),
    ],
)
def test_suspect_evaluations_are_flagged(records: list[CellRecord], flag: str) -> None:
    assert flag in str(row_of(records)["flags"]).split()
    healthy = [record("a", 20.0), record("sq", 5.0, access=Access.SCORE), control()]
    assert row_of(healthy)["flags"] == ""


def test_ranks_are_shared_unless_a_paired_test_separates_and_flags_unrank() -> None:
    strong, weak = {"victim": "strong"}, {"victim": "weak"}
    records = [record("a", 5.0, **strong), control(**strong), record("a", 20.0, **weak), control(**weak)]
    near = [record("a", [6.0] * 4 + [4.0] * 4, victim="near"), control(victim="near")]
    noisy = [record("a", 1.0, victim="noisy"), control(0.9, victim="noisy")]
    (section,) = quality_table.sections(records + near + noisy)
    ranks = dict(zip(section.frame["victim"], section.frame["rank"], strict=True))
    assert ranks["near"] == ranks["strong"] == 1 and ranks["weak"] == 3
    assert np.isnan(ranks["noisy"])


def test_errors_are_left_out_and_a_row_without_images_survives() -> None:
    row = row_of([record("a", 20.0, failed=0), control()])
    assert row["mae"] == 20 and row["n"] == 8
    records = [record("a", 20.0, failed=i) for i in range(8)]
    for place, one in enumerate(records):
        object.__setattr__(one, "key", f"k{place}")
    assert np.isnan(row_of(records)["mae"])


def test_rendering_holds_the_numbers_and_names_the_labels_pseudo_mos() -> None:
    sections = quality_table.sections([record("a", 20.0), control(), record("a", 9.0, victim="snn")])
    (row, other) = csv.DictReader(io.StringIO(to_csv(sections)))
    assert {row["victim"], other["victim"]} == {"cnn", "snn"}
    assert "pseudo-MOS" in row["section"]
    text, page = to_markdown(sections), to_html(sections)
    assert "20.0 [20.0, 20.0]" in text and "`no_noise_control`" in text and "pseudo-MOS" in page
    for key in ("worst_case", "clean", "asr", "victim"):
        assert len(sort_sections(sections, key)[0].frame) == 2
    assert sort_sections(sections, "worst_case")[0].frame["mae"].tolist() == [9.0, 20.0]
