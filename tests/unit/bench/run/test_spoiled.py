"""A shard whose victim changed is an error, and nothing after it is measured on what was left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from robustspike.bench.contract.registry import load_file
from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import Status
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.loading import Victims
from robustspike.bench.suite.loading import victim_of
from robustspike.bench.suite.plan import make_plan

PLUGIN = """
import time
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from robustspike.bench.api import AttackSpec, GradientEstimator, find_neurons
from robustspike.bench.certify.result import Certified
from robustspike.bench.contract.specs import CertifierSpec

def spoil(module, how):
    if how == "weights":
        with torch.no_grad():
            for p in module.parameters(): p.mul_(0.2)
    elif how == "data":
        for p in module.parameters(): p.data.mul_(0.2)
    elif how == "hook":
        find_neurons(module)[0].module.register_forward_hook(lambda m, x, y: y * 0)
    elif how == "attribute":
        module.body[0].forward = lambda x: x * 0
    elif how == "mode":
        module.train()

@dataclass(frozen=True)
class Clumsy(GradientEstimator):
    name: ClassVar[str] = "clumsy"
    how: str = "weights"
    then: str = "raise"
    def loss_and_grad(self, module, call, x, loss, *, neurons, memories):
        spoil(module, self.how)
        if self.then == "raise":
            raise RuntimeError("slip")
        if self.then == "hang":
            time.sleep(30)
        return super().loss_and_grad(module, call, x, loss, neurons=neurons, memories=memories)

@dataclass(frozen=True)
class Vandal:
    spec: ClassVar[AttackSpec] = AttackSpec(name="aaa_vandal", geometries=("linf",), source="Mine.")
    how: str = "weights"
    then: str = "raise"
    def run(self, oracle, x0, y, *, rng):
        rows = oracle.active(forwards=1, backwards=1)
        oracle.loss_and_grad(x0[rows], rows, "ce", estimator=Clumsy(self.how, self.then))
        return x0

@dataclass(frozen=True)
class Careless:
    spec: ClassVar[CertifierSpec] = CertifierSpec(name="aaa_careless", norm="linf")
    confidence: float = 1.0
    def fits(self, victim):
        return None
    def certify(self, victim, x, y, *, radii, streams):
        spoil(victim.module, "data")
        n = len(x)
        return Certified("intervals", "linf", n, n, 0, torch.ones(n, dtype=torch.float64), 1.0)
"""

SUITE = """
name = "spoiled"
samples = 32
shard = 16
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "{victim}"
[[attacks]]
name = "aaa_vandal"
params = {{ how = "{how}", then = "{then}" }}
[[attacks]]
name = "noise"
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "vandals.py"
    path.write_text(PLUGIN)
    entries = load_file(path)
    yield path
    for entry in entries:
        registry(entry.kind)._entries.pop(entry.name, None)


def measured(
    tmp_path: Path, plugin: Path, text: str, *, jobs: int = 1, **options: object
) -> list[CellRecord]:
    (tmp_path / "suite.toml").write_text(text)
    settings = Settings(out=tmp_path / "out", plugins=(plugin,), **options)  # type: ignore[arg-type]
    return run(make_plan(read_suite(str(tmp_path / "suite.toml"))), settings, jobs=jobs)


def right(record: CellRecord) -> int:
    return sum(row.clean == int(row.label) for row in record.rows)


@pytest.mark.parametrize(
    ("victim", "how", "then", "jobs"),
    [
        ("lif_cnn.digits", "weights", "raise", 1),
        ("lif_cnn.digits", "weights", "go on", 1),
        ("lif_cnn.digits", "data", "go on", 1),
        ("lif_cnn.digits", "hook", "go on", 1),
        ("lif_cnn.digits", "hook", "raise", 1),
        ("lif_cnn.digits", "attribute", "raise", 1),
        ("lif_cnn.digits", "mode", "go on", 1),
        ("lif_cnn.digits", "weights", "raise", 2),
        ("poisson_cnn.digits", "data", "go on", 1),
        pytest.param("poisson_cnn.digits", "weights", "raise", 2, marks=pytest.mark.slow),
    ],
)
def test_what_comes_after_a_vandal_is_measured_on_the_pristine_victim(
    tmp_path: Path, plugin: Path, victim: str, how: str, then: str, jobs: int
) -> None:
    text = SUITE.format(victim=victim, how=how, then=then)
    spoiled, honest = measured(tmp_path, plugin, text, jobs=jobs)
    assert {row.status for row in spoiled.rows} == {Status.ERROR}
    assert "changed" in " ".join(spoiled.errors)
    assert right(honest) >= 28 and not honest.errors
    assert honest.digests["weights_after"] == honest.digests["weights"] == spoiled.digests["weights"]
    if how in ("weights", "data"):
        assert spoiled.digests["weights"] not in spoiled.digests["weights_after"]


def test_a_pass_that_is_cut_off_by_the_clock_leaves_nothing(tmp_path: Path, plugin: Path) -> None:
    from robustspike.bench.attack.limits import Limits

    text = SUITE.format(victim="lif_cnn.digits", how="weights", then="hang")
    spoiled, honest = measured(tmp_path, plugin, text, limits=Limits(seconds=1.0))
    assert spoiled.counts["errors"] == 32 and "stopped after 1 s" in spoiled.errors[0]
    assert right(honest) >= 28


def test_a_certifier_is_no_exception(tmp_path: Path, plugin: Path) -> None:
    text = SUITE.format(victim="lif_cnn.digits", how="data", then="raise")
    text = text.replace('[[attacks]]\nname = "aaa_vandal"', '[[certify]]\nname = "aaa_careless"')
    text = text.replace('params = { how = "data", then = "raise" }\n', "")
    by_name = {record.attack: record for record in measured(tmp_path, plugin, text)}
    assert by_name["aaa_careless"].counts["errors"] == 32
    assert right(by_name["noise"]) >= 28


def test_a_victim_that_a_borrower_changed_is_loaded_again(tmp_path: Path, plugin: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE.format(victim="lif_cnn.digits", how="mode", then="raise"))
    plan = make_plan(read_suite(str(tmp_path / "suite.toml")), only=[("attack", "noise")])
    victim = victim_of(plan.cells[0], weights=None, device="cpu")
    for parameter in victim.module.parameters():
        parameter.data.zero_()
    (record,) = run(plan, Settings(out=tmp_path / "out"))
    assert right(record) >= 28 and not record.errors


def test_the_cache_of_victims_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(
        SUITE.format(victim="*_cnn.digits", how="mode", then="raise").replace(
            '[[attacks]]\nname = "aaa_vandal"\nparams = { how = "mode", then = "raise" }\n', ""
        )
    )
    cells = make_plan(read_suite(str(tmp_path / "suite.toml"))).cells[:4]
    victims = Victims(limit=2 << 20)
    made = [victims.lend(cell, weights=None, device="cpu") for cell in cells]
    assert len(victims._kept) == 2
    assert victims.lend(cells[3], weights=None, device="cpu") is made[3]
    assert victims.lend(cells[0], weights=None, device="cpu") is not made[0]
    assert victims.digest(cells[1], weights=None, device="cpu") == made[1].spec.weights
