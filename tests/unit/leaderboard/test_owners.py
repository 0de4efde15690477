"""A row stands for a victim, a defense and one set of weights, in every table and file."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from fractions import Fraction

import pytest

from robustspike.bench.contract.specs import Access
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.owners import Names
from robustspike.leaderboard.owners import owner_of
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.write.csv import details_csv
from robustspike.leaderboard.write.csv import tidy_csv
from robustspike.leaderboard.write.csv import wide_csv
from robustspike.leaderboard.write.json import document
from robustspike.leaderboard.write.json import to_json
from robustspike.leaderboard.write.markdown import to_markdown
from robustspike.leaderboard.write.page import to_html
from tests.support.records import make_proof
from tests.support.records import make_record
from tests.unit.leaderboard.test_leaderboard_spikes import flips
from tests.unit.leaderboard.test_quality_table import at_budgets
from tests.unit.leaderboard.test_quality_table import control
from tests.unit.leaderboard.test_quality_table import record as quality_record

ONE, OTHER = "1f" * 32, "a0" * 32


def of(weights: str, record: CellRecord) -> CellRecord:
    """Return a record as if it had been measured on other weights."""
    return replace(record, key=f"{weights[:4]}{record.key}", digests=record.digests | {"weights": weights})


def two_nets() -> list[CellRecord]:
    """Two nets of one name: one good and fragile, the other bad and sturdy."""
    return [
        of(ONE, make_record("bbbbbbbbrw", measures={"energy_clean_pj": 10_000})),
        of(OTHER, make_record("rrrwwwwwww", measures={"energy_clean_pj": 90_000})),
    ]


def test_two_nets_of_one_name_are_two_rows_that_say_which_is_which() -> None:
    (section,) = build(two_nets())
    rows = {row["weights"]: row for row in section.frame.to_dict("records")}
    assert (rows[ONE]["clean"], rows[ONE]["worst_case"]) == (0.9, 0.1)
    assert (rows[OTHER]["clean"], rows[OTHER]["worst_case"]) == (0.3, 0.3)
    assert (rows[ONE]["energy_nj"], rows[OTHER]["energy_nj"]) == (1.0, 9.0)
    assert rows[ONE]["name"] == "net #1f1f1f1f" and rows[OTHER]["name"] == "net #a0a0a0a0"
    for text in (to_markdown([section]), to_html([section])):
        assert "net #1f1f1f1f" in text and "net #a0a0a0a0" in text
    for text in (wide_csv([section]), tidy_csv([section], two_nets())["rows"]):
        found = {row["weights"]: row["victim"] for row in csv.DictReader(io.StringIO(text))}
        assert found == {ONE: "net", OTHER: "net"}
    (alone,) = build(two_nets()[:1])
    assert list(alone.frame["name"]) == ["net"]


def test_a_name_means_the_same_net_in_every_table() -> None:
    elsewhere = of(ONE, make_record("rb", data="d2"))
    built = build([*two_nets(), elsewhere])
    assert sorted(name for section in built for name in section.frame["name"]) == [
        "net #1f1f1f1f",
        "net #1f1f1f1f",
        "net #a0a0a0a0",
    ]


def test_digests_that_begin_alike_are_told_apart() -> None:
    records = [of("0" * 30 + end, make_record("rb")) for end in "ab"]
    names = Names(records)
    assert {names.of(owner_of(r)) for r in records} == {"net #" + "0" * 30 + end for end in "ab"}


def test_distances_curves_and_attacks_are_never_those_of_two_nets() -> None:
    records = [of(ONE, flips([3, 6, 9])), of(OTHER, flips([30, None, 90]))]
    records += [of(ONE, flips([4, 4, 4], attack="flip.random", access=Access.LABEL))]
    (section,) = build(records)
    assert dict(zip(section.frame["weights"], section.frame["median_all"], strict=True)) == {
        OTHER: 90,
        ONE: 4,
    }
    attacks = {(row["weights"], row["attack"]): row["broken"] for row in section.attacks.to_dict("records")}
    assert attacks == {(ONE, "sda.l0"): 3, (ONE, "flip.random"): 3, (OTHER, "sda.l0"): 2}
    curves = csv.DictReader(io.StringIO(details_csv([section])["curves"]))
    assert {(row["name"], row["weights"]) for row in curves} == {
        ("net #1f1f1f1f", ONE),
        ("net #a0a0a0a0", OTHER),
    }
    page = to_html([section])
    for name in ("net #1f1f1f1f", "net #a0a0a0a0"):
        assert f'<th scope="row">{name}</th>' in page and f'"id":"{name}"' in page


def test_quality_rows_and_curves_of_visibility_are_never_those_of_two_nets() -> None:
    calm, wild = (
        [
            of(weights, record)
            for record in (
                *at_budgets("a", {1: (change, 0.996), 2: (2 * change, 0.984), 4: (4 * change, 0.93)}),
                control(),
                quality_record("b", change),
            )
        ]
        for weights, change in ((ONE, 1.0), (OTHER, 9.0))
    )
    built = build([*calm, *wild])
    assert {section.kind.name for section in built} == {"quality", "visibility"}
    for section in built:
        assert set(section.frame["name"]) == {"net #1f1f1f1f", "net #a0a0a0a0"} or set(
            section.frame["name"]
        ) == {"cnn #1f1f1f1f", "cnn #a0a0a0a0"}
    (at_four,) = (s for s in built if s.kind.name == "quality" and "linf 4/255" in s.title)
    mae = dict(zip(at_four.frame["weights"], at_four.frame["mae"], strict=True))
    assert mae == {ONE: pytest.approx(4), OTHER: pytest.approx(36)}


def test_training_seeds_are_not_made_up_from_two_nets_of_one_name() -> None:
    records = [*two_nets(), of("7e" * 32, make_record("rrbbbbbbbw", victim="net@1"))]
    text = to_markdown(build(records))
    assert "training seeds" not in text
    assert "mean of k training seeds" in to_markdown(build([records[0], records[2]]))


def test_a_defense_is_compared_with_the_net_that_it_was_put_on() -> None:
    filtered = of(OTHER, make_record("rrrrwwwwww", defense="filter"))
    trained = of("7e" * 32, make_record("rrrrrrrrrw", defense="sr"))
    (section,) = build([*two_nets(), filtered, trained])
    deltas = dict(zip(section.frame["defense"], section.frame["clean_delta"], strict=True))
    assert deltas["filter"] == pytest.approx(0.1)  # 4 against 3 of ten: the net with the same weights
    assert deltas["sr"] != deltas["sr"]  # nobody can say which of the two it was trained from


def test_a_certificate_counts_for_the_net_that_it_is_of() -> None:
    proof = of(OTHER, make_proof("rrruuwwwww"))
    (section,) = build([*two_nets(), proof])
    shares = section.frame.set_index("weights")["certified"]
    assert shares[OTHER] == 0.3 and shares.isna()[ONE]
    assert not section.frame.set_index("weights")["flags"].str.contains("contradicted")[ONE]


def test_an_unbounded_check_counts_for_the_net_that_it_was_run_on() -> None:
    check = of(ONE, make_record("bbbbbbbbbw", eps=Fraction(1)))
    (section,) = build([*two_nets(), check])
    flags = section.frame.set_index("weights")["flags"]
    assert "no_unbounded_check" not in flags[ONE] and "no_unbounded_check" in flags[OTHER]


def test_json_names_the_weights_of_every_row_and_cell() -> None:
    records = two_nets()
    found = json.loads(to_json(document(build(records), records)))
    assert {row["weights"] for row in found["sections"][0]["rows"]} == {ONE, OTHER}
    assert {cell["weights"] for cell in found["cells"]} == {ONE, OTHER}
