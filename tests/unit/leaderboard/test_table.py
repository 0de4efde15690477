"""Tables: worst case by sample, shared ranks, flags, and bytes that depend on the records alone."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustspike.bench.contract.specs import Access
from robustspike.bench.contract.specs import Budget
from robustspike.bench.errors import ConfigError
from robustspike.bench.numbers.stats import bootstrap_median
from robustspike.bench.numbers.stats import sign_test
from robustspike.bench.numbers.stats import wilson
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard.filters import sort_sections
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.text import Table
from robustspike.leaderboard.write.csv import wide_csv
from robustspike.leaderboard.write.markdown import to_markdown
from robustspike.leaderboard.write.page import to_html
from robustspike.leaderboard.write.page import to_reading
from tests.support.records import make_record

GOLDEN = Path(__file__).parents[2] / "golden"


def board() -> list[CellRecord]:
    """Two strong nets that cannot be separated, a weak one, and one that masks its gradient."""
    records = []
    for victim, white, black in (
        ("strong", "r" * 30 + "b" * 8 + "ww", "r" * 34 + "b" * 4 + "ww"),
        ("similar", "r" * 29 + "b" * 9 + "ww", "r" * 35 + "b" * 3 + "ww"),
        ("weak", "r" * 6 + "b" * 33 + "w", "r" * 20 + "b" * 19 + "w"),
        ("masked", "r" * 39 + "w", "r" * 15 + "b" * 24 + "w"),
    ):
        records.append(make_record(white, victim=victim))
        records.append(make_record(black, victim=victim, attack="noise", access=Access.LABEL))
        unbounded = "b" * 39 + "w" if victim != "masked" else "r" * 39 + "w"
        records.append(make_record(unbounded, victim=victim, eps=Fraction(1)))
    return records


def table(section: Section, corner: str) -> Table | None:
    """Return the table of a section by its first heading."""
    return next((found for found in section.tables() if found.headers[0] == corner), None)


def by_victim(section: Section) -> dict[str, dict[str, object]]:
    return {str(row["victim"]): row for row in section.frame.to_dict("records")}


def test_worst_case_is_by_sample_not_by_attack() -> None:
    records = [make_record("rbrbw"), make_record("brrbw", attack="fgsm.linf")]
    (section,) = build(records)
    row = by_victim(section)["net"]
    assert (row["worst_case"], row["clean"], row["n"]) == (1 / 5, 4 / 5, 5)
    assert row["acc:pgd.linf"] == row["acc:fgsm.linf"] == 2 / 5
    assert row["asr"] == 3 / 4
    assert row["propagations"] == 2 * 9


def defended_board() -> list[CellRecord]:
    """A defense that costs a sample and three times the training, and one that nobody can compare."""
    records = [
        make_record("rbbbw", measures={"energy_clean_pj": 5000}),
        make_record("rrbww", defense="sr", measures={"energy_clean_pj": 6000}),
        make_record("rrrrw", victim="alone", defense="filter"),
    ]
    passes = ({"own": 40, "plain": 40}, {"own": 120, "plain": 40}, {"plain": "x", "own": None})
    return [
        replace(record, parameters=record.parameters | {"declared": {"training_passes": spent}})
        for record, spent in zip(records, passes, strict=True)
    ]


def test_a_defense_is_shown_with_what_it_costs() -> None:
    (section,) = build(defended_board())
    rows = {(row["victim"], row["defense"]): row for row in section.frame.to_dict("records")}
    assert rows["net", "none"]["clean_delta"] == 0 and rows["net", "none"]["training"] == 1
    assert rows["net", "sr"]["clean_delta"] == pytest.approx(-0.2) and rows["net", "sr"]["training"] == 3
    assert all(np.isnan(rows["alone", "filter"][name]) for name in ("clean_delta", "training"))
    bought = table(section, "what a defense buys and costs")
    assert bought is not None
    headers, cells = bought.headers, bought.rows
    assert headers[:3] == ["what a defense buys and costs", "defense", "worst case gained"]
    assert ["net", "sr", "+20.0", "-20.0", "1.2", "3"] in cells
    assert ["alone", "filter", "-", "-", "-", "-"] in cells
    assert table(build([make_record()])[0], "what a defense buys and costs") is None


def test_what_is_not_implemented_is_said_where_defenses_are_compared() -> None:
    left_out = {"Theirs (2020)": "its `weight` is not in the paper & not in the code"}
    for render, reason in (
        (to_markdown, "- Theirs (2020): its `weight` is not in the paper & not in the code."),
        (
            to_reading,
            "<li>Theirs (2020): its <code>weight</code> is not in the paper &amp; not in the code.</li>",
        ),
    ):
        assert reason in render(build(defended_board()), (), left_out)
        assert "Theirs" not in render(build(board()), (), left_out)


def test_an_error_is_never_robust_and_loses_the_rank() -> None:
    (section,) = build([make_record("rrrre")])
    row = by_victim(section)["net"]
    assert row["worst_case"] == 4 / 5
    assert "errors" in str(row["flags"])
    assert section.frame["rank_low"].isna().all()


def test_rows_that_cannot_be_separated_share_their_ranks() -> None:
    rows = by_victim(build(board())[0])
    ranks = {name: (row["rank_low"], row["rank_high"]) for name, row in rows.items() if name != "masked"}
    assert ranks == {"strong": (1, 2), "similar": (1, 2), "weak": (3, 3)}
    assert [row[0] for row in build(board())[0].tables()[0].rows] == ["1-2", "1-2", "3", "-"]


def test_masking_is_flagged_shown_and_never_ranked() -> None:
    frame = build(board())[0].frame
    assert frame["victim"].iloc[-1] == "masked"
    masked = by_victim(build(board())[0])["masked"]
    assert masked["flags"] == "black_box_beats_white_box unbounded_attack_fails"
    assert np.isnan(masked["rank_low"]) and np.isnan(masked["rank_high"])
    assert by_victim(build(board())[0])["strong"]["flags"] == ""


def test_the_flags_that_cost_a_row_its_rank_are_marked() -> None:
    record = make_record("r" * 20, measures={"zero_gradient_samples": 9, "unconfirmed": 1})
    kept = make_record("r" * 20, victim="kept", measures={"unconfirmed": 1})
    (section,) = build([record, kept])
    headers, rows = section.tables()[0].headers, section.tables()[0].rows
    told = {row[1]: (row[0], row[headers.index("flags")].split(", ")) for row in rows}
    assert told["net"] == ("-", ["no_unbounded_check", "unconfirmed", "zero_gradient!"])
    assert told["kept"] == ("1", ["no_unbounded_check", "unconfirmed"])
    legend = to_markdown([section]).partition("## Flags")[2]
    assert "- `zero_gradient!`: " in legend and "- `unconfirmed`: " in legend
    assert section.frame["flags"][1] == "no_unbounded_check unconfirmed zero_gradient"  # programs read names


def test_zero_gradients_are_flagged() -> None:
    record = make_record("r" * 20, measures={"zero_gradient_samples": 2})
    assert record.flags == ("zero_gradient",)
    assert make_record("r" * 20, measures={"zero_gradient_samples": 1}).flags == ()


def test_protocols_eps_and_data_are_never_mixed() -> None:
    records = [
        make_record(),
        make_record(eps=Fraction(1, 20)),
        make_record(data="d2"),
    ]
    assert [len(s.frame) for s in build(records)] == [1, 1, 1]


def test_seeds_are_part_of_the_worst_case() -> None:
    (section,) = build([make_record("rrbb"), make_record("brrb", seed=1)])
    assert by_victim(section)["net"]["worst_case"] == 1 / 4


def test_tables_depend_on_the_records_alone() -> None:
    records = board()
    expected = wide_csv(build(records)), to_markdown(build(records))
    for seed in range(5):
        random.Random(seed).shuffle(records)
        doubled = records + records[:3]
        assert (wide_csv(build(doubled)), to_markdown(build(doubled))) == expected


@pytest.mark.parametrize(("name", "render"), [("board.csv", wide_csv), ("board.md", to_markdown)])
def test_golden(name: str, render) -> None:  # type: ignore[no-untyped-def]
    assert render(build(board())) == (GOLDEN / name).read_text(encoding="utf-8")


def test_sorting_keeps_the_rows() -> None:
    built = build(board())
    again = sort_sections(built, "victim")
    assert list(again[0].frame["victim"]) == sorted(built[0].frame["victim"])
    down = sort_sections(built, "acc:noise:desc")[0].frame["acc:noise"]
    assert list(down) == sorted(built[0].frame["acc:noise"], reverse=True)
    with pytest.raises(ConfigError, match=r"no table has this column. Did you mean 'clean'"):
        sort_sections(built, "claen")


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_brackets_the_estimate(k: int, n: int) -> None:
    k = min(k, n)
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1


def test_wilson_covers_at_the_nominal_rate() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        p = rng.random()
        k = sum(rng.random() < p for _ in range(50))
        low, high = wilson(k, 50)
        covered += low <= p <= high
    assert 0.93 < covered / 2000 < 0.97


def test_wilson_known_value() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))


def test_sign_test_known_values() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(8, 1) == pytest.approx(2 * (1 + 9) / 512)


def far(victim: str, distances: str, attack: str = "sda.l0", access: Access = Access.WHITE) -> CellRecord:
    """Make a minimum-norm record: one digit a sample, its distance; "x" where the attack failed."""
    record = make_record(
        "".join("r" if d == "x" else "b" for d in distances),
        victim=victim,
        attack=attack,
        eps=None,
        access=access,
    )
    rows = tuple(
        replace(row, distance=0.0 if d == "x" else float(d))
        for row, d in zip(record.rows, distances, strict=True)
    )
    return replace(record, rows=rows, threat=replace(record.threat, geometry="l0"))


def test_distance_tables_take_the_nearest_of_all_attacks() -> None:
    records = [far("net", "1234x"), far("net", "95299", attack="random")]
    (section,) = build(records)
    row = by_victim(section)["net"]
    assert section.kind.name == "distance"
    assert row["median_all"] == 2
    assert row["success"] == 1
    assert (row["acc:sda.l0"], row["acc:random"]) == (3, 9)
    assert row["asr@5"] == 4 / 5


def test_failures_count_as_infinite_in_the_median() -> None:
    (section,) = build([far("net", "1xxxx")])
    row = by_victim(section)["net"]
    assert row["median_all"] == float("inf")
    assert row["median_success"] == 1
    assert "unbounded_attack_fails" in str(row["flags"])
    assert "inf" in to_markdown([section])


def test_a_control_that_needs_fewer_flips_is_flagged() -> None:
    records = [far("net", "9" * 12), far("net", "1" * 12, attack="random", access=Access.LABEL)]
    assert "black_box_beats_white_box" in str(by_victim(build(records)[0])["net"]["flags"])
    fair = [far("net", "1" * 12), far("net", "9" * 12, attack="random", access=Access.LABEL)]
    assert by_victim(build(fair)[0])["net"]["flags"] == ""


def test_the_median_interval_brackets_the_median() -> None:
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, np.inf])
    low, high = bootstrap_median(values)
    assert 1 <= low <= 5.5 <= high <= np.inf
    assert bootstrap_median(values) == (low, high)
    assert all(np.isnan(bootstrap_median(np.array([]))))
    assert bootstrap_median(np.array([3.0, 3.0])) == (3.0, 3.0)


def test_the_page_escapes_names_and_marks_flagged_rows() -> None:
    page = to_html(build([make_record(victim="<script>x</script>"), *board()]))
    assert "<script>x" not in page and page.count("</script>") == 2
    assert "&lt;script&gt;" in page
    assert page.count('class="flagged"') == 1


def test_the_table_by_attack_is_turned_round_for_many_victims() -> None:
    few, many = (
        build(make_record("r" * i + "b" * (9 - i), victim=f"v{i}") for i in range(n))[0].tables()[1]
        for n in (2, 9)
    )
    assert (few.headers, few.rows) == (["accuracy under", "v1", "v0"], [["pgd.linf", "11.1", "0.0"]])
    assert many.headers == ["accuracy under", "pgd.linf"]
    assert sorted(many.rows) == [[f"v{i}", f"{100 * i / 9:.1f}"] for i in range(9)]


def declaring(adaptive: list[str], **changes: object) -> CellRecord:
    record = make_record(**changes)  # type: ignore[arg-type]
    return replace(record, parameters={"declared": {"adaptive": adaptive, "notes": []}})


def test_a_missing_adaptive_attack_is_flagged() -> None:
    def flags(*records: CellRecord) -> str:
        return str(by_victim(build(records)[0])["net"]["flags"])

    alone = declaring(["wide_surrogate"])
    assert "missing_adaptive_attack" in flags(alone)
    assert "missing_adaptive_attack" not in flags(alone, declaring([], attack="autoattack.snn"))
    for estimator in ("native", "pdsg"):  # naming the victim's own surrogate is no other one
        given = replace(declaring([]), key="given", label=f"pgd.linf[estimator={estimator}]")
        given = replace(given, parameters=given.parameters | {"attack": {"estimator": estimator}})
        assert ("missing_adaptive_attack" in flags(alone, given)) == (estimator == "native")
    assert "missing_adaptive_attack" in flags(declaring(["square.linf"]))
    named = declaring(["square.linf"]), declaring([], attack="square.linf", access=Access.SCORE)
    assert "missing_adaptive_attack" not in flags(*named)


def test_a_poor_conversion_is_flagged() -> None:
    declared = {"declared": {"adaptive": [], "notes": ["conversion lost 30 of 500 answers at T=2"]}}
    record = replace(make_record(), parameters=declared)
    assert "poor_conversion" in str(by_victim(build([record])[0])["net"]["flags"])


def test_editions_of_one_suite_make_tables_of_their_own() -> None:
    newer = replace(make_record(attack="fgsm.linf"), suite_version=2, suite_digest="1" * 32)
    split = build([make_record(), newer])
    assert [s.protocol for s in split] == [
        "protocol 1; suites: test v1 (000000000000)",
        "protocol 1; suites: test v2 (111111111111)",
    ]
    assert [s.title.partition(", suite ")[2] for s in split] == [
        "test v1 (000000000000)",
        "test v2 (111111111111)",
    ]
    other = replace(newer, suite="mine")
    (whole,) = build([make_record(), other])
    assert whole.protocol == "protocol 1; suites: mine v2 (111111111111), test v1 (000000000000)"
    assert "suite" not in whole.title
    for text in (wide_csv([whole]), to_markdown([whole]), to_html([whole])):
        assert whole.protocol in text


def test_budgets_are_never_mixed() -> None:
    short = make_record(attack="fgsm.linf")
    short = replace(short, threat=replace(short.threat, budget=Budget(forwards=10, backwards=5)))
    titles = [s.title for s in build([make_record(), short])]
    assert sorted(title.partition(", at most ")[2] for title in titles) == ["", "10 forwards and 5 backwards"]
