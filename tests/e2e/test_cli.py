"""The command line as a user meets it: output, files, messages, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robustspike.bench.cli.new import package
from robustspike.bench.record.store import Store
from tests.support.commands import robustspike
from tests.support.folders import contents
from tests.support.records import make_record
from tests.support.records import write


def fails(*args: object, cwd: Path, code: int = 2) -> str:
    done = robustspike(*args, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys; import robustspike.bench.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    done = robustspike("--help", cwd=tmp_path)
    assert done.returncode == 0
    for verb in ("run", "leaderboard", "list", "show", "train"):
        assert verb in done.stdout


def test_run_prints_and_writes_the_leaderboard(tmp_path: Path) -> None:
    args = ("run", "--samples", 10, "--only", "victim=lif_cnn.digits", "--only", "attack=fgsm*", "--jobs", 1)
    first = robustspike(*args, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "lif_cnn.digits" in first.stdout
    out = tmp_path / "robustspike-results"
    csv = (out / "leaderboard.csv").read_bytes()
    second = robustspike(*args, cwd=tmp_path)
    assert second.stdout == first.stdout
    assert (out / "leaderboard.csv").read_bytes() == csv
    rebuilt = robustspike("leaderboard", out, "--csv", "a.csv", "--md", "b.md", cwd=tmp_path)
    assert rebuilt.returncode == 0
    assert (tmp_path / "a.csv").read_bytes() == csv
    assert (tmp_path / "b.md").read_bytes() == (out / "leaderboard.md").read_bytes()


def test_lists_and_shows(tmp_path: Path) -> None:
    done = robustspike("list", "attacks", "--json", cwd=tmp_path)
    names = [row["name"] for row in json.loads(done.stdout)]
    assert {"noise", "fgsm.linf", "pgd.linf"} <= set(names)
    defenses = {
        row["name"]: row for row in json.loads(robustspike("list", "defenses", "--json", cwd=tmp_path).stdout)
    }
    assert defenses["stog"]["adaptive attack"] == "eot, wide_surrogate"
    assert "no training code released" in defenses["HIRE-SNN (ICCV 2021)"]["left_out"]
    assert "Not implemented, and why" in robustspike("list", "defenses", cwd=tmp_path).stdout
    shown = robustspike("show", "lif_cnn.digits", cwd=tmp_path).stdout
    for part in ("victim: lif_cnn.digits", "source:", "parameters:", "steps = 4", "clean 4"):
        assert part in shown
    assert json.loads(robustspike("show", "quick", "--json", cwd=tmp_path).stdout)[0]["suite"] == "quick"


def test_wrong_names_suggest(tmp_path: Path) -> None:
    assert "Did you mean 'quick'" in fails("run", "quik", cwd=tmp_path)
    assert "Did you mean 'pgd.linf'" in fails("show", "pgd.lnf", cwd=tmp_path)
    assert "Did you mean 'lif_cnn.digits'" in fails("train", "lif_cnn.digts", cwd=tmp_path)
    assert "Did you mean 'run'" in fails("rnu", cwd=tmp_path)
    assert "expected KEY=GLOB" in fails("run", "--only", "victim", cwd=tmp_path)
    assert "no parameter 'stepz'" in fails("train", "lif_cnn.digits", "--set", "stepz=3", cwd=tmp_path)
    assert "no such folder" in fails("run", "--data", "nowhere", cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_leaderboard_refuses_what_is_not_a_record(tmp_path: Path) -> None:
    assert "holds no records" in fails("leaderboard", ".", cwd=tmp_path)
    folder = write(make_record(), tmp_path / "good")
    assert robustspike("leaderboard", "good", cwd=tmp_path).returncode == 0
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    (tmp_path / "bad" / "records" / folder.name / "samples.csv").write_text("row\n")
    message = fails("leaderboard", "good", "bad", cwd=tmp_path)
    assert message.count("\n") == 1
    assert folder.name in message


def test_a_record_of_another_protocol_is_refused_and_the_rest_shown(tmp_path: Path) -> None:
    write(make_record(), tmp_path / "out")
    old = write(make_record(victim="other"), tmp_path / "out") / "record.json"
    old.write_text(old.read_text().replace('"protocol": "1"', '"protocol": "0"'))
    before = contents(tmp_path / "out")
    done = robustspike("leaderboard", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert (
        "refused" in done.stderr
        and "protocol '0'" in done.stderr
        and str(old) in str(tmp_path / done.stderr.split()[1])
    )
    assert "net" in done.stdout and "other" not in done.stdout
    checked = robustspike("verify", "out", "--only", old.parent.name, cwd=tmp_path)
    assert checked.returncode == 3
    assert "cannot check" in checked.stdout and "protocol '0'" in checked.stdout
    assert contents(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out" / "records" / make_record().key)
    assert "refused" in fails("leaderboard", "out", cwd=tmp_path, code=1)


def test_a_second_run_on_one_folder_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    args = ("run", "--only", "victim=lif_cnn.digits", "--only", "attack=noise", "--jobs", 1, "--out", "out")
    with Store(tmp_path / "out").locked():
        before = contents(tmp_path / "out")
        message = fails(*args, cwd=tmp_path)
        assert contents(tmp_path / "out") == before
    assert message.count("\n") == 1
    assert "--out out: another run is writing there. Wait for it, or choose another folder." in message


def test_a_failing_cell_is_reported_and_the_rest_finishes(tmp_path: Path) -> None:
    (tmp_path / "bad_attack.py").write_text(
        "from robustspike.bench.api import AttackSpec\n"
        "class Leaves:\n"
        "    spec = AttackSpec(name='leaves', geometries=('linf',), source='test')\n"
        "    def run(self, oracle, x0, y, *, rng):\n"
        "        return x0 + 9\n"
    )
    (tmp_path / "suite.toml").write_text(
        'samples = 8\n[[threats]]\ngeometry = "linf"\neps = "1/10"\n'
        '[[victims]]\nname = "lif_cnn.digits"\n[[attacks]]\nname = "leaves"\n[[attacks]]\nname = "noise"\n'
    )
    done = robustspike("run", "suite.toml", "--plugin", "bad_attack.py", "--jobs", 1, cwd=tmp_path)
    assert done.returncode == 3
    assert "error in cell" in done.stderr and "leaves the threat model" in done.stderr
    assert "noise" in done.stdout
    assert "errors" in done.stdout


def test_a_new_package_says_how_to_install_it(tmp_path: Path) -> None:
    made = robustspike("new", "attack", "fresh_attack", cwd=tmp_path)
    assert made.returncode == 0 and "next: pip install ./fresh_attack && robustspike" in made.stderr
    assert "pip install ./fresh_attack" in fails("validate", "fresh_attack", cwd=tmp_path)
    there = robustspike("new", "defense", "one", "--dir", tmp_path / "there", cwd=tmp_path)
    assert f"pip install {tmp_path / 'there'} &&" in there.stderr


def test_an_attack_from_a_file_is_marked_and_enclosed(tmp_path: Path) -> None:
    source = package("attack", "loose.attack")
    (tmp_path / "loose_attack.py").write_text(source["loose_attack.py"])
    (tmp_path / "suite.toml").write_text(source["suite.toml"])
    args = ("run", "suite.toml", "--plugin", "loose_attack.py", "--samples", 8, "--jobs", 1, "--out", "out")
    done = robustspike(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unpublished" in done.stdout
    shutil.copytree(tmp_path / "out", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "plugins")
    assert "must enclose it" in fails("submit", "bare", cwd=tmp_path)
    assert robustspike("submit", "bare", "--plugin", "loose_attack.py", cwd=tmp_path).returncode == 0
    assert robustspike("submit", "out", cwd=tmp_path).returncode == 0
    assert (tmp_path / "bare.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()
    checked = robustspike("verify", "out.zip", "--rerun", "--plugin", "loose_attack.py", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    merged = robustspike("leaderboard", "out", "out.zip", cwd=tmp_path)
    assert merged.stdout == robustspike("leaderboard", "out", cwd=tmp_path).stdout


@pytest.mark.slow
def test_train_says_whether_it_reproduces_the_shipped_weights(tmp_path: Path) -> None:
    done = robustspike("train", "qcfs_cnn.digits", "--out", "w", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = robustspike("show", "qcfs_cnn.digits", "--json", cwd=tmp_path).stdout
    digest = json.loads((tmp_path / "w" / "qcfs_cnn.digits.json").read_text())["sha256"]
    same = digest[:12] in shown
    assert ("the shipped weights: the same bytes" in done.stdout) == same
    assert ("the shipped weights: differ by up to" in done.stdout) == (not same)


@pytest.mark.slow
def test_training_killed_by_signal_nine_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    call = ["train", "lif_cnn.digits", "--defense", "mppd", "--set", "widths=[4, 4]"]
    call += ["--set", "schedule={'epochs': 4}", "--out"]
    command = [sys.executable, "-m", "robustspike.bench.cli", *call, "killed"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("epoch 2/4  loss"))
        process.kill()
    assert [path.suffix for path in (tmp_path / "killed").iterdir()] == [".checkpoint"]
    resumed = robustspike(*call, "killed", cwd=tmp_path)
    whole = robustspike(*call, "whole", cwd=tmp_path)
    assert "epoch 1/4" in whole.stderr and "epoch 2/4" not in resumed.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


QUALITY = """
name = "tiny_quality"
samples = 6
[[threats]]
geometry = "linf"
eps = "4/255"
goal = "shift"
levels = 255
[[victims]]
name = "snn_iqa.photopatch"
[[attacks]]
name = "quality.fgsm"
"""


def test_quality_run_draws_contact_sheets(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "tiny.toml").write_text(QUALITY)
    done = robustspike("run", "tiny.toml", "--out", "out", "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SROCC" in done.stdout
    done = robustspike("pictures", "out", "--out", "sheets", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (sheet,) = (tmp_path / "sheets").glob("*.png")
    assert str(sheet.name) in done.stdout
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert "none of the 1 records" in fails(
        "pictures", "out", "--out", "x", "--attack", "nothing", cwd=tmp_path
    )
