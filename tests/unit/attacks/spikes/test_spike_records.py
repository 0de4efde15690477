"""Attacks on spikes from a suite file to a verified record: spike counts, targeted goals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from robustspike.bench.attack.decide import target_classes
from robustspike.bench.attack.probes import spike_extras
from robustspike.bench.contract.specs import Goal
from robustspike.bench.contract.specs import Status
from robustspike.bench.files import sha256
from robustspike.bench.record.adversarials import read_adversarials
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.run.assemble import cell_of
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.run.verify import verify
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.loading import samples_of
from robustspike.bench.suite.plan import make_plan
from robustspike.leaderboard.sections import build

SUITE = """
name = "aimed"
samples = 6
shard = 3
[[threats]]
domain = "spikes"
geometry = "l0"
eps = "min"
[[threats]]
domain = "spikes"
geometry = "l0"
eps = "min"
goal = "targeted"
[[threats]]
geometry = "linf"
eps = "1/4"
goal = "targeted"
[[victims]]
name = "lif_cnn.digits_events"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "sda.l0"
[[attacks]]
name = "scg.l0"
params = { scales = [0.1] }
[[attacks]]
name = "spikefool.l0"
[[attacks]]
name = "pgd.linf"
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[CellRecord]]:
    root = tmp_path_factory.mktemp("aimed")
    (root / "suite.toml").write_text(SUITE)
    return root / "out", run(make_plan(read_suite(str(root / "suite.toml"))), Settings(out=root / "out"))


def test_spikes_added_and_removed_are_counted() -> None:
    x0 = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).view(3, 4, 1, 1, 1)
    x = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).view(3, 4, 1, 1, 1)
    found = {name: column.tolist() for name, column in spike_extras(x0, x).items()}
    assert found == {"spikes": [2, 0, 0], "added": [1, 1, 0], "removed": [2, 0, 0]}


def test_records_count_the_spikes_of_the_verified_inputs(results: tuple[Path, list[CellRecord]]) -> None:
    out, records = results
    for record in (r for r in records if r.dataset == "digits_events"):
        x0 = samples_of(cell_of(record), None).x
        ids, x_adv = read_adversarials(out / "records" / record.key)
        stored = dict(zip(ids.tolist(), x_adv, strict=True))
        for place, row in enumerate(record.rows):
            x = stored.get(row.row, x0[place])
            assert row.extras["added"] == ((x > 0) & (x0[place] == 0)).sum()
            assert row.extras["removed"] == ((x == 0) & (x0[place] > 0)).sum()
            assert row.extras["added"] + row.extras["removed"] == row.distance
            assert row.extras["spikes"] == x0[place].sum()


def test_a_targeted_suite_measures_the_attacks_that_declare_it(
    results: tuple[Path, list[CellRecord]],
) -> None:
    _, records = results
    aimed = {(r.dataset, r.attack): r for r in records if r.threat.goal is Goal.TARGETED}
    assert set(aimed) == {
        ("digits_events", "sda.l0"),
        ("digits_events", "scg.l0"),
        ("digits", "pgd.linf"),
    }
    for record in aimed.values():
        labels = torch.tensor([int(row.label) for row in record.rows])
        targets = target_classes(labels, torch.tensor([row.row for row in record.rows]), 10)
        assert (targets != labels).all()
        assert record.counts["broken"] >= 2 and not record.errors
        for row, target in zip(record.rows, targets.tolist(), strict=True):
            assert row.extras["target"] == target
            if row.status is Status.BROKEN:
                assert row.adv == target
    titles = [section.title for section in build(records)]
    assert len(titles) == 3 and sum("targeted" in title for title in titles) == 2
    nearer = {
        r.attack: r for r in records if r.dataset == "digits_events" and r.threat.goal is not Goal.TARGETED
    }
    sda = aimed["digits_events", "sda.l0"]
    assert sum(row.distance for row in sda.rows) > sum(row.distance for row in nearer["sda.l0"].rows)


def test_targeted_records_verify_and_a_wrong_class_does_not(
    results: tuple[Path, list[CellRecord]], tmp_path: Path
) -> None:
    out, records = results
    settings = Settings(out=out)
    for record in records:
        verdict = verify(out / "records" / record.key, settings)
        assert verdict.problems == () and verdict.confirmed == record.counts["broken"]
    scg = next(r for r in records if r.attack == "scg.l0" and r.threat.goal is Goal.TARGETED)
    assert verify(out / "records" / scg.key, settings, rerun=True).problems == ()
    free = next(r for r in records if r.attack == "scg.l0" and r.threat.goal is Goal.UNTARGETED)
    # An untargeted record that claims to have been targeted: its inputs reach some class, not the given one.
    folder = out / "records" / free.key
    forged = tmp_path / free.key
    forged.mkdir()
    for name in ("samples.csv", "adversarials.safetensors"):
        (forged / name).write_bytes((folder / name).read_bytes())
    value = json.loads((folder / "record.json").read_text())
    value["threat"]["goal"] = "targeted"
    (forged / "record.json").write_text(json.dumps(value))
    assert "do not fool the victim" in " ".join(verify(forged, settings).problems)


def test_forged_spike_counts_are_found(results: tuple[Path, list[CellRecord]], tmp_path: Path) -> None:
    out, records = results
    record = next(r for r in records if r.attack == "sda.l0" and r.threat.goal is Goal.UNTARGETED)
    folder, forged = out / "records" / record.key, tmp_path / record.key
    forged.mkdir()
    (forged / "adversarials.safetensors").write_bytes((folder / "adversarials.safetensors").read_bytes())
    header, *lines = (folder / "samples.csv").read_text().splitlines()
    column = header.split(",").index("added")
    cells = [line.split(",") for line in lines]
    for line in cells:
        line[column] = repr(float(line[column]) + 1)
    (forged / "samples.csv").write_text("\n".join([header, *(",".join(line) for line in cells)]) + "\n")
    value = json.loads((folder / "record.json").read_text())
    value["digests"]["samples"] = sha256((forged / "samples.csv").read_bytes())
    (forged / "record.json").write_text(json.dumps(value))
    assert "spike counts differ" in " ".join(verify(forged, Settings(out=out)).problems)
