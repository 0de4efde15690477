"""The file of published figures: every line names its attack, its source and how it was read."""

from __future__ import annotations

import csv
import importlib.resources

COLUMNS = [
    "method",
    "dataset",
    "network",
    "steps",
    "threat",
    "attack",
    "measure",
    "clean",
    "value",
    "source",
    "read",
]


def rows() -> list[dict[str, str]]:
    text = (importlib.resources.files("robustspike.leaderboard") / "published.csv").read_text("utf-8")
    reader = csv.DictReader(text.splitlines())
    assert reader.fieldnames == COLUMNS
    return list(reader)


def test_every_published_figure_says_what_it_is_and_where_it_was_read() -> None:
    found = rows()
    assert found
    for row in found:
        for column in ("method", "dataset", "threat", "attack", "measure", "source"):
            assert row[column].strip(), row
        assert row["read"] in ("abstract", "table", "repository"), row
        assert row["measure"] in ("accuracy under attack in %", "attack success rate in %"), row
        assert all(0 <= float(row[column]) <= 100 for column in ("clean", "value") if row[column]), row
        assert not row["steps"] or int(row["steps"]) > 0


def test_no_published_figure_is_listed_twice() -> None:
    keys = [tuple(row[c] for c in COLUMNS if c not in ("clean", "value")) for row in rows()]
    assert len(set(keys)) == len(keys)
