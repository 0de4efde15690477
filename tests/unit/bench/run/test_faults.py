"""A fault of a victim is an error of its own cells; what does not apply has none; all else is measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result

from robustspike.bench.cli.run import command
from robustspike.bench.contract.registry import load_file
from robustspike.bench.contract.registry import registry
from robustspike.bench.training.train import train

PLUGIN = '''
from dataclasses import dataclass
import torch
from torch import nn
from robustspike.bench.api import Schedule, VictimRecipe, VictimSpec, initialise

class Net(nn.Module):
    """A linear classifier that fails on batches of chosen sizes; shards here have 8 and 3 samples."""

    def __init__(self, fault):
        super().__init__()
        self.out, self.fault = nn.Linear(64, 10), fault

    def forward(self, x):
        z = self.out(x.flatten(1))
        off = ((x * 16 - (x * 16).round()).abs().flatten(1) > 1e-4).any(dim=1)
        if self.fault == "check" and len(x) == 1:
            raise LookupError("no batch of one")
        if self.fault == "shard" and len(x) == 3:
            raise LookupError("no batch of three")
        if self.fault == "nan" and len(x) in (3, 8):
            return torch.where(off[:, None], torch.nan, z)
        return z

@dataclass(frozen=True, kw_only=True)
class Recipe(VictimRecipe):
    fault: str = ""
    dataset: str = "digits"
    schedule: Schedule = Schedule(epochs=3)

    def spec(self):
        return VictimSpec(name=self.name, shape=(1, 8, 8), classes=10)

    def build(self, rng):
        net = Net(self.fault)
        initialise(net, rng)
        return net

HEALTHY = Recipe(name="fault.none")
CHECK = Recipe(name="fault.check", fault="check")
SHARD = Recipe(name="fault.shard", fault="shard")
NAN = Recipe(name="fault.nan", fault="nan")
'''

NAMES = ("fault.none", "fault.check", "fault.shard", "fault.nan")

NOISE = '{ name = "noise" }'

SUITE = """
name = "faults"
samples = 11
shard = 8
attacks = [{{ name = "pgd.linf", params = {{ steps = 2 }} }}, {second}]
victims = [{victims}]
[[threats]]
geometry = "linf"
eps = "1/10"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("faults")
    (home / "p.py").write_text(PLUGIN)
    load_file(home / "p.py")
    for name in NAMES:
        train(
            registry("victims").get(name),
            registry("defenses").get("none"),
            out=home / "weights",
            label="none",
            seed=0,
            root=None,
            device="cpu",
            progress=lambda _: None,
        )
    yield home
    for name in NAMES:  # other suites take every victim that is registered
        del registry("victims")._entries[name]


def measure(
    folder: Path, out: str, second: str = '{ name = "noise" }', names: tuple[str, ...] = NAMES
) -> Result:
    victims = ", ".join(f'{{ name = "{name}" }}' for name in names)
    (folder / f"{out}.toml").write_text(SUITE.format(second=second, victims=victims))
    places = {"--out": folder / out, "--plugin": folder / "p.py", "--weights": folder / "weights"}
    options = [str(part) for pair in places.items() for part in pair]
    return CliRunner().invoke(
        command, [str(folder / f"{out}.toml"), *options, "--jobs", "1"], standalone_mode=False
    )


def rows(folder: Path, out: str) -> dict[str, dict[str, str]]:
    with (folder / out / "leaderboard.csv").open() as file:
        return {row["victim"]: row for row in csv.DictReader(file)}


def test_faults_of_victims_are_errors_of_their_own_cells_and_a_second_run_goes_on(folder: Path) -> None:
    done = measure(folder, "all")
    assert done.return_value == 3, done.output
    assert "'fault.check': its forward pass raised LookupError: no batch of one" in done.output
    assert "'fault.shard': its forward pass raised LookupError: no batch of three" in done.output
    assert "'fault.nan': logits on a legal perturbed input are not finite" in done.output
    found = rows(folder, "all")
    assert set(found) == set(NAMES)
    assert "errors" not in found["fault.none"]["flags"] and int(found["fault.none"]["n"]) == 11
    assert all("errors" in found[name]["flags"] for name in NAMES[1:])
    again = measure(folder, "all")
    assert again.return_value == 3
    assert rows(folder, "all") == found


def test_a_fault_in_one_shard_leaves_the_others_measured(folder: Path) -> None:
    assert measure(folder, "shard", names=("fault.shard",)).return_value == 3
    for record in folder.glob("shard/**/record.json"):
        counts = json.loads(record.read_text())["counts"]
        assert (counts["n"], counts["errors"]) == (11, 3)
        assert counts["clean"] + counts["wrong_clean"] == 8


def test_cells_whose_estimator_does_not_apply_are_not_measured_and_say_so(folder: Path) -> None:
    pdsg = '{ name = "pgd.linf", params = { steps = 2, estimator = "pdsg" } }'
    done = measure(folder, "refused", pdsg, ("fault.none", "lif_cnn.digits"))
    assert done.return_value == 0, done.output
    reason = "pgd.linf[estimator=pdsg,steps=2]: estimator 'pdsg' does not apply"
    assert f"n/a: fault.none + none: {reason}" in done.output
    assert "fault.none + none" in (folder / "refused/not_applicable.csv").read_text()
    found = rows(folder, "refused")
    assert set(found) == {"fault.none", "lif_cnn.digits"}
    table = (folder / "refused/leaderboard.md").read_text()
    (line,) = [line for line in table.splitlines() if line.startswith("| pgd.linf[estimator=pdsg,steps=2]")]
    columns = dict(zip(found, line.split("|")[2:-1], strict=True))
    assert columns["fault.none"].strip() == "-" and float(columns["lif_cnn.digits"]) > 0
    assert measure(folder, "refused", pdsg, ("fault.none", "lif_cnn.digits")).return_value == 0
    assert rows(folder, "refused") == found
