"""What tables take from records: draws, levels, units, labels, photographs; and what older records say."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustspike.bench.api import registry
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.record.flags import FLAGS
from robustspike.bench.record.schema import CellRecord
from robustspike.leaderboard import facts
from robustspike.leaderboard.sections import Section
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.write.csv import wide_csv
from robustspike.leaderboard.write.markdown import to_markdown
from robustspike.leaderboard.write.page import to_html
from tests.support.records import make_record
from tests.unit.leaderboard.test_quality_table import CLEAN
from tests.unit.leaderboard.test_quality_table import control
from tests.unit.leaderboard.test_quality_table import quality_sections
from tests.unit.leaderboard.test_quality_table import record as quality_record


def declaring(record: CellRecord, **said: Any) -> CellRecord:
    return replace(record, parameters=dict(record.parameters) | {"declared": said})


def standing(level: str, verdicts: str, victim: str = "net") -> CellRecord:
    """Return a record of a standard verdict at a level; "full" is what its label leaves out."""
    record = make_record(verdicts, victim=victim, attack="autoattack.snn")
    label = "autoattack.snn" if level == "full" else f"autoattack.snn[level={level}]"
    return replace(record, key=record.key + level, label=label, parameters={"attack": {"level": level}})


def main(section: Section) -> tuple[list[str], list[list[str]]]:
    return section.tables()[0].headers, section.tables()[0].rows


def test_a_geometry_says_its_unit_and_what_it_can_reach() -> None:
    """Records made now say it; the table of older ones says the same."""
    for name in facts._BEFORE_GEOMETRIES_SAID:
        geometry = registry("geometries").get(name)
        threat = replace(make_record().threat, geometry=name)
        old = facts.reach(replace(make_record(), threat=threat))
        told = {field: getattr(geometry, field, getattr(facts.Reach(), field)) for field in vars(old)}
        new = facts.reach(declaring(replace(make_record(), threat=threat), geometry=told))
        assert new == old == facts.Reach(**told)
        assert old.unit != "distance"
    own = facts.reach(declaring(make_record(), geometry={"unit": "miles", "everywhere": False}))
    assert own == facts.Reach("miles", everywhere=False)


def test_a_new_geometry_decides_by_what_it_declares_whether_failures_are_masking() -> None:
    record = make_record("rrrr", eps=None)
    threat = replace(record.threat, geometry="theirs")
    for everywhere in (True, False):
        said = declaring(replace(record, threat=threat), geometry={"unit": "steps", "everywhere": everywhere})
        (section,) = build([said])
        assert ("unbounded_attack_fails" in section.frame["flags"][0]) == everywhere
        assert section.reach.unit == "steps" and '"unit":"steps"' in to_html([section])


@pytest.mark.parametrize("level", ["quick", "standard", "full"])
def test_a_standard_verdict_says_its_level_wherever_its_figure_stands(level: str) -> None:
    (section,) = build([standing(level, "rrbbw"), make_record("rrrbw")])
    headers, rows = main(section)
    assert f"worst case ({level} verdict) [95 %]" in headers
    named = [c for c in section.frame.columns if c.startswith("acc:autoattack")]
    assert len(named) == 1 and level in named[0]
    assert level in rows[0][headers.index("strongest attack")]
    for text in (to_markdown([section]), to_html([section])):
        assert "worst case [95 %]" not in text and f"worst case ({level} verdict)" in text
    assert list(pd.read_csv(io.StringIO(wide_csv([section])))["levels"]) == [level]


def test_verdicts_of_several_levels_are_told_apart_row_by_row() -> None:
    (section,) = build([standing("quick", "rrrbw", "a"), standing("full", "rrbbw", "b")])
    headers, rows = main(section)
    place = headers.index("worst case (levels differ) [95 %]")
    assert [row[place].rpartition(" (")[2] for row in rows] == ["quick)", "full)"]
    (plain,) = build([make_record("rrrbw")])
    assert "worst case [95 %]" in main(plain)[0]


def noisy(verdicts: str, right: float, held: float, **said: Any) -> CellRecord:
    """Return a record of a victim that is decided by a vote; one draw is right so often."""
    record = make_record(verdicts, measures={"noisy": 4, "energy_clean_pj": 5000}, data="noisy")
    shares = {"right_clean": right, "right_attacked": held}
    rows = tuple(replace(row, extras=shares) for row in record.rows)
    return declaring(replace(record, rows=rows), **said)


def test_a_vote_is_paid_in_full_and_one_draw_stands_beside_it() -> None:
    (section,) = build(
        [noisy("rrbbw", 0.75, 0.25, draws=8), make_record("rrbbw", victim="quiet", data="noisy")]
    )
    rows = section.frame.set_index("name")
    assert (rows["draws"]["net"], rows["draws"]["quiet"]) == (8, 1)
    assert rows["energy_nj"]["net"] == 8  # 5000 pJ over five answers, eight draws each
    assert (rows["clean_single"]["net"], rows["worst_case_single"]["net"]) == (0.75, 0.25)
    assert math.isnan(rows["clean_single"]["quiet"])
    headers, cells = main(section)
    shown = {row[1]: row for row in cells}
    assert shown["net"][headers.index("one draw: clean, attacked")] == "75.0, 25.0"
    assert shown["net"][headers.index("nJ")] == "8 (8 draws)"
    assert shown["quiet"][headers.index("one draw: clean, attacked")] == "-"
    assert "*Draws*" in to_markdown([section])


def test_one_draw_is_judged_on_the_worst_input_of_all_attacks() -> None:
    weak, strong = noisy("rrrrw", 0.9, 0.8), replace(noisy("rrbbw", 0.9, 0.4), label="other", key="o")
    (section,) = build([weak, strong])
    assert section.frame["worst_case_single"][0] == pytest.approx(0.4)


def test_records_of_protocol_1_that_do_not_say_their_draws_had_twenty() -> None:
    old = make_record("rrbbw", measures={"noisy": 4, "energy_clean_pj": 5000})
    assert (facts.draws(old), facts.draws(make_record("rrbbw"))) == (20, 1)
    headers, rows = main(build([old])[0])
    assert rows[0][headers.index("one draw: clean, attacked")] == "-"


def test_energy_is_printed_under_all_four_conventions() -> None:
    spent = {"energy_clean_pj": 10_000, "energy_once_pj": 5_000}
    spent |= {"energy_dense_pj": 20_000, "energy_dense_once_pj": 8_000}
    (section,) = build([make_record("rrbbw", measures=spent)])
    (table,) = (t for t in section.tables() if t.headers[0] == "nJ of a clean answer")
    assert table.headers[1:5] == [
        "non-zero inputs, first layer per step",
        "non-zero, once",
        "dense, per step",
        "dense, once",
    ]
    assert table.rows == [["net", "2", "1", "4", "1.6", "1"]]
    (old,) = build([make_record("rrbbw", measures={"energy_clean_pj": 10_000})])
    assert not any(t.headers[0] == "nJ of a clean answer" for t in old.tables())


def test_intervals_of_quality_count_photographs() -> None:
    """Eight images from two photographs: moves are alike within one, so little is known."""
    moves = np.array([10.0] * 4 + [20.0] * 4)
    (alone,) = quality_sections([quality_record("a", moves), control()])
    (grouped,) = quality_sections([quality_record("a", moves, images=4), control(images=4)])
    one, two = alone.frame.iloc[0], grouped.frame.iloc[0]
    assert (one["sources"], two["sources"]) == (8, 2) and one["mae"] == two["mae"] == 15
    assert two["mae_high"] - 15 == pytest.approx(12.706204736 * 5)  # t(1) times the error of two means
    assert one["mae_high"] - 15 < 5
    for name in ("robustness", "absolute_gain", "moved"):
        assert two[f"{name}_high"] - two[f"{name}_low"] > one[f"{name}_high"] - one[f"{name}_low"], name
    assert "2 photographs" in grouped.title and "photographs" not in alone.title


def test_one_photograph_gives_no_interval_and_no_rank_apart() -> None:
    records = [quality_record("a", 5.0, images=8), control(images=8)]
    records += [quality_record("a", 50.0, images=8, victim="weak"), control(images=8, victim="weak")]
    (section,) = quality_sections(records)
    assert section.frame["mae_low"].isna().all()
    assert [row[0] for row in section.tables()[0].rows] == ["1-2", "1-2"]
    assert "5.0 [-]" in to_markdown([section])


def test_older_records_of_photopatch_know_their_photographs() -> None:
    """The table of older records against the data set itself."""
    data = registry("datasets").get("photopatch_iqa")
    ids = data.load("test").ids
    old = [quality_record("a", 5.0, clean=CLEAN)]
    rows = tuple(replace(old[0].rows[0], row=int(i), extras={}) for i in ids[:24])
    assert [facts.source(old[0], row) for row in rows] == data.sources(ids[:24]).tolist()


def test_labels_that_are_no_opinion_are_named_by_the_data_set() -> None:
    (old,) = quality_sections([quality_record("a", 5.0)])
    assert old.title.endswith("pseudo-MOS (HaarPSI)")
    told = [declaring(quality_record("a", 5.0), score_label="MOS by a robot")]
    (new,) = quality_sections(told)
    assert new.title.endswith("MOS by a robot") and "MOS by a robot, computed from" in to_markdown([new])
    human = declaring(quality_record("a", 5.0), score_label="")
    assert "MOS" not in quality_sections([human])[0].title
    assert all(registry("datasets").get(n).score_label == "" for n in ("kadid10k", "koniq10k", "digits"))


def test_a_certificate_alone_has_a_row_in_tables_of_distances_too() -> None:
    proof = replace(make_record("rrbbw", eps=None, attack="intervals"), task=Task.CERTIFY)
    (section,) = build([proof])
    assert section.frame["median_all"].isna().all() and main(section)[1][0][0] == "-"


@pytest.mark.parametrize(
    ("named", "geometry", "domain", "task"),
    [
        ("pgd.linf", "linf", Domain.STATIC, Task.CLASSIFY),
        ("pgd.l2", "l2", Domain.STATIC, Task.CLASSIFY),
        ("sda.l0", "l0", Domain.SPIKES, Task.CLASSIFY),
        ("retime.pgd", "retime_l0", Domain.SPIKES, Task.CLASSIFY),
        ("retime.pgd", "retime_l1", Domain.SPIKES, Task.CLASSIFY),
        ("retime.pgd", "retime_linf", Domain.SPIKES, Task.CLASSIFY),
        ("quality.ifgsm", "linf", Domain.STATIC, Task.QUALITY),
    ],
)
def test_what_single_surrogate_advises_can_be_run_on_the_row(
    named: str, geometry: str, domain: Domain, task: Task
) -> None:
    advice = FLAGS["single_surrogate"].advice
    assert re.search(rf"\b{re.escape(named)}\b", advice)
    (estimator,) = re.findall(r'estimator = "([^"]+)"', advice)
    assert registry("estimators").get(estimator)
    attack = registry("attacks").get(named, estimator=estimator)
    assert geometry in attack.spec.geometries and domain in attack.spec.domains
    assert task in attack.spec.tasks and attack.estimator == estimator


def test_victims_are_called_timing_coded_where_spike_times_carry_values_throughout() -> None:
    families = {name: registry("victims").get(name).family for name in registry("victims").names()}
    timing = {name.partition(".")[0] for name, family in families.items() if family == "timing"}
    assert {"ttfs_b1", "causal_lin"} <= timing and not timing & {"ttfs_cnn", "latency_cnn", "poisson_cnn"}
    assert families["ttfs_cnn.digits"] == families["first_spike_cnn.digits"] == "coded input"


def test_family_and_time_steps_are_those_declared_or_else_those_that_older_victims_had() -> None:
    new = declaring(make_record(), steps=6, family="mine")
    assert (facts.steps(new), facts.family(new)) == (6, "mine")
    assert (facts.steps(make_record()), facts.family(make_record())) == (None, "")
    for name in facts._BEFORE_FAMILIES_SAID:
        recipe = registry("victims").get(name)
        said = {"name": name} | ({"steps": recipe.steps} if hasattr(recipe, "steps") else {})
        old = replace(make_record(), dataset=recipe.dataset, parameters={"victim": said})
        assert (facts.steps(old), facts.family(old)) == (recipe.spec().steps, recipe.family), name
