"""Several starts, and the passes that need not be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.ensembles.mdse import Mdse
from robustspike.attacks.pixels import climbing
from robustspike.attacks.pixels.apgd import ApgdCe
from robustspike.attacks.pixels.apgd import ApgdDlr
from robustspike.attacks.pixels.apgd import ApgdTargeted
from robustspike.attacks.pixels.bim import Bim
from robustspike.attacks.pixels.climbing import Been
from robustspike.attacks.pixels.climbing import ascend
from robustspike.attacks.pixels.mifgsm import MiFgsm
from robustspike.attacks.pixels.pgd import Pgd
from robustspike.attacks.pixels.pgd_l2 import PgdL2
from robustspike.attacks.pixels.sapgd import SaPgd
from robustspike.attacks.pixels.scg_image import ScgImage
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ShardResult
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.meter import Meter

ITERATED = [
    Pgd(steps=4),
    PgdL2(steps=4),
    Bim(steps=4, step=1 / 40),
    MiFgsm(steps=4),
    SaPgd(steps=4),
    ApgdCe(steps=4),
    ApgdDlr(steps=4),
    ApgdTargeted(steps=4, targets=2),
    Mdse(steps=4),
    ScgImage(iterations=4),
]


def digits(n: int) -> tuple[Tensor, Tensor]:
    split = registry("datasets").get("digits").load("validation")
    return split.x[:n], split.y[:n]


def shard(attack: object, *, eps: str, n: int = 24) -> ShardResult:
    x, y = digits(n)
    return evaluate(load_victim("lif_cnn.digits"), attack, x, y, eps=eps).shards[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ITERATED, ids=lambda a: a.spec.name)
def test_further_starts_are_spent_on_survivors_and_lose_no_hit(attack: Pgd) -> None:
    eps = "1/2" if attack.spec.geometries == ("l2",) else "1/15"
    one, three = shard(attack, eps=eps), shard(replace(attack, restarts=3), eps=eps)
    broken = one.status == 1
    assert 0 < int(broken.sum()) < 24
    assert bool((three.status[broken] == 1).all())
    assert torch.equal(three.forwards[broken], one.forwards[broken])
    standing = three.status == 0
    assert int(three.forwards[standing].max()) > 2 * int(one.forwards[standing].max())


def test_a_new_start_breaks_what_the_first_one_missed() -> None:
    attack = Pgd(steps=10, estimator="atan(alpha=10)")
    one, five = shard(attack, eps="1/10", n=60), shard(replace(attack, restarts=5), eps="1/10", n=60)
    assert int((five.status == 1).sum()) > int((one.status == 1).sum())


def test_an_estimator_that_adapts_starts_afresh_with_every_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """ASSG's statistics after the first pass of a start must not depend on earlier starts."""
    remembered: list[bool] = []
    original = Oracle.loss_and_grad

    def spy(self: Oracle, *args: object, estimator: str, **kwargs: object) -> object:
        remembered.append(self.remembers(estimator))
        return original(self, *args, estimator=estimator, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Oracle, "loss_and_grad", spy)
    shard(SaPgd(steps=3, restarts=2), eps="1/1000", n=4)
    assert remembered == [False, True, True, False, True, True]


class Rotor(nn.Module):
    """Its gradient's sign turns with every signed step of 1/4: iterates come back after two steps."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        value = -(flat - 0.5).abs().sum(dim=1)
        return torch.stack([torch.zeros_like(value), value], dim=1)


class Corner(nn.Module):
    """A linear net: every start ends in the same corner of the ball."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).sum(dim=1) - 100
        return torch.stack([torch.zeros_like(value), value], dim=1)


def climbed(net: nn.Module, *, steps: int, repeats: bool, size: float) -> tuple[Meter, Sequence[Tensor]]:
    victim = wrap(net, name="toy", shape=(1, 2, 2), classes=2)
    x = torch.full((3, 1, 2, 2), 0.53)
    x[1] += 0.04
    meter = Meter(
        victim,
        ThreatModel(eps=None, geometry="linf"),
        registry("geometries").get("linf"),
        x,
        torch.zeros(3, dtype=torch.int64),
        noise=RowStreams.derive(range(3), "noise"),
        clean=torch.zeros(3, 2),
        estimators=registry("estimators").get,
    )
    meter.eps = 0.25
    found = ascend(
        Oracle(meter),
        x.clone(),
        steps=steps,
        step=lambda x, gradient, rows: x + size * gradient.sign(),
        loss="margin",
        estimator="native",
        repeats=repeats,
    )
    return meter, found


def points_until_one_comes_back(net: nn.Module, size: float, row: int) -> int:
    x = torch.full((1, 1, 2, 2), 0.53 + 0.04 * (row == 1))
    first, known = x.clone(), []
    while not any(torch.equal(x, old) for old in known):
        known.append(x)
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
        x = torch.minimum(torch.maximum(x + size * gradient.sign(), first - 0.25), first + 0.25).clamp(0, 1)
    return len(known)


@pytest.mark.parametrize(("net", "size"), [(Rotor(), 0.0625), (Corner(), 0.125)])
def test_a_sample_stops_at_the_first_point_that_it_has_been_to_and_finds_the_same(
    net: nn.Module, size: float
) -> None:
    whole, found = climbed(net, steps=50, repeats=False, size=size)
    short, same = climbed(net, steps=50, repeats=True, size=size)
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
    assert whole.forwards.tolist() == [51] * 3
    assert short.forwards.tolist() == [points_until_one_comes_back(net, size, row) for row in range(3)]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_points_are_known_again_by_all_of_their_elements(monkeypatch, kind: torch.dtype) -> None:
    monkeypatch.setattr(climbing, "_MARKED", 60)  # in parts of two rows
    x = torch.rand(5, 3, 10, dtype=kind, generator=generator("been"))
    x[0, 0, 0] = 0.0
    rows = torch.arange(5)
    been = Been(x, 4)
    other = x.clone()
    other[torch.arange(5), torch.arange(5) % 3, torch.arange(5)] += torch.finfo(kind).eps
    assert not been.again(other, rows).any()
    x[0, 0, 0] = -0.0
    assert been.again(x, rows).all() and been.again(other[1:3], rows[1:3]).all()
    assert been.again(torch.stack([x[4], x[3]]), torch.tensor([3, 4])).tolist() == [False, False]


def test_repeats_stop_pgd_on_a_spiking_victim_without_changing_a_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attack = Pgd(steps=200)
    found = shard(attack, eps="1/10", n=40)
    standing = found.status == 0
    assert 0 < float(found.forwards[standing].float().mean()) < 100
    monkeypatch.setattr(Oracle, "remembers", lambda self, estimator: True)  # then nothing counts as a repeat
    whole = shard(attack, eps="1/10", n=40)
    assert torch.equal(whole.status, found.status)
    assert torch.equal(whole.x_adv, found.x_adv)
    assert whole.forwards[standing].tolist() == [201] * int(standing.sum())


def test_an_estimator_that_remembers_is_never_cut_short() -> None:
    found = shard(Pgd(steps=60, estimator="assg"), eps="1/1000", n=6)
    assert found.forwards.tolist() == [61] * 6


class Flat(nn.Module):
    """Answers by its input, with a gradient that is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.detach().flatten(1).sum(dim=1) - 100 + 0 * x.flatten(1).sum(dim=1)
        return torch.stack([torch.zeros_like(value), value], dim=1)


@pytest.mark.parametrize(
    "attack", [SaPgd(steps=30, estimator="native"), ApgdCe(steps=30), ApgdDlr(steps=30), MiFgsm(steps=30)]
)
def test_where_the_gradient_is_zero_at_the_start_no_further_pass_is_made(
    attack: Pgd, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = wrap(Flat(), name="flat", shape=(1, 2, 2), classes=2)
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    found = evaluate(victim, attack, x, y, eps="1/10").shards[0]
    assert found.forwards.tolist() == [1] * 3
    monkeypatch.setattr(
        Oracle, "remembers", lambda self, estimator: True
    )  # then nothing is known to be stuck
    whole = evaluate(victim, attack, x, y, eps="1/10").shards[0]
    assert int(whole.forwards.min()) >= 30
    assert torch.equal(whole.x_adv, found.x_adv)
