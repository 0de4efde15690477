"""Curves for papers as SVG files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

from click.testing import CliRunner

from robustspike.bench.cli.pictures import command
from robustspike.leaderboard.sections import build
from robustspike.leaderboard.write.figures import figures
from robustspike.leaderboard.write.figures import over_eps
from tests.support.records import make_record
from tests.support.records import write

TITLE = "Robust accuracy over eps: digits (test, n = 5), linf"
RECORDS = [
    make_record("rrrbw", eps=Fraction(1, 20)),
    make_record("rbbbw", eps=Fraction(1, 10)),
    make_record("rrbbw", eps=Fraction(1, 10), attack="fgsm.linf"),
    make_record("rrrrw", eps=Fraction(1, 10), victim="once & only"),
]


def test_a_curve_is_what_was_measured_at_each_eps_and_without_attack() -> None:
    (lines,) = over_eps(build(RECORDS)).values()
    (points,) = lines.values()  # a row measured at one eps is no curve
    measured = [(point.eps, point.share) for point in points]
    assert measured == [(Fraction(0), 0.8), (Fraction(1, 20), 0.6), (Fraction(1, 10), 0.2)]
    assert all(point.low <= point.share <= point.high for point in points)


def test_figures_are_whole_svg_files_with_their_legend() -> None:
    found = figures(build([*RECORDS, make_record("rrrrw", eps=Fraction(1, 20), victim="once & only")]))
    assert [*found] == [TITLE]
    root = ElementTree.fromstring(found[TITLE])
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {element.text for element in root.iter() if element.text}
    assert {"1/20", "1/10", "net", "once & only"} <= words


def test_the_verb_writes_them_for_folders(tmp_path: Path) -> None:
    for record in RECORDS:
        write(record, tmp_path / "results")
    words = [str(tmp_path / "results"), "--format", "svg", "--out", str(tmp_path / "figures")]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    (path,) = done.stdout.splitlines()
    assert done.exit_code == 0 and Path(path).read_text("utf-8").startswith("<svg xmlns=")
