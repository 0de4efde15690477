"""Compiled steps of plain nodes: the same bits as without a compiler, and as SpikingJelly's own nodes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor

from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.bench.snn import fast_lif
from robustspike.bench.snn import fused
from robustspike.bench.victim.module import wrap

compiled = pytest.mark.skipif(fused.library() is None, reason="no C compiler here")

NODES = {
    f"{kind}-{reset}-{decay}-{detach}": (kind, reset, decay, detach)
    for kind in ("lif", "if", "plif")
    for reset in (0.0, -0.25, None)
    for decay in ((True, False) if kind != "if" else (False,))
    for detach in ((True, False) if kind != "plif" else (True,))
}
SURROGATES = {
    name: getattr(surrogate, name)
    for name in ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf")
}


def node_of(kind: str, v_reset: float | None, decay_input: bool, detach: bool, rule=None):
    settings = {"v_reset": v_reset, "v_threshold": 0.7, "detach_reset": detach, "step_mode": "m"}
    settings["surrogate_function"] = rule or surrogate.ATan()
    if kind == "if":
        return neuron.IFNode(**settings)
    if kind == "plif":
        return neuron.ParametricLIFNode(2.7, decay_input, **settings).requires_grad_(False)
    return neuron.LIFNode(tau=3.0, decay_input=decay_input, **settings)


@pytest.fixture(params=NODES.values(), ids=NODES.keys())
def node(request: pytest.FixtureRequest):
    return node_of(*request.param)


def currents(*shape: int) -> Tensor:
    """More neurons than one block of the source, and not a multiple of any register."""
    return torch.randn(*(shape or (5, 3, 7, 59)), generator=generator("fused")) * 1.5


@contextmanager
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(fused, "library", lambda: None)
        yield


def answers(node, x: Tensor, nodes, rule: str = "") -> tuple[Tensor, ...]:
    """Return spikes, the potential left behind, and the gradient of both."""
    node.reset()
    leaf = x.clone().requires_grad_(True)
    memory = Memory(rows=torch.arange(x.shape[1]), n=x.shape[1])
    estimator = registry("estimators").get(rule or "native")
    with estimator.installed([Neuron(name="node", index=0, module=node)], [memory]), fast_lif.in_place(nodes):
        spikes = node(leaf)
        left = node.v
        weight = torch.randn(spikes.shape, generator=generator("weight"))
        (grad,) = torch.autograd.grad((spikes * weight).sum() + (left * weight[0]).sum(), leaf)
        (plain,) = torch.autograd.grad((node_again(node, leaf) * weight).sum(), leaf)
    node.reset()
    return spikes.detach(), left.detach(), grad, plain


def node_again(node, leaf: Tensor) -> Tensor:
    node.reset()
    out: Tensor = node(leaf)
    return out


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@compiled
@pytest.mark.parametrize("rule", ["pdsg", "triangle", "atan", "erf"])
def test_bits_are_those_without_a_compiler(monkeypatch, node, rule: str) -> None:
    x = currents()
    mine = answers(node, x, [node], rule)
    with without_compiler(monkeypatch):
        expected = answers(node, x, [node], rule)
    assert all(same_bits(a, b) for a, b in zip(mine, expected, strict=True))
    assert 0 < int(expected[0].sum()) < x.numel() and all(bool((grad != 0).any()) for grad in mine[2:])


@compiled
@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_of_the_nodes_own_gives_the_nodes_own_gradient(node, name: str) -> None:
    node.surrogate_function = SURROGATES[name]()
    used = set(_graph(node, currents(2, 1, 3)))
    assert "_SequenceBackward" in used  # compiled, not left to the node
    for mine, own in zip(answers(node, currents(), [node]), answers(node, currents(), []), strict=True):
        assert torch.equal(mine, own) and bool((own != 0).any())


def _graph(node, x: Tensor) -> list[str]:
    node.reset()
    with fast_lif.in_place([node]):
        spikes = node(x.requires_grad_(True))
    node.reset()
    return [spikes.grad_fn.name()]


@compiled
def test_threads_share_a_layer_and_change_no_bit(monkeypatch, node) -> None:
    expected = answers(node, currents(), [node])
    monkeypatch.setattr(fused.compiled, "_SHARE", 100)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        mine = answers(node, currents(), [node])
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(a, b) for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize("compiles", [pytest.param(True, marks=compiled), False])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_node_that_is_called_again_goes_on_from_where_it_was(monkeypatch, node, recorded, compiles) -> None:
    if not compiles:
        monkeypatch.setattr(fused, "library", lambda: None)
    x = currents(4, 2, 5)
    with torch.set_grad_enabled(recorded):
        whole = node(x.clone().requires_grad_(recorded))
        last = node.v
        node.reset()
        leaf = x.clone().requires_grad_(recorded)
        with fast_lif.in_place([node]):
            parts = torch.cat([node(leaf[:2]), node(leaf[2:])])
    assert torch.equal(parts, whole) and torch.equal(node.v, last)


class ReadsPotential(torch.nn.Module):
    """A network whose answer is what its last neurons have gathered, without ever firing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 3)
        self.node = neuron.LIFNode(v_threshold=1e9, step_mode="m", surrogate_function=surrogate.ATan())

    def forward(self, x: Tensor) -> Tensor:
        self.node(self.linear(x).expand(4, -1, -1))
        return self.node.v


@pytest.mark.parametrize("compiles", [pytest.param(True, marks=compiled), False])
def test_a_readout_from_the_potential_is_answered_with_its_gradient(monkeypatch, compiles: bool) -> None:
    if not compiles:
        monkeypatch.setattr(fused, "library", lambda: None)
    net = ReadsPotential()
    victim = wrap(net, name="net", shape=(6,), classes=3, steps=4)
    x = torch.rand(5, 6, generator=generator("x"))
    assert torch.equal(victim.logits(x), net(x))
    leaf = x.clone().requires_grad_(True)
    net.node.reset()
    (expected,) = torch.autograd.grad(net(leaf).sum(), leaf)
    found = victim.loss_and_grad(
        x, torch.zeros(5), lambda logits, _: logits.sum(1), registry("estimators").get("native")
    )
    assert torch.equal(found.grad, expected)


def _compiler(folder: Path, text: str) -> str:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\necho called >> {folder}/calls\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_compiler_that_fails_or_is_absent_or_unwanted_leaves_everything_as_it_is(
    monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load = fused.library.__wrapped__
    monkeypatch.setenv("CC", _compiler(tmp_path, "exit 1"))
    assert load() is None and (tmp_path / "calls").read_text().count("called") == 2
    monkeypatch.setenv("CC", _compiler(tmp_path, 'for last; do :; done; echo garbage > "$last"'))
    assert load() is None
    monkeypatch.setenv("ROBUSTSPIKE_FUSED", "0")
    (tmp_path / "calls").unlink()
    assert load() is None and not (tmp_path / "calls").exists()
    monkeypatch.delenv("ROBUSTSPIKE_FUSED")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert load() is None


@compiled
def test_the_source_is_compiled_once_and_kept(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = os.environ.get("CC") or "cc"
    monkeypatch.setenv("CC", _compiler(tmp_path, f'exec {own} "$@"'))
    load = fused.library.__wrapped__
    assert load() is not None and load() is not None
    assert (tmp_path / "calls").read_text().count("called") == 1
    (kept,) = (tmp_path / "cache" / "robustspike").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])  # cut short: made again
    assert load() is not None
    assert (tmp_path / "calls").read_text().count("called") == 2


def test_what_the_compiled_steps_cannot_read_is_run_without_them() -> None:
    x = currents(2, 3, 4, 5)
    assert not fused.serves(x.double())
    assert not fused.serves(x.transpose(2, 3))
    assert not fused.serves(torch.nn.Parameter(x))
