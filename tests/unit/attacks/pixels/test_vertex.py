"""The search over corners: where it starts, what it keeps, what it may cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.ensembles.members import attempts
from robustspike.attacks.ensembles.members import gradient
from robustspike.attacks.ensembles.members import onward
from robustspike.attacks.pixels.vertex import Vertex
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import evaluate
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.meter import Meter


class Sum(nn.Module):
    """Two classes, told apart by a weighted sum of the input."""

    def __init__(self, weight: Tensor, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        z = (x * self.weight).flatten(1).sum(dim=1) - self.offset
        return torch.stack([z, -z], dim=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return what the victim is asked by the attack, pass by pass."""
    found: list[Tensor] = []
    note = Meter.note

    def noted(self: Meter, x: Tensor, logits: Tensor, rows: Tensor) -> None:
        found.append(x.clone())
        note(self, x, logits, rows)

    monkeypatch.setattr(Meter, "note", noted)
    return found


def victim(net: nn.Module, shape: tuple[int, int, int], bounds: tuple[float, float] = (0, 1)) -> ModuleVictim:
    return wrap(net, name="sum", shape=shape, classes=2, bounds=bounds)


@pytest.mark.parametrize(
    ("shape", "bounds", "queries", "share"),
    [((1, 4, 4), (0, 1), 150, 0.95), ((3, 16, 16), (0, 1), 500, 0.25), ((3, 6, 6), (-2, 2), 600, 0.6)],
)
def test_it_comes_near_the_best_corner_of_a_linear_net(
    shape: tuple[int, int, int], bounds: tuple[float, float], queries: int, share: float
) -> None:
    draws = RowStreams.derive([5], "weights")
    weight = draws.sign(shape)[0]
    x = torch.full((2, *shape), sum(bounds) / 2)
    furthest = 0.1 * weight.numel()
    net = Sum(weight, float((x[0] * weight).sum()) - share * furthest)
    result = evaluate(
        victim(net, shape, bounds), Vertex(queries=queries), x, torch.zeros(2).long(), eps="1/10"
    )
    assert result.robust == 0


def test_it_goes_on_from_the_best_input_of_earlier_members(asked: list[Tensor]) -> None:
    """On a linear net a few gradient steps reach the best corner, from which the next member starts."""
    weight = RowStreams.derive([1], "weights").normal((1, 8, 8))[0]
    net = Sum(weight, -12.0)  # out of reach: every sample stands
    x = torch.full((3, 1, 8, 8), 0.5)
    members = [gradient("pgd.linf", "native", steps=10), onward(4)]

    class Two:
        spec = registry("attacks").get("pgd.linf").spec

        def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
            pairs = [(member, registry("attacks").get(member.attack)) for member in members]
            for _ in attempts(oracle, pairs, x0, y, rng=rng, abreast=True):
                pass
            return x0

    evaluate(victim(net, (1, 8, 8)), Two(), x, torch.zeros(3).long(), eps="1/10")
    corner = x - 0.1 * weight.sign()
    start, first_move = asked[-4:-2]
    assert torch.allclose(start, corner)
    assert not torch.allclose(first_move, corner)


def test_every_query_changes_something_and_stays_in_the_ball(asked: list[Tensor]) -> None:
    net = Sum(torch.zeros(1, 8, 8), -1.0)  # no move shrinks the margin: all are kept
    x = RowStreams.derive([2, 3], "x").uniform((1, 8, 8))
    attack = Vertex(queries=40)
    shard = evaluate(victim(net, (1, 8, 8)), attack, x, torch.zeros(2).long(), eps="1/10").shards[0]
    assert shard.forwards.tolist() == [40, 40]
    assert shard.backwards.tolist() == [0, 0]
    points = torch.stack(asked)
    assert float((points - x).abs().max()) <= 0.1 + 1e-6
    assert bool((points[1:] != points[:-1]).flatten(2).any(dim=2).all())


def test_wrong_parameters_and_inputs_are_named() -> None:
    with pytest.raises(ConfigError, match="largest must be at most 1, got 2"):
        Vertex(largest=2)
    with pytest.raises(ConfigError, match="queries must be above 0"):
        Vertex(queries=0)
    flat = wrap(nn.Linear(4, 3), name="flat", shape=(4,), classes=3)
    assert "images" in str(Vertex().fits(flat.spec))
