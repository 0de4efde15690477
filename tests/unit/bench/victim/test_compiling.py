"""--compile: attacks ask a compiled network, in few sizes of batches; the network itself decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import estimator_nets as nets
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import joint
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.store import Store
from robustspike.bench.run.assemble import cell_of
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.run import run
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.loading import VICTIMS
from robustspike.bench.suite.plan import make_plan
from robustspike.bench.victim import compiling
from tests.support.commands import robustspike

SUITE = """
name = "tiny"
samples = 10
shard = 10
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "pgd.linf"
params = { steps = 2 }
"""


class Compiled:
    """Stands in for torch.compile: the network as it is, its calls noted."""

    def __init__(self, answer: Callable[[Tensor], Tensor] | None = None) -> None:
        self.sizes: list[int] = []
        self.answer = answer

    def __call__(self, module: nn.Module, *, dynamic: bool = True) -> Callable[[Tensor], Tensor]:
        assert not dynamic

        def call(x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            out: Tensor = module(x) if self.answer is None else self.answer(x)
            return out

        return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    made = Compiled()
    monkeypatch.setattr(torch, "compile", made)
    return made


def gradient(victim: ModuleVictim, name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    out = victim.loss_and_grad(x, y, cross_entropy, registry("estimators").get(name))
    return out.logits, out.grad


@pytest.mark.parametrize("n", [1, 5, 8, 9])
def test_batches_are_filled_up_to_a_few_sizes_and_rows_are_those_of_the_network(
    fake: Compiled, n: int
) -> None:
    victim = nets.victim("plif-hard-decay", double=True)
    other = compiling.compiled(victim)
    assert compiling.compiled(victim) is other
    x, y = nets.inputs(n, double=True)
    with torch.no_grad():
        torch.testing.assert_close(other.logits(x), victim.logits(x))
    for one, two in zip(gradient(other, "native", x, y), gradient(victim, "native", x, y), strict=True):
        torch.testing.assert_close(one, two)
    assert fake.sizes == [8 if n <= 8 else 32] * 2
    assert [compiling.bucket(size) for size in (33, 128, 129, 300)] == [128, 128, 256, 384]


def test_what_a_pass_takes_is_measured_on_the_network_alone(
    fake: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = nets.victim("lif-hard")
    small = max(1, victim.spec.steps) * 4 * math.prod(victim.spec.shape)
    monkeypatch.setattr("robustspike.bench.victim.module.NEVER_CUT", 2 * small)
    x, y = nets.inputs(20)
    other = compiling.compiled(victim)
    assert torch.equal(other.logits(x), victim.logits(x))
    assert torch.equal(gradient(other, "native", x, y)[1], gradient(victim, "native", x, y)[1])
    assert other.sample_bytes == victim.sample_bytes and fake.sizes == [32, 32]


def test_a_network_with_another_backward_pass_is_run_as_it_is(fake: Compiled) -> None:
    victim = nets.victim("lif-hard")
    x, y = nets.inputs(3)
    other = compiling.compiled(victim)
    for name in ("pdsg", "assg", "hart"):
        assert all(map(torch.equal, gradient(other, name, x, y), gradient(victim, name, x, y)))
    assert not fake.sizes


def test_networks_that_cannot_be_compiled_are_told_apart(fake: Compiled) -> None:
    plain = nets.victim("lif-hard")
    assert compiling.refusal(plain) is None
    with pytest.raises(ConfigError, match="cannot be compiled: it is several networks"):
        compiling.compiled(joint(plain, nets.victim("lif-soft")))
    noisy = next(name for name in registry("victims").names("*digits") if "poisson" in name)
    assert "noise" in (compiling.refusal(load_victim(noisy)) or "")


@pytest.mark.parametrize("fooled", [False, True])
def test_its_cells_are_other_cells_and_the_network_itself_decides(
    fake: Compiled, fooled: bool, tmp_path: Path
) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    settings = Settings(out=tmp_path / "out")
    (plain,) = run(make_plan(read_suite(str(suite))), settings)
    (cell,) = make_plan(read_suite(str(suite)), compiled=True).cells
    if fooled:  # what was compiled answers nonsense: no sample may count as broken for that
        fake.answer = lambda x: (
            x.flatten(1).sum(1, keepdim=True) * 0 + torch.eye(10)[(x[:, 0, 0, 0] > 2).long()]
        )
    VICTIMS.drop(cell, weights=None, device="cpu")
    (record,) = run(make_plan(read_suite(str(suite)), compiled=True), settings)
    assert fake.sizes and record.key != plain.key
    assert (plain.label, record.label) == ("pgd.linf[steps=2]", "pgd.linf[steps=2] compiled")
    assert cell_of(record) == cell and cell.compiled and not cell_of(plain).compiled
    assert Store(settings.out).has(plain.key) and Store(settings.out).has(record.key)
    if fooled:
        assert record.measures["unconfirmed"] > 0
        assert record.counts["broken"] <= plain.counts["broken"]
    else:
        assert record.counts == plain.counts
        again = robustspike("reproduce", record.key[:12], "--records", settings.out, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert "--compile" in again.stdout and "byte for byte" in again.stdout
    VICTIMS.drop(cell, weights=None, device="cpu")


def test_without_a_compiler_it_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    (tmp_path / "suite.toml").write_text(SUITE)
    done = robustspike("run", "suite.toml", "--compile", cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "robustspike-results").exists()
    assert "torch.compile does not work here on cpu" in done.stderr
    assert "No working C++ compiler found" in done.stderr and "and more" not in done.stderr


@pytest.mark.slow
def test_a_compiled_network_answers_and_is_differentiated_like_the_network() -> None:
    compiling.check_usable("cpu")
    victim = nets.victim("lif-hard")
    other = compiling.compiled(victim)
    x, y = nets.inputs(5)
    for one, two in zip(gradient(other, "native", x, y), gradient(victim, "native", x, y), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
