"""A bundle that was handed in is checked by one verb: what holds, what does not, and what it would change."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from robustspike.bench.files import sha256
from robustspike.bench.record.bundle import pack
from robustspike.bench.record.bundle import unpacked
from robustspike.bench.record.checks import How
from robustspike.bench.record.checks import read_checks
from robustspike.bench.record.store import record_folders
from tests.support.bundles import measured
from tests.support.commands import robustspike


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of FGSM, and a bundle with PGD on the same row."""
    root = tmp_path_factory.mktemp("submission")
    measured(root / "board", "fgsm.linf")
    measured(root / "mine", "fgsm.linf", "pgd.linf")
    return root


def test_an_honest_bundle_holds_and_what_it_changes_is_shown(root: Path, tmp_path: Path) -> None:
    given = ("--against", root / "board.zip", "--note", "checks.csv", "--out", "comment.md")
    done = robustspike("check-submission", root / "mine.zip", *given, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "", done
    text = (tmp_path / "comment.md").read_text()
    assert text.startswith("### `mine.zip`") and "2 records: 2 confirmed." in text
    assert "1 records were run again" in text and "Rows of the board that it changes" in text
    assert "attacks: +pgd.linf" in text and "lif_cnn.digits" in text
    again = robustspike("check-submission", root / "mine.zip", *given[:2], cwd=tmp_path)
    assert again.stdout == text  # which records run again follows from the bundle
    checks = read_checks(tmp_path / "checks.csv")
    assert sorted(check.how for check in checks) == [How.INPUTS, How.RERUN]
    (tmp_path / "board" / "checks").mkdir(parents=True)
    (tmp_path / "checks.csv").rename(tmp_path / "board" / "checks" / "one.csv")
    robustspike("leaderboard", root / "mine.zip", "--board", "board", "--out", "out", cwd=tmp_path)
    assert "re-scored" in (tmp_path / "out" / "rows.csv").read_text()


def test_new_rows_and_no_change_are_told_apart(root: Path, tmp_path: Path) -> None:
    same = robustspike(
        "check-submission", root / "board.zip", "--against", root / "board.zip", "--share", "1", cwd=tmp_path
    )
    assert same.returncode == 0 and "It changes no row of the board." in same.stdout
    measured(tmp_path / "new", "fgsm.linf", victim="qcfs_cnn.digits", samples=8)
    new = robustspike("check-submission", "new.zip", "--against", root / "board.zip", cwd=tmp_path)
    assert new.returncode == 0 and "Rows that are new:" in new.stdout and "qcfs_cnn.digits" in new.stdout


def test_a_forged_bundle_is_refuted_and_shows_no_table(root: Path, tmp_path: Path) -> None:
    with unpacked(root / "mine.zip") as inside:
        for place in record_folders(inside):
            path = place / "adversarials.safetensors"
            content = bytearray(path.read_bytes())
            content[-256:] = bytes(256)  # the last image
            path.write_bytes(content)
            value = json.loads((place / "record.json").read_text())
            value["digests"]["adversarials"] = sha256(bytes(content))
            (place / "record.json").write_text(json.dumps(value))
        pack(inside, tmp_path / "forged.zip")
    done = robustspike("check-submission", "forged.zip", "--note", "checks.csv", cwd=tmp_path)
    assert done.returncode == 1 and "**refuted**" in done.stdout and "No table is shown" in done.stdout
    assert {str(check.found) for check in read_checks(tmp_path / "checks.csv")} == {"refuted"}


def test_a_damaged_bundle_is_one_line_of_the_report(root: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes((root / "mine.zip").read_bytes()[:-400])
    with zipfile.ZipFile(tmp_path / "strange.zip", "w") as archive:
        archive.writestr("setup.py", "import os")
    for name, said in (("cut.zip", "not a readable bundle"), ("strange.zip", "no readable manifest")):
        done = robustspike("check-submission", name, cwd=tmp_path)
        assert done.returncode == 1 and said in done.stdout and "The bundle cannot be taken" in done.stdout
    done = robustspike("check-submission", "absent.zip", cwd=tmp_path)
    assert done.returncode == 2 and "no such file" in done.stderr


def test_what_cannot_be_checked_here_is_said_and_is_no_refutation(root: Path, tmp_path: Path) -> None:
    with unpacked(root / "board.zip") as inside:
        for place in record_folders(inside):
            value = json.loads((place / "record.json").read_text())
            value["digests"]["weights"] = "0" * 64
            (place / "record.json").write_text(json.dumps(value))
        pack(inside, tmp_path / "other.zip")
    done = robustspike("check-submission", "other.zip", cwd=tmp_path)
    assert done.returncode == 3 and "cannot be checked here" in done.stdout and "--weights DIR" in done.stdout
