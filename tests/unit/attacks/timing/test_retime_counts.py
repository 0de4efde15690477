"""Retiming on event counts: a cell is one packet, and what it holds counts as much as it weighs."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Domain
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ShardResult
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap

SHAPE, EVENTS = (5, 2, 4, 4), 3.0
ATTACKS = ("retime.pil", "retime.greedy", "retime.pgd")


class Leaky(nn.Module):
    """A small causal network of frames divided by a scale: leaky sums behind a soft threshold."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        weight = RowStreams.derive([0], "weights").uniform((3, 32), dtype=torch.float64)[0] - 0.5
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros(len(x), 3, dtype=x.dtype), torch.zeros(len(x), 3, dtype=x.dtype)
        for step in (x / self.scale).flatten(2).unbind(1):
            v = v / 2 + step @ self.weight.T
            out = out + torch.tanh(v)
        return out


def attacked(name: str, geometry: str, eps: int, events: float) -> tuple[Tensor, ShardResult]:
    binary = events == 1
    domain = Domain.SPIKES if binary else Domain.EVENTS
    bounds = (0.0, 1.0) if binary else (0.0, 2 * EVENTS)
    x = (RowStreams.derive(range(16), "frames").uniform(SHAPE) < 0.3).double() * events
    victim = wrap(Leaky(events), name="leaky", shape=SHAPE, classes=3, domain=domain, bounds=bounds)
    threat = ThreatModel(domain=domain, geometry=geometry, eps=Fraction(eps), bounds=bounds)
    y = victim.logits(x).argmax(dim=1)
    result = evaluate_shard(victim, registry("attacks").get(name), threat, x, y, torch.arange(16))
    assert result.errors == []
    return x, result


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("geometry", "eps"), [("retime_linf", 1), ("retime_l1", 8), ("retime_l0", 6)])
def test_packets_of_three_events_move_as_spikes_do_where_the_network_divides_by_three(
    name: str, geometry: str, eps: int
) -> None:
    _, spikes = attacked(name, geometry, eps, 1.0)
    x, packets = attacked(name, geometry, eps, EVENTS)
    assert torch.equal(packets.x_adv, EVENTS * spikes.x_adv)
    assert torch.equal(packets.status, spikes.status)
    assert bool((packets.x_adv != x).flatten(1).any(dim=1).any())


def test_a_heavier_packet_is_moved_before_a_lighter_one() -> None:
    class Early(nn.Module):
        """Class 0 while events come early; class 1 gains by every event, times its step."""

        def forward(self, x: Tensor) -> Tensor:
            late = (x.flatten(2).sum(dim=2) * torch.arange(x.shape[1], dtype=x.dtype)).sum(dim=1)
            return torch.stack([torch.full_like(late, 11.0), late], dim=1)

    shape = (4, 1, 1, 2)
    x = torch.zeros(1, *shape, dtype=torch.float64)
    x[0, 0, 0, 0, 0], x[0, 0, 0, 0, 1] = 1.0, 4.0
    victim = wrap(Early(), name="early", shape=shape, classes=2, domain=Domain.EVENTS, bounds=(0.0, 4.0))
    threat = ThreatModel(domain=Domain.EVENTS, geometry="retime_l0", eps=Fraction(1), bounds=(0.0, 4.0))
    for name in ("retime.greedy", "retime.pgd"):
        attack = registry("attacks").get(name)
        result = evaluate_shard(victim, attack, threat, x, torch.tensor([0]), torch.arange(1))
        assert int(result.status[0]) == 1, name
        assert result.x_adv[0, 3, 0, 0, 1] == 4.0 and result.x_adv[0, 0, 0, 0, 0] == 1.0


@pytest.mark.parametrize(("geometry", "eps", "least"), [("retime_linf", 1, 10), ("retime_l0", 80, 8)])
def test_pil_breaks_the_shipped_network_on_counts(geometry: str, eps: int, least: int) -> None:
    data = registry("datasets").get("digits_counts").first("validation", 10)
    victim = load_victim("lif_cnn.digits_counts")
    threat = ThreatModel(
        domain=Domain.EVENTS, geometry=geometry, eps=Fraction(eps), bounds=victim.spec.bounds
    )
    attack = registry("attacks").get("retime.pil")
    result = evaluate_shard(victim, attack, threat, data.x, data.y, data.ids)
    wrong = int((result.status == 2).sum())
    assert int((result.status == 1).sum()) >= least - wrong
