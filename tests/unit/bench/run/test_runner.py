"""Runs: the same bytes however they are cut, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.store import Store
from robustspike.bench.run.assemble import environment
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.snn import fused
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import Plan
from robustspike.bench.suite.plan import make_plan
from tests.support.folders import contents

SUITE = """
name = "tiny"
samples = 24
shard = 8
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "pgd.linf"
params = { steps = 3, estimator = "pdsg" }
[[attacks]]
name = "noise"
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE)
    return make_plan(read_suite(str(path)))


def test_a_second_run_repeats_nothing(plan: Plan, tmp_path: Path) -> None:
    ticks: list[int] = []
    settings = Settings(out=tmp_path / "out")
    first = run(plan, settings, on_tick=lambda tick: ticks.append(tick.done))
    assert ticks == [1, 2, 3, 4, 5, 6]
    before = contents(settings.out)
    assert run(plan, settings, on_tick=lambda tick: ticks.append(tick.done)) == first
    assert len(ticks) == 6
    assert contents(settings.out) == before


def test_workers_and_restarts_do_not_change_a_byte(plan: Plan, tmp_path: Path) -> None:
    run(plan, Settings(out=tmp_path / "one"), jobs=1)
    run(plan, Settings(out=tmp_path / "two"), jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")

    class Stop(Exception):
        pass

    def stop(tick: object) -> None:
        raise Stop

    settings = Settings(out=tmp_path / "three")
    for _ in range(4):  # one more shard each time
        with pytest.raises(Stop):
            run(plan, settings, on_tick=stop)
    run(plan, settings)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


def test_what_cells_took_is_kept_beside_their_records(plan: Plan, tmp_path: Path) -> None:
    settings = Settings(out=tmp_path / "out", command="robustspike run tiny")
    records = run(plan, settings)
    run(plan, settings)  # which measures nothing
    header, *lines = (settings.out / "costs.csv").read_text().splitlines()
    assert header == "key,processor_seconds,forwards,backwards,passes_a_second"
    assert len(lines) == len(records) == 2
    for record, line in zip(records, lines, strict=True):
        key, seconds, forwards, backwards, speed = line.split(",")
        spent = record.cost["forwards"] + record.cost["backwards"]
        assert (key, int(forwards) + int(backwards)) == (record.key, spent)
        assert 0 < float(seconds) < 600
        assert float(speed) == pytest.approx(spent / float(seconds), rel=0.05)


def test_a_record_holds_energy_and_what_was_declared(plan: Plan, tmp_path: Path) -> None:
    for record in run(plan, Settings(out=tmp_path / "out")):
        energy = {k: v for k, v in record.measures.items() if k.startswith("energy_")}
        assert 100_000 < energy["energy_clean_pj"] / record.counts["n"] < 300_000  # 176 nJ on the test split
        assert (
            (energy["energy_broken_pj"] > 0) == (energy["energy_adv_pj"] > 0) == bool(record.counts["broken"])
        )
        passes = 2 * 20 * 1048  # 20 epochs of 1048 digits, forwards and backwards
        assert record.parameters["declared"] == {
            "geometry": {"unit": "largest change of an element", "everywhere": True, "moves": False},
            "score_label": "",
            "draws": 1,
            "steps": 4,
            "adaptive": [],
            "notes": [],
            "neurons": 2,
            "training_passes": {"own": passes, "plain": passes},
        }
        assert record.parameters["cell"]["victim"] == "lif_cnn.digits"


def test_a_damaged_shard_is_run_again(plan: Plan, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(tick: object) -> None:
        raise Stop

    run(plan, Settings(out=tmp_path / "whole"))
    settings = Settings(out=tmp_path / "cut")
    with pytest.raises(Stop):
        run(plan, settings, on_tick=stop)
    (shard,) = (settings.out / "shards").rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:50])
    run(plan, settings)
    assert contents(settings.out) == contents(tmp_path / "whole")


def test_a_damaged_record_stops_the_run_and_touches_nothing(plan: Plan, tmp_path: Path) -> None:
    settings = Settings(out=tmp_path / "out")
    run(plan, settings)
    record = next((settings.out / "records").iterdir()) / "record.json"
    record.write_text("{")
    before = contents(settings.out)
    with pytest.raises(ArtefactError, match=r"record\.json"):
        run(plan, settings)
    assert contents(settings.out) == before


def test_two_runs_on_one_folder(plan: Plan, tmp_path: Path) -> None:
    settings = Settings(out=tmp_path / "out")
    with Store(settings.out).locked(), pytest.raises(ConfigError, match="another run"):
        run(plan, settings)


def test_an_unusable_folder(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        run(plan, Settings(out=tmp_path / "file"))


@pytest.mark.slow
def test_sigkill_at_many_moments(plan: Plan, tmp_path: Path) -> None:
    run(plan, Settings(out=tmp_path / "whole"))
    command = [sys.executable, "-m", "robustspike.bench.cli", "run", str(tmp_path / "suite.toml")]
    command += ["--out", str(tmp_path / "killed"), "--jobs", "1"]
    for attempt in range(8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(2.5 + 0.25 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    killed = contents(tmp_path / "killed" / "records")
    assert killed == contents(tmp_path / "whole" / "records")


@pytest.mark.parametrize(("setting", "way"), [("0", "python"), ("1", None)])
def test_a_record_says_whether_layers_ran_compiled(
    monkeypatch, tmp_path: Path, setting: str, way: str | None
) -> None:
    monkeypatch.setenv("ROBUSTSPIKE_FUSED", setting)
    monkeypatch.setattr(fused, "library", fused.library.__wrapped__)  # asks again
    expected = way or ("python" if fused.library() is None else "compiled")
    assert environment(Settings(out=tmp_path))["lif"] == expected


def test_a_record_names_the_suite_that_last_asked_for_it(plan: Plan, tmp_path: Path) -> None:
    settings = Settings(out=tmp_path / "out")
    first = run(plan, settings)
    assert {(r.suite, r.suite_version, r.suite_digest) for r in first} == {("tiny", 1, plan.suite.digest)}
    edited = tmp_path / "edited.toml"
    edited.write_text(
        SUITE.replace('name = "tiny"', 'name = "tiny"\nversion = 2') + '[[attacks]]\nname = "fgsm.linf"\n'
    )
    again = run(make_plan(read_suite(str(edited))), settings)
    assert [r.key for r in again[:2]] == [r.key for r in first]
    assert {r.suite_version for r in again} == {2}
    assert {read_record(p).suite_version for p in (settings.out / "records").iterdir()} == {2}
    assert [replace(r, suite_version=1, suite_digest=plan.suite.digest) for r in again[:2]] == first
