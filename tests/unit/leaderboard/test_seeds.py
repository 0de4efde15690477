"""Means over training seeds."""

from __future__ import annotations

import pytest

from robustspike.bench.numbers.stats import wilson
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.seeds import interval
from robustspike.leaderboard.seeds import mean_rows
from robustspike.leaderboard.seeds import student_interval
from robustspike.leaderboard.write.markdown import to_markdown
from robustspike.leaderboard.write.page import to_html
from tests.support.records import make_record


def means(section: Section) -> list[dict[str, object]]:
    return mean_rows(section.frame, ("clean", "worst_case", *section.part_columns))


def test_students_interval_of_three_values() -> None:
    low, high = student_interval([0.4, 0.5, 0.6])  # t(2) = 4.302653, s = 0.1
    assert (low, high) == pytest.approx((0.5 - 0.2484138, 0.5 + 0.2484138))
    assert student_interval([0.5, 0.5]) == (0.5, 0.5)
    assert student_interval([0.0, 1.0]) == (0.0, 1.0)


def test_the_interval_covers_the_samples_even_where_all_seeds_agree() -> None:
    mean, low, high = interval([0.5, 0.5, 0.5], 100)
    assert (mean, low, high) == pytest.approx((0.5, *wilson(50, 100)))
    _, lower, higher = interval([0.4, 0.5, 0.6], 100)
    assert (0.5 - lower) ** 2 == pytest.approx(0.2484138**2 + (0.5 - low) ** 2)
    assert (higher - 0.5) ** 2 == pytest.approx(0.2484138**2 + (high - 0.5) ** 2)
    assert interval([1.0, 1.0], 10)[2] == 1.0 and interval([0.0, 0.0], 10)[1] == 0.0


def test_only_rows_that_differ_in_the_training_seed_are_put_together() -> None:
    records = [
        make_record("rrbbw", victim="net"),
        make_record("rrrbw", victim="net@1"),
        make_record("rrrrw", victim="net@12"),
        make_record("bbbbw", victim="net", defense="sr"),
        make_record("rbbbw", victim="other@1"),
        make_record("bbbbw", victim="other@x"),
    ]
    (section,) = build(records)
    (row,) = means(section)
    assert (row["victim"], row["defense"], row["seeds"]) == ("net", "none", 3)
    assert row["clean"] == pytest.approx((0.8, *wilson(4, 5)))
    assert row["worst_case"][0] == pytest.approx(0.6)
    assert row["acc:pgd.linf"] == row["worst_case"]
    (again,) = means(build(records[::-1])[0])
    assert again == row


def test_an_attack_that_one_seed_lacks_has_no_mean() -> None:
    records = [
        make_record("rrbb", victim="net"),
        make_record("rrrb", victim="net@1"),
        make_record("rrrr", victim="net@1", attack="noise"),
    ]
    (section,) = build(records)
    assert "acc:noise" not in means(section)[0]
    assert [row[-2:] for row in section.tables()[2].rows] == [["-", "62.5 [0.0, 100.0]"]]


def test_the_table_appears_only_where_there_are_seeds() -> None:
    one = build([make_record("rrbbw", victim="net@1")])
    two = build([make_record("rrbbw", victim="net"), make_record("rrrbw", victim="net@1")])
    for show in (to_markdown, to_html):
        assert "training seeds" not in show(one)
        assert "mean of k training seeds" in show(two)
        assert "50.0 [" in show(two)
