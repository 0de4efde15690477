"""What depends on victim and samples alone is computed once; no verdict knows the difference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.attack import known as known_module
from robustspike.bench.attack.known import known_of
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.plan import Plan
from robustspike.bench.suite.plan import make_plan
from tests.support.folders import contents

SUITE = """
name = "twice"
samples = 16
shard = 8
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "{victim}"
[[attacks]]
name = "fgsm.linf"
[[attacks]]
name = "noise"
[[attacks]]
name = "pgd.linf"
params = {{ steps = 2 }}
"""


def plan_for(victim: str, folder: Path) -> Plan:
    path = folder / "suite.toml"
    path.write_text(SUITE.format(victim=victim))
    return make_plan(read_suite(str(path)))


class Passes:
    """Counts the samples of every kind of pass through victims."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rows: Counter[bool] = Counter()
        own = ModuleVictim._pass

        def counted(victim: ModuleVictim, x: Tensor, noise: object) -> Tensor:
            self.rows[torch.is_grad_enabled() and x.requires_grad] += len(x)
            return own(victim, x, noise)  # type: ignore[arg-type]

        patch.setattr(ModuleVictim, "_pass", counted)


@pytest.mark.parametrize(
    "victim", ["lif_cnn.digits", pytest.param("poisson_cnn.digits", marks=pytest.mark.slow)]
)
def test_a_record_has_the_same_bytes_whoever_asked_first(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(victim, tmp_path)
    run(plan, Settings(out=tmp_path / "shared"))
    monkeypatch.setattr("robustspike.bench.run.compute.known_of", lambda *_: known_module.Known())
    run(plan, Settings(out=tmp_path / "alone"))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_clean_passes_are_made_once_for_all_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for("lif_cnn.digits", tmp_path)
    run(plan, Settings(out=tmp_path / "first"))  # what is looked at once a victim is not counted
    monkeypatch.setattr(known_module, "_KNOWN", type(known_module._KNOWN)())
    passes = Passes(monkeypatch)
    run(plan, Settings(out=tmp_path / "shared"))
    shared = passes.rows.copy()
    monkeypatch.setattr("robustspike.bench.run.compute.known_of", lambda *_: known_module.Known())
    passes.rows.clear()
    run(plan, Settings(out=tmp_path / "alone"))
    saved = passes.rows - shared
    assert saved[True] >= 2 * 13  # the probe of what is right, twice, for one white-box attack less
    assert saved[False] >= 2 * 3 * 15  # answer, repetition and energy, for two attacks less


def test_what_is_known_goes_with_the_victim_and_differs_by_shard() -> None:
    victim = load_victim("lif_cnn.digits")
    first = known_of(victim, {"data": "a", "start": 0})
    assert first.once("x", lambda: 1) == first.once("x", lambda: 2) == 1
    assert known_of(victim, {"start": 0, "data": "a"}) is first
    assert known_of(victim, {"data": "a", "start": 8}) is not first
    assert known_of(load_victim("lif_cnn.digits"), {"data": "a", "start": 0}) is not first


def test_only_so_many_shards_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_module, "SHARDS_KEPT", 2)
    victim = load_victim("lif_cnn.digits")
    first = known_of(victim, {"start": 0})
    known_of(victim, {"start": 1})
    known_of(victim, {"start": 2})
    assert known_of(victim, {"start": 0}) is not first


def test_the_second_candidate_is_answered_only_where_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was returned is mostly the oracle's best; where a hit was not returned, both are answered."""
    victim = load_victim("lif_cnn.digits")
    split = registry("datasets").get("digits").load("test")[:20]
    threat = ThreatModel(eps=Fraction(3, 10))
    fgsm = registry("attacks").get("fgsm.linf")

    @dataclass(frozen=True)
    class Forgetful:
        spec: ClassVar[AttackSpec] = fgsm.spec

        def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
            fgsm.run(oracle, x0, y, rng=rng)
            return x0.clone()

    evaluate_shard(victim, fgsm, threat, split.x, split.y, split.ids)  # looks at victim and estimator, once
    passes = Passes(monkeypatch)
    same = evaluate_shard(victim, fgsm, threat, split.x, split.y, split.ids)
    once = passes.rows[False]
    passes.rows.clear()
    other = evaluate_shard(victim, Forgetful(), threat, split.x, split.y, split.ids)
    assert passes.rows[False] == once + same.counts["attacked"]
    assert torch.equal(same.status, other.status)  # the oracle remembers
    assert torch.equal(same.x_adv, other.x_adv)
    assert (same.counts["silent"], other.counts["silent"]) == (0, other.count(Status.BROKEN))
    assert other.count(Status.BROKEN) > 0
