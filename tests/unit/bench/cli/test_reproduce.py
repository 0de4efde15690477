"""A record, or a row, is measured again by the command that is printed, and compared sample by sample."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from robustspike.bench.files import sha256
from robustspike.bench.record.bundle import unpacked
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.store import record_folders
from robustspike.bench.run.assemble import cell_of
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.suite.single import suite_text
from tests.support.bundles import measured
from tests.support.commands import robustspike

BOARD = Path(__file__).resolve().parents[4] / "leaderboard" / "results" / "records"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reproduce")
    pgd = 'name = "pgd.linf"\nparams = { steps = 3, estimator = "atan(alpha=5)" }'
    measured(root / "board", "fgsm.linf", pgd)
    return root


def test_a_row_is_run_by_the_commands_that_are_printed_and_comes_out_the_same(
    root: Path, tmp_path: Path
) -> None:
    done = robustspike("reproduce", "lif_cnn.digits", "--records", root / "board.zip", cwd=tmp_path)
    assert done.returncode == 0, done
    assert done.stdout.count("the same, sample by sample and byte for byte") == 2
    commands = [line for line in done.stdout.splitlines() if line.startswith("robustspike run ")]
    asked = [shlex.split(line)[2] for line in commands]
    recorded = [cell_of(read_record(place)) for place in record_folders(root / "board")]
    cells = [make_plan(read_suite(str(tmp_path / name))).cells for name in asked]
    assert sorted(map(str, cells)) == sorted(str((cell,)) for cell in recorded)


def test_a_forged_record_does_not_come_out_as_recorded(root: Path, tmp_path: Path) -> None:
    robustspike("leaderboard", root / "board.zip", cwd=tmp_path)
    with unpacked(root / "board.zip") as inside:
        place = record_folders(inside)[0]
        record = read_record(place)
        path = place / "samples.csv"
        text = path.read_text()
        assert ",broken," in text or ",robust," in text
        path.write_text(text.replace(",robust,", ",broken,", 1))
        value = json.loads((place / "record.json").read_text())
        value["counts"]["robust"] -= 1
        value["counts"]["broken"] += 1
        value["digests"]["samples"] = sha256(path.read_bytes())
        (place / "record.json").write_text(json.dumps(value))
        done = robustspike("reproduce", record.key[:8], "--records", inside, cwd=tmp_path)
    assert done.returncode == 1, done
    assert (
        "changes 1 of 16 samples, 1 of them in their verdicts; code and machine are the same" in done.stdout
    )


def test_commands_alone_are_printed_and_what_is_not_there_is_named(root: Path, tmp_path: Path) -> None:
    done = robustspike(
        "reproduce",
        "lif_cnn.digits",
        "--records",
        root / "board.zip",
        "--only",
        "attack=fgsm*",
        "--print",
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stdout.count("robustspike run reproduced/") == 1
    assert not (tmp_path / "reproduced" / "records").exists()
    done = robustspike("reproduce", "lif_cnn.digit", "--records", root / "board.zip", cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean 'lif_cnn.digits'?" in done.stderr
    done = robustspike("reproduce", "lif_cnn.digits + sr", "--records", root / "board.zip", cwd=tmp_path)
    assert done.returncode == 2 and "nor a row of" in done.stderr


@pytest.mark.slow
def test_the_suite_of_every_committed_record_asks_for_its_cell_alone(tmp_path: Path) -> None:
    for bundle in sorted(BOARD.glob("digits*.zip")):  # the others need published data
        with unpacked(bundle) as inside:
            for place in record_folders(inside)[::20]:
                cell = cell_of(read_record(place))
                path = tmp_path / "cell.toml"
                path.write_text(suite_text(cell, "cell"))
                assert make_plan(read_suite(str(path))).cells == (cell,), place.name
