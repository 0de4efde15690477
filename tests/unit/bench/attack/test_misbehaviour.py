"""Attacks that sleep, leave, hang or peek end as errors of their own cell, and the rest is finished."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Budget
from robustspike.bench.api import Domain
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.attack.limits import LEAST_GIB
from robustspike.bench.attack.limits import NO_LIMITS
from robustspike.bench.attack.limits import Limits
from robustspike.bench.attack.limits import TimedOut
from robustspike.bench.attack.limits import time_limit
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.record.schema import read_record
from robustspike.bench.run.pool import in_processes
from robustspike.bench.run.pool import memory_share
from robustspike.bench.run.pool import workers_for
from robustspike.bench.testing.reference import reference
from robustspike.bench.testing.reference import samples
from tests.support.commands import robustspike

Move = Callable[[Oracle, Tensor], Tensor]


class Scripted:
    """An attack that does what the test says."""

    def __init__(self, move: Move) -> None:
        self.move = move
        self.spec = AttackSpec(name="scripted", geometries=("linf", "l0"), source="test")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        return self.move(oracle, x0)


def judge(move: Move, threat: ThreatModel | None = None, limits: Limits = NO_LIMITS) -> ShardResult:
    threat = threat or ThreatModel(eps=Fraction(1, 4))
    victim, x = reference(threat.domain), samples(threat.domain)
    y = victim.logits(x).argmax(dim=1)
    return evaluate_shard(victim, Scripted(move), threat, x, y, torch.arange(len(x)), limits=limits)


def raises(error: BaseException) -> Move:
    def move(oracle: Oracle, x0: Tensor) -> Tensor:
        raise error

    return move


class Own(Exception):
    """A class that the harness has never seen."""


@pytest.mark.parametrize("value", [0.5, 1e-3, -1.0, 2.0])
def test_frames_that_are_not_binary_are_errors(value: float) -> None:
    def move(oracle: Oracle, x0: Tensor) -> Tensor:
        x = x0.clone()
        x.flatten(1)[:, 0] = value
        return x

    result = judge(move, ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=Fraction(8)))
    assert (result.status == 3).all()
    assert "leaves the threat model" in result.errors[0]


@pytest.mark.parametrize("error", [Own("x"), SystemExit(0), GeneratorExit(), BaseException("x"), EOFError()])
def test_whatever_an_attack_raises_is_its_error(error: BaseException) -> None:
    result = judge(raises(error))
    assert (result.status == 3).all()
    assert type(error).__name__ in result.errors[0]


def test_ctrl_c_gets_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        judge(raises(KeyboardInterrupt()))


def test_global_generators_are_put_back_after_an_error_too() -> None:
    def move(oracle: Oracle, x0: Tensor) -> Tensor:
        torch.rand(3)
        raise Own

    before = torch.get_rng_state()
    judge(move)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("access", "peek"),
    [
        (Access.SCORE, lambda o, x: o.loss_and_grad(x, torch.arange(len(x)))),
        (Access.LABEL, lambda o, x: o.logits(x, torch.arange(len(x)))),
        (Access.LABEL, lambda o, x: o.victim),
        (Access.WHITE, lambda o, x: o.y),
        (Access.WHITE, lambda o, x: o.meter),
    ],
)
def test_what_an_attack_may_not_see_is_an_error(access: Access, peek: Callable[..., object]) -> None:
    def move(oracle: Oracle, x0: Tensor) -> Tensor:
        peek(oracle, x0)
        return x0

    result = judge(move, ThreatModel(eps=Fraction(1, 4), access=access))
    assert (result.status == 3).all()


def test_an_untargeted_attack_finds_no_targets() -> None:
    seen: list[Tensor | None] = []

    def move(oracle: Oracle, x0: Tensor) -> Tensor:
        seen.append(oracle.targets)
        return x0

    judge(move)
    assert seen == [None]


def _swallows(oracle: Oracle, x0: Tensor) -> Tensor:
    for _ in range(2):
        with contextlib.suppress(BaseException):
            time.sleep(60)
    return x0


@pytest.mark.parametrize("move", [lambda o, x: time.sleep(60) or x, _swallows])
def test_an_attack_that_sleeps_is_stopped(move: Move) -> None:
    start = time.perf_counter()
    result = judge(move, limits=Limits(seconds=0.2))
    assert time.perf_counter() - start < 5
    if move is not _swallows:
        assert (result.status == 3).all()
        assert "stopped after 0.2 s" in result.errors[0]


def test_a_limit_is_lifted_after_the_block() -> None:
    with pytest.raises(TimedOut), time_limit(0.01):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)


def _torch(kept: list[object]) -> None:
    kept.append(torch.ones(1 << 22))  # 16 MiB


def _numpy(kept: list[object]) -> None:
    kept.append(np.ones(1 << 21))


def _python(kept: list[object]) -> None:
    kept.append(bytearray(1 << 24))


def _at_once(kept: list[object]) -> None:
    kept.append(torch.empty(1 << 40))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@pytest.mark.parametrize("grow", [_torch, _numpy, _python, _at_once])
def test_an_attack_that_leaks_memory_is_stopped(grow: Callable[[list[object]], None]) -> None:
    kept: list[object] = []

    def move(oracle: Oracle, x0: Tensor) -> Tensor:
        while len(kept) < 100:
            grow(kept)
        return x0

    before = resource.getrlimit(resource.RLIMIT_DATA)
    result = judge(move, limits=Limits(gib=0.25))
    assert (result.status == 3).all()
    assert "wanted more memory than 0.25 GiB on 12 samples" in result.errors[0]
    assert "--memory" in result.errors[0]
    assert len(kept) < 100, (
        "it was stopped; how soon depends on how much freed memory the process can fill again"
    )
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    kept.clear()
    assert judge(lambda o, x: x, limits=Limits(gib=0.25)).errors == []


def test_a_share_of_the_memory_is_less_than_all_of_it() -> None:
    assert 0 < memory_share(4) == memory_share(1) / 4 < memory_share(1)


def test_memory_that_is_asked_for_chooses_the_number_of_workers() -> None:
    usable = memory_share(1)
    assert usable is not None
    assert workers_for(8, None) == workers_for(8, 0) == 8
    assert workers_for(8, usable / 3.5) == 3
    assert workers_for(2, usable / 3.5) == 2
    assert workers_for(8, 10 * usable) == 1


def test_no_share_of_the_memory_is_too_small_for_an_honest_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustspike.bench.run.pool.usable_memory", lambda: 1.0)
    assert (workers_for(64, None), workers_for(64, 0), workers_for(2, None)) == (8, 64, 2)
    assert memory_share(64) == LEAST_GIB


def test_less_memory_than_an_honest_attack_needs_is_refused(tmp_path: Path) -> None:
    done = robustspike("run", "--memory", LEAST_GIB / 2, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: --memory 0.0625: ") and "Give 0.125 or more" in done.stderr


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda o, x: x + 1, "leaves the threat model"),
        (lambda o, x: x * float("nan"), "NaN"),
        (lambda o, x: x.add_(0.01), "modified x0 or y in place"),
        (lambda o, x: x + 0 * torch.rand(1), "global random generator"),
        (lambda o, x: x + 0 * float(np.random.rand()), "global random generator"),  # noqa: NPY002
        (lambda o, x: [o.labels(x, torch.arange(len(x))) for _ in range(9)] and x, "would need 4 forwards"),
    ],
)
def test_each_kind_of_misbehaviour_has_its_message(move: Move, message: str) -> None:
    threat = ThreatModel(eps=Fraction(1, 4), budget=Budget(forwards=3, backwards=3))
    result = judge(move, threat)
    assert (result.status == 3).all()
    assert message in result.errors[0]


def _task(number: int) -> None:
    if number == 2:
        os._exit(0)


def _start() -> None:
    pass


@pytest.mark.slow
def test_only_the_task_that_kills_its_process_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[4]))  # workers import `_task` from here
    ended = dict(in_processes(range(6), _task, jobs=2, start=_start))
    assert ended == {number: number != 2 for number in range(6)}


PLUGIN = """
import os, time
from dataclasses import dataclass
from typing import ClassVar
import torch
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Domain

KEPT = []

def leaks(x):
    while True:
        KEPT.append(x.new_empty(1 << 24))

DEEDS = {
    "leaves": lambda oracle, x: os._exit(0),
    "sleeps": lambda oracle, x: time.sleep(600),
    "leaks": lambda oracle, x: leaks(x),
    "raises": lambda oracle, x: 1 / 0,
    "wanders": lambda oracle, x: x + 5,
    "nan": lambda oracle, x: x * float("nan"),
    "half": lambda oracle, x: x * 0.75,
    "in_place": lambda oracle, x: x.mul_(0),
    "spends": lambda oracle, x: [oracle.labels(x, torch.arange(len(x))) for _ in range(9)] and x,
    "peeks": lambda oracle, x: oracle.logits(x, torch.arange(len(x))) and x,
    "random": lambda oracle, x: x + 0 * torch.rand(1),
}

@dataclass(frozen=True)
class Bad:
    deed: str = "raises"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="bad", geometries=("linf", "l0"), domains=tuple(Domain), access=Access.LABEL, source="test"
    )
    def run(self, oracle, x0, y, *, rng):
        return DEEDS[self.deed](oracle, x0)
"""

SUITE = """
name = "bad"
samples = 8
shard = 4
[[attacks]]
name = "noise"
[[threats]]
geometry = "linf"
eps = "1/10"
budget = { forwards = 3, backwards = 3 }
attacks = ["!*=half*"]
[[threats]]
domain = "spikes"
geometry = "l0"
eps = "9999"
attacks = ["noise", "*=half*"]
[[victims]]
name = "lif_cnn.digits"
[[victims]]
name = "lif_cnn.digits_events"
"""

DEEDS = {
    "leaves": "worker process died",
    "sleeps": "stopped after 3 s on 4 samples",
    "leaks": "wanted more memory than 0.5 GiB on 4 samples",
    "raises": "ZeroDivisionError",
    "wanders": "leaves the threat model (4 of 4 do): linf distance 5",
    "nan": "the returned tensor holds NaN or infinity",
    "half": "leave the domain [0.0, 1.0] or are not binary",
    "in_place": "modified x0 or y in place",
    "spends": "would need 4 forwards and 0 backwards, the threat model allows 3 and 3",
    "peeks": "the threat model grants 'label' access",
    "random": "drew from a global random generator",
}


@pytest.mark.slow
def test_a_run_finishes_around_every_kind_of_bad_attack(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(PLUGIN)
    entries = [f'[[attacks]]\nname = "bad"\nparams = {{ deed = "{deed}" }}\n' for deed in DEEDS]
    (tmp_path / "bad.toml").write_text(SUITE + "".join(entries))
    command = [sys.executable, "-m", "robustspike.bench.cli", "run", "bad.toml", "--plugin", "bad.py"]
    command += ["--jobs", "2", "--timeout", "3", "--memory", "0.5", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 3, done.stderr
    records = [read_record(path) for path in (tmp_path / "out" / "records").iterdir()]
    fine = [record for record in records if record.attack == "noise"]
    assert len(fine) == 2
    assert all(record.errors == () and record.counts["errors"] == 0 for record in fine)
    found = {record.label: record for record in records}
    for deed, message in DEEDS.items():
        record = found[f"bad[deed={deed}]"]
        assert message in record.errors[0], deed
        assert record.counts["robust"] == record.counts["broken"] == 0
        assert f"none, bad[deed={deed}], " in done.stderr
    assert len(records) == len(DEEDS) + 2
    assert "Traceback" not in done.stderr
