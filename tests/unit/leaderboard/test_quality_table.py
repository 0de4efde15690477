"""The quality table: worst case per image, control apart, flags, ranks, rendering."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import SampleRecord
from robustspike.leaderboard import metrics
from robustspike.leaderboard.filters import sort_sections
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.sections import visibility
from robustspike.leaderboard.sections.quality import by_training_seed
from robustspike.leaderboard.write.csv import wide_csv
from robustspike.leaderboard.write.markdown import to_markdown
from robustspike.leaderboard.write.page import to_html
from robustspike.leaderboard.write.page import to_reading

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
    images: int = 1,
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
            extras={
                "ssim": ssim,
                "psnr": 45.0,
                "haarpsi": 0.97,
                "gradient_l1": 70.0,
                "slope": 50.0,
                "source": float(i // images),
            },
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
        counts={"n": len(clean), "errors": int(failed >= 0)},
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


def quality_sections(records: list[CellRecord]) -> list[Section]:
    return [section for section in build(records) if section.kind.name == "quality"]


def visibility_sections(records: list[CellRecord]) -> list[Section]:
    return [section for section in build(records) if section.kind.name == "visibility"]


def row_of(records: list[CellRecord]) -> dict[str, object]:
    (section,) = quality_sections(records)
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


def test_three_pairs_of_scores_agree_as_scipy_says_and_means_carry_intervals() -> None:
    change = np.array([25.0, -13, -40, 8, 31, 2, -55, -20])
    row = row_of([record("a", change), control()])
    attacked = CLEAN + change
    pairs = {"clean": (CLEAN, MOS), "attacked": (attacked, MOS), "stability": (attacked, CLEAN)}
    for pair, (x, y) in pairs.items():
        assert row[f"srocc_{pair}"] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert row[f"krocc_{pair}"] == pytest.approx(stats.kendalltau(x, y).statistic)
    assert row["plcc_stability"] == pytest.approx(stats.pearsonr(attacked, CLEAN).statistic)
    mapping = metrics.fit_mapping(CLEAN, MOS)
    assert row["plcc_clean"] == pytest.approx(stats.pearsonr(mapping(CLEAN), MOS).statistic)
    assert row["rmse_clean"] == pytest.approx(np.sqrt(np.square(mapping(CLEAN) - MOS).mean()))
    assert row["rmse_clean"] < row["rmse_attacked"] and row["rmse"] == pytest.approx(
        np.sqrt(np.square(change).mean())
    )
    gain = change / 70  # scaled by the clean predictions, 20 to 90
    low, high = stats.t.interval(0.95, 7, loc=gain.mean(), scale=stats.sem(gain))
    found = [row[f"absolute_gain{end}"] for end in ("", "_low", "_high")]
    assert found == pytest.approx([gain.mean(), low, high])
    for name in ("relative_gain", "robustness", "mae"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert row["haarpsi"] == pytest.approx(0.97)


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


def test_a_spiking_model_is_attacked_through_several_surrogates_or_flagged() -> None:
    def flags(*estimators: str, adaptive: tuple[str, ...] = ()) -> object:
        declared = {"declared": {"neurons": 4, "adaptive": list(adaptive)}}
        records = [replace(control(), parameters=declared)]
        for name in estimators:
            label = "quality.ifgsm" if name == "native" else f"quality.ifgsm[estimator={name}]"
            parameters = declared | {"attack": {"estimator": name}}
            records.append(
                replace(record("quality.ifgsm", 20.0), key=label, label=label, parameters=parameters)
            )
        return row_of(records)["flags"]

    assert flags("native") == "single_surrogate"
    assert flags("native", "assg") == ""
    assert flags("native", adaptive=("wide_surrogate",)) == "missing_adaptive_attack single_surrogate"
    assert flags("native", "assg", adaptive=("wide_surrogate",)) == ""


def test_ranks_are_shared_unless_a_paired_test_separates_and_flags_unrank() -> None:
    strong, weak = {"victim": "strong"}, {"victim": "weak"}
    records = [record("a", 5.0, **strong), control(**strong), record("a", 20.0, **weak), control(**weak)]
    near = [record("a", [6.0] * 4 + [4.0] * 4, victim="near"), control(victim="near")]
    noisy = [record("a", 1.0, victim="noisy"), control(0.9, victim="noisy")]
    (section,) = quality_sections(records + near + noisy)
    ranks = dict(zip(section.frame["victim"], (row[0] for row in section.tables()[0].rows), strict=True))
    assert ranks == {"near": "1-2", "strong": "1-2", "weak": "3", "noisy": "-"}


def test_errors_are_left_out_and_a_row_without_images_survives() -> None:
    row = row_of([record("a", 20.0, failed=0), control()])
    assert row["mae"] == 20 and row["n"] == 8
    records = [record("a", 20.0, failed=i) for i in range(8)]
    for place, one in enumerate(records):
        object.__setattr__(one, "key", f"k{place}")
    assert np.isnan(row_of(records)["mae"])


def test_rendering_holds_the_numbers_and_names_the_labels_pseudo_mos() -> None:
    sections = quality_sections([record("a", 20.0), control(), record("a", 9.0, victim="snn")])
    (row, other) = csv.DictReader(io.StringIO(wide_csv(sections)))
    assert {row["victim"], other["victim"]} == {"cnn", "snn"}
    assert "pseudo-MOS" in row["section"]
    text, page = to_markdown(sections), to_html(sections)
    assert "20.0 [20.0, 20.0]" in text and "`no_noise_control`" in text and "pseudo-MOS" in page
    assert sort_sections(sections, "mae")[0].frame["mae"].tolist() == [9.0, 20.0]
    assert sort_sections(sections, "mae:desc")[0].frame["mae"].tolist() == [20.0, 9.0]


def at_budgets(attack: str, points: dict[int, tuple[float, float]], **changes: object) -> list[CellRecord]:
    """Return records of one attack at budgets in 255ths: budget -> (change, SSIM)."""
    made = []
    for budget, (change, ssim) in points.items():
        one = record(attack, change, ssim=ssim, **changes)
        rows = tuple(replace(row, distance=budget / 255) for row in one.rows)
        threat = replace(one.threat, eps=Fraction(budget, 255))
        made.append(replace(one, key=f"{one.key}-{budget}", threat=threat, rows=rows))
    return made


def test_attacks_are_read_at_equal_visibility_between_their_budgets() -> None:
    loud = at_budgets("loud", {1: (10.0, 0.996), 2: (16.0, 0.984), 4: (30.0, 0.93)})
    quiet = at_budgets("quiet", {1: (2.0, 0.9999), 2: (4.0, 0.9996), 4: (9.0, 0.997)})
    (section,) = visibility_sections([*loud, *quiet, *at_budgets("two", {1: (1, 0.9), 2: (2, 0.8)})])
    rows = {row["attack"]: row for row in section.frame.to_dict("records")}
    assert set(rows) == {"loud", "quiet", visibility.ALL}
    assert rows["loud"]["mae_ssim"] == pytest.approx(13.0)  # half way between 10 and 16
    assert rows["quiet"]["mae_ssim"] == 9.0 and rows["quiet"]["short_ssim"] == 1.0
    assert rows["loud"]["mae_linf"] == 16.0 and rows["quiet"]["mae_linf"] == 4.0
    assert rows[visibility.ALL]["mae_ssim"] == pytest.approx(13.0)
    assert rows[visibility.ALL]["short_ssim"] == 0.0
    by_ssim, by_distance = section.tables()
    assert by_ssim.rows == [["all attacks", "13.0 [13.0, 13.0]"], ["loud", "13.0"], ["quiet", ">9.0"]]
    assert by_distance.rows[0] == ["all attacks", "16.0 [16.0, 16.0]"]


def test_a_curve_never_falls_below_what_less_visible_points_reach() -> None:
    curve = [(0.0, 0.0, 0.0), (0.004, 1 / 255, 20.0), (0.016, 2 / 255, 8.0), (0.1, 4 / 255, 30.0)]
    assert visibility.change_at(curve, 0, 0.01) == (20.0, True)
    assert visibility.change_at(curve, 1, 0.5 / 255) == (pytest.approx(10.0), True)
    assert visibility.change_at(curve, 0, 0.5) == (30.0, False)


def test_equal_visibility_leaves_out_errors_and_the_control_and_is_published() -> None:
    points = {1: (10.0, 0.996), 2: (16.0, 0.984), 4: (30.0, 0.93)}
    failing = at_budgets("a", points, failed=3)
    noise = at_budgets("quality.random_sign", points, access=Access.SCORE)
    sections = visibility_sections([*failing, *noise])
    assert set(sections[0].frame["attack"]) == {"a", "all attacks"} and set(sections[0].frame["n"]) == {7}
    assert visibility_sections(failing[:2]) == []
    text, page = to_markdown(sections), to_reading(sections)
    assert "MAE at SSIM 0.99 under" in text and "<em>At equal visibility</em>" in page
    (first, _) = csv.DictReader(io.StringIO(wide_csv(sections)))
    assert float(first["mae_ssim"]) == pytest.approx(13.0) and first["rank_low"] == ""


def test_training_seeds_are_summarised_with_an_interval() -> None:
    records = [
        record("a", move, victim=name) for move, name in ((10.0, "cnn"), (14.0, "cnn@1"), (12.0, "cnn@2"))
    ]
    (section,) = quality_sections([*records, *(control(victim=r.victim) for r in records)])
    headers, rows = section.tables()[2].headers, section.tables()[2].rows
    assert headers[0] == "mean of k training seeds"
    assert (
        rows[0][:3] == ["cnn", "none", "3"] and rows[0][5] == "12.0 [7.0, 17.0]"
    )  # 12 +- 4.303 * 2 / sqrt 3
    assert by_training_seed(section.frame.iloc[:1]) is None
    assert "Mean of k training seeds" in to_html([section])


def scaled(attack: str, scores: list[float], **changes: object) -> CellRecord:
    """A record whose scaled attacks were answered with clean + these at every strength (NaN: not reached)."""
    made = record(attack, 1.0, **changes)
    rows = tuple(
        replace(
            row,
            extras={
                **row.extras,
                **{f"score_{name}": row.clean_score + move for name in ("psnr40", "psnr35", "ssim99")},
            },
        )
        for row, move in zip(made.rows, scores, strict=True)
    )
    return replace(made, rows=rows)


def strength_sections(records: list[CellRecord]) -> list[Section]:
    return [section for section in build(records) if section.kind.name == "strength"]


def test_equal_strength_has_a_row_for_every_attack_and_one_for_the_worst_of_each_image() -> None:
    n = len(CLEAN)
    up = scaled("quality.ifgsm", [10.0] * n)
    half = scaled("quality.stadv", [-20.0] + [math.nan] * (n - 1))
    noise = scaled("quality.random_sign", [50.0] * n)
    (section,) = strength_sections([up, half, noise])
    rows = {row["attack"]: row for _, row in section.frame.iterrows()}
    assert set(rows) == {"all attacks", "quality.ifgsm", "quality.stadv", "quality.random_sign"}
    assert rows["quality.ifgsm"]["mae_psnr40"] == 10 and rows["quality.ifgsm"]["short_psnr40"] == 0
    assert rows["quality.stadv"]["mae_ssim99"] == pytest.approx(20 / n)
    assert rows["quality.stadv"]["short_ssim99"] == pytest.approx((n - 1) / n)
    assert rows["all attacks"]["mae_psnr35"] == pytest.approx(10 + 10 / n)  # the control is no attack
    first = section.tables()[0]
    assert first.headers[0] == "MAE at PSNR 40 dB under" and first.rows[0][0] == "all attacks"
    assert next(row for row in first.rows if row[0] == "quality.stadv")[1].startswith(">")


def test_records_without_scaled_scores_have_no_table_of_equal_strength() -> None:
    assert strength_sections([record("quality.ifgsm", 5.0), control()]) == []
