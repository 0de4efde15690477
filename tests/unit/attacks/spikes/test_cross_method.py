"""What must hold across all attacks on spikes: true minima, cut gradients, rates, accounts, ranking."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from tiny_spike_victims import Rate
from tiny_spike_victims import frames
from tiny_spike_victims import judge
from tiny_spike_victims import threat
from tiny_spike_victims import victim as small
from torch import Tensor
from torch import nn

from robustspike.attacks.spikes.dvs_patterns import Dash
from robustspike.attacks.spikes.dvs_sparse import DvsSparse
from robustspike.attacks.spikes.flip_greedy import GreedyFlips
from robustspike.attacks.spikes.gumbel import Gumbel
from robustspike.attacks.spikes.pointwise import Pointwise
from robustspike.attacks.spikes.random_changes import RandomFlips
from robustspike.attacks.spikes.random_changes import RandomRetiming
from robustspike.attacks.spikes.reduced import Reduced
from robustspike.attacks.spikes.refine import Refined
from robustspike.attacks.spikes.scar import Scar
from robustspike.attacks.spikes.scg import Scg
from robustspike.attacks.spikes.sda import Sda
from robustspike.attacks.spikes.sda import SdaGreedy
from robustspike.attacks.spikes.sparse_rs import SparseRs
from robustspike.attacks.spikes.spike_pgd import BernoulliPgd
from robustspike.attacks.spikes.spike_pgd import RoundedPgd
from robustspike.attacks.spikes.spikefool import SpikeFool
from robustspike.attacks.timing.retime_greedy import RetimeGreedy
from robustspike.attacks.timing.retime_pgd import RetimePgd
from robustspike.attacks.timing.retime_pil import RetimePil
from robustspike.attacks.timing.timestamp_pgd import TimestampPgd
from robustspike.bench.api import Attack
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ShardResult
from robustspike.bench.api import SpikeRule
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.fitting import refused_gradient
from robustspike.bench.attack.saving import sample_records
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import count
from robustspike.leaderboard.sections import build
from tests.support.records import make_record

WHITE: dict[str, Attack] = {
    "sda": Sda(estimator="native"),
    "sda_greedy": SdaGreedy(estimator="native"),
    "refined sda": Refined(attack=SdaGreedy(estimator="native"), pool=64, estimator="native"),
    "scg": Scg(iterations=20, scales=(1.0, 0.1)),
    "spikefool": SpikeFool(),
    "bernoulli_pgd": BernoulliPgd(steps=6, draws=3),
    "rounded_pgd": RoundedPgd(steps=10),
    "gumbel": Gumbel(steps=20),
    "dvs_sparse": DvsSparse(),
}
BLACK: dict[str, Attack] = {
    "random": RandomFlips(restarts=20),
    "reduced random": Reduced(attack="flip.random"),
    "greedy": GreedyFlips(pool=0),
    "scar": Scar(pool=64),
    "sparse_rs": SparseRs(queries=100, start=8),
    "pointwise": Pointwise(restarts=2),
    "dash": Dash(),
}
FLIPS = WHITE | BLACK
SHAPE = (4, 1, 4, 4)


@dataclass(frozen=True)
class Scene:
    """A spiking victim of 64 cells, inputs, and the true smallest number of flips (3: more than 2)."""

    victim: ModuleVictim
    x: Tensor
    smallest: Tensor


def smallest_flips(victim: ModuleVictim, x: Tensor) -> int:
    """Try every set of one and of two flips; 3 where none works."""
    y = int(victim.logits(x[None]).argmax())
    for size in (1, 2):
        sets = torch.tensor(list(itertools.combinations(range(x.numel()), size)))
        tried = x.flatten().repeat(len(sets), 1)
        tried.scatter_(1, sets, 1 - tried.gather(1, sets))
        if bool((victim.logits(tried.view(-1, *x.shape)).argmax(dim=1) != y).any()):
            return size
    return 3


@pytest.fixture(scope="module")
def scene_cache() -> dict[str, Scene]:
    return {}


@pytest.fixture
def scene(scene_cache: dict[str, Scene], toys: SimpleNamespace, grid: Callable[..., Tensor]) -> Scene:
    if not scene_cache:
        victim = toys.spiking(SHAPE, classes=3, seed=2)
        x = grid(16, SHAPE, rate=0.3)
        with torch.no_grad():
            smallest = torch.tensor([smallest_flips(victim, x[i]) for i in range(16)])
        scene_cache["one"] = Scene(victim, x, smallest)
    return scene_cache["one"]


@pytest.mark.parametrize("name", FLIPS)
def test_no_attack_is_below_the_exhaustive_minimum_on_64_cells(
    scene: Scene, attacked: Callable[..., ShardResult], name: str
) -> None:
    known = scene.smallest < 3
    assert int(known.sum()) >= 12 and bool((scene.smallest == 2).any())
    result = attacked(scene.victim, FLIPS[name], scene.x)
    broken = result.status == 1
    assert result.errors == []
    assert bool((result.distance[broken] >= scene.smallest[broken]).all())
    share = float((broken & (result.distance == scene.smallest))[known].double().mean())
    if name in ("refined sda", "greedy"):
        assert share >= 0.9, share


class Cut(SpikeRule):
    """Spikes without a surrogate: the slope is zero everywhere."""

    def slope(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


def masked(victim: ModuleVictim) -> ModuleVictim:
    for found in victim.neurons:
        found.module.surrogate_function = Cut()
    return victim


@pytest.mark.parametrize("name", FLIPS)
def test_a_cut_surrogate_ends_no_attack_and_stops_no_control(
    toys: SimpleNamespace, grid: Callable[..., Tensor], attacked: Callable[..., ShardResult], name: str
) -> None:
    victim = masked(toys.spiking(SHAPE, classes=3, seed=2))
    result = attacked(victim, FLIPS[name], grid(8, SHAPE, rate=0.3))
    assert result.errors == []
    assert result.counts["zero_gradients"] == result.counts["gradients"]
    broken = int((result.status == 1).sum())
    if name in ("sda", "sda_greedy", "refined sda", "scg", "spikefool"):
        assert broken >= 6  # random flips take the place of the gradient
    if name in BLACK and name != "dash":
        assert broken >= 6


RETIMING: list[tuple[Attack, str, int]] = [
    (RandomRetiming(restarts=20), "retime_linf", 3),
    (RetimePil(steps=6), "retime_linf", 2),
    (RetimeGreedy(rounds=3), "retime_l0", 40),
    (RetimePgd(steps=6), "retime_l1", 60),
    (TimestampPgd(steps=6), "retime_linf", 3),
    (Pointwise(restarts=1), "retime_l0", 1000),
]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    x: Tensor = registry("datasets").get("digits_events").load("test").x[:4]
    return x


@pytest.mark.parametrize(
    ("attack", "geometry", "eps"), RETIMING, ids=lambda v: getattr(v, "spec", v) and str(v)
)
def test_the_shipped_rate_only_victim_is_immune_to_timing_exactly(
    digits: Tensor, attack: Attack, geometry: str, eps: int
) -> None:
    result = judge(load_victim("rate_only.digits_events"), attack, digits, geometry=geometry, eps=eps)
    assert (result.status == 0).all()
    assert torch.equal(result.x_adv, digits)
    victim = load_victim("rate_only.digits_events")
    shape = registry("geometries").get(geometry)
    rng = RowStreams.derive(range(4), "moved")
    moved = shape.sample(digits, eps=float(eps), bounds=(0.0, 1.0), rng=rng, rows=torch.arange(4))
    assert not torch.equal(moved, digits)
    with torch.no_grad():
        assert torch.equal(victim.logits(moved), victim.logits(digits))


@pytest.mark.parametrize(
    "name", ["sda", "scg", "spikefool", "rounded_pgd", "greedy", "sparse_rs", "pointwise"]
)
def test_flips_break_a_victim_that_sees_rates_alone(name: str) -> None:
    result = judge(small(Rate(), classes=3), FLIPS[name], frames(12, seed=3))
    assert int((result.status == 1).sum()) >= 8


class Counting(nn.Module):
    """Counts the rows that pass, forwards and backwards, whoever asks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen = [0, 0]

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0] += len(x)
        if x.requires_grad:
            x.register_hook(self.back)
        out: Tensor = self.inner(x)
        return out

    def back(self, grad: Tensor) -> None:
        self.seen[1] += len(grad)


@dataclass(frozen=True)
class Nothing:
    """Asks nothing, so that what remains is what the harness itself spends."""

    spec: ClassVar[AttackSpec] = AttackSpec(
        name="nothing", geometries=("l0",), domains=(Domain.SPIKES,), minimum_norm=True, source="test"
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        return x0


@pytest.mark.parametrize("name", FLIPS)
def test_every_pass_through_the_network_is_on_the_bill(
    toys: SimpleNamespace, grid: Callable[..., Tensor], name: str
) -> None:
    module = Counting(toys.linear(SHAPE, classes=3, seed=2).module)
    victim = wrap(module, name="counting", shape=SHAPE, classes=3, steps=4, domain=Domain.SPIKES, copy=False)
    x, attack = grid(5, SHAPE, dtype=torch.float32), FLIPS[name]
    assert victim.neurons and refused_gradient(attack, victim) is None  # once a victim, and not on a bill
    y = victim.logits(x).argmax(dim=1)

    def spent(chosen: Attack) -> tuple[list[int], ShardResult]:
        module.seen = [0, 0]
        result = evaluate_shard(victim, chosen, threat(attack), x, y, torch.arange(5))
        assert result.errors == []
        return module.seen, result

    (own_forwards, own_backwards), _ = spent(Nothing())
    (forwards, backwards), result = spent(attack)
    again = forwards - own_forwards - int(result.forwards.sum())
    assert again in (0, len(x))  # the harness's own: where the best input seen is not the returned one
    assert int(result.forwards.sum()) > 0
    assert int(result.backwards.sum()) == backwards - own_backwards
    assert (int(result.backwards.sum()) > 0) == (name in WHITE)


def flags_at(victim: ModuleVictim, x: Tensor, eps: int) -> set[str]:
    """Attack a victim as a small suite at one budget would; return the flags of its row."""
    y = victim.logits(x).argmax(dim=1)
    records: list[CellRecord] = []
    controls: list[Attack] = [RandomFlips(restarts=20), SparseRs(queries=150)]
    for attack in [RoundedPgd(steps=20), BernoulliPgd(steps=8, draws=2), *controls]:
        model = threat(attack, "l0", eps)
        shard = evaluate_shard(victim, attack, model, x, y, torch.arange(len(x)))
        rows = tuple(sample_records(shard))
        base = make_record("r" * len(x), victim="v", attack=attack.spec.name)
        records.append(replace(base, rows=rows, counts=count(rows), threat=model, measures=shard.counts))
    (section,) = build(records)
    return set(str(section.frame["flags"].iloc[0]).split())


def test_controls_beat_the_gradients_of_a_masked_victim_alone_and_that_is_flagged(
    toys: SimpleNamespace, grid: Callable[..., Tensor]
) -> None:
    shape = (8, 2, 8, 8)
    x = grid(20, shape)
    # Rounded PGD returns its last iterate, as published: what it lost on the way counts, and is named.
    assert flags_at(toys.spiking(shape, classes=3, seed=3), x, eps=16) == {"silent_success"}
    found = flags_at(masked(toys.spiking(shape, classes=3, seed=3)), x, eps=16)
    assert {"black_box_beats_white_box", "zero_gradient"} <= found
