"""A batch that is too large for one pass is cut by a rule that no machine changes, to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import estimator_nets as nets
import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import Domain
from robustspike.bench.api import LossGrad
from robustspike.bench.api import Memory
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import joint
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.probes import probe_gradient
from robustspike.bench.victim import module as victim_module
from robustspike.bench.victim.energy import count_synops
from robustspike.bench.victim.passes import PASS_BYTES
from robustspike.bench.victim.passes import peak_bytes
from robustspike.bench.victim.passes import rows_of
from robustspike.bench.victim.passes import whole_rows

Small = Callable[[ModuleVictim], ModuleVictim]


@pytest.fixture
def in_twos(monkeypatch: pytest.MonkeyPatch) -> Small:
    """Let a victim take two samples a pass."""

    def cut(victim: ModuleVictim) -> ModuleVictim:
        monkeypatch.setattr(victim_module, "NEVER_CUT", 0)
        victim.__dict__["sample_bytes"] = {False: PASS_BYTES // 2, True: PASS_BYTES // 2}
        return victim

    return cut


def gradients(victim: ModuleVictim, name: str, rows: Tensor, x: Tensor, y: Tensor) -> list[LossGrad]:
    """Return three gradients in turn, so that what an estimator remembers shows."""
    stores: list[dict[str, object]] = [{} for _ in victim.neurons]
    weights = torch.linspace(1, 2, len(rows), dtype=torch.float64)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:  # one that knows things of every row of its batch
        return cross_entropy(logits, labels) * weights

    found = []
    for step in range(3):
        memories = [Memory(rows=rows, n=len(x), store=store) for store in stores]
        moved = x[rows] * (1 - 0.1 * step) + 0.01 * torch.arange(len(rows)).view(-1, 1, 1, 1)
        rule = registry("estimators").get(name)
        found.append(victim.loss_and_grad(moved, y[rows], loss, rule, memories=memories))
    return found


@pytest.mark.parametrize(
    "name", ["native", "atan(alpha=5)", "pdsg", "assg", "assg(start=none)", "hart", "rga"]
)
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 0, 3, 1, 0, 3, 4]])
def test_a_cut_batch_gives_the_gradients_of_one_pass(name: str, rows: list[int], in_twos: Small) -> None:
    """In double precision, where no rounding moves a spike of these inputs."""
    x, y = nets.inputs(5, double=True)
    at = torch.tensor(rows)
    whole = gradients(nets.victim("lif-hard-decay", double=True), name, at, x, y)
    cut = gradients(in_twos(nets.victim("lif-hard-decay", double=True)), name, at, x, y)
    for one, other in zip(whole, cut, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)
        assert torch.allclose(one.loss, other.loss, rtol=1e-9, atol=1e-12)
        assert torch.allclose(one.logits, other.logits, rtol=1e-9, atol=1e-12)
        assert float(one.grad.abs().max()) > 0


def test_a_rule_that_pools_over_the_batch_is_never_cut(in_twos: Small) -> None:
    x, y = nets.inputs(5, double=True)
    everyone = torch.arange(5)
    whole = gradients(nets.victim("lif-hard", double=True), "pdsg(scope=batch)", everyone, x, y)
    cut = gradients(in_twos(nets.victim("lif-hard", double=True)), "pdsg(scope=batch)", everyone, x, y)
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(whole, cut, strict=True))


@pytest.mark.parametrize(
    "attack", ["pgd.linf(steps=3)", "square.linf(queries=12)", "pgd.linf(steps=2, estimator=assg)"]
)
def test_an_attack_on_a_cut_batch_ends_as_on_one_pass(attack: str, in_twos: Small) -> None:
    x, y = nets.inputs(7)
    threat = ThreatModel(eps=Fraction(1, 5), access=registry("attacks").get(attack).spec.access)
    results = []
    for victim in (nets.victim("lif-soft", double=True), in_twos(nets.victim("lif-soft", double=True))):
        y = victim.logits(x).argmax(dim=1)
        results.append(evaluate_shard(victim, registry("attacks").get(attack), threat, x, y, torch.arange(7)))
    whole, cut = results
    for name in ("status", "forwards", "backwards", "first_hit", "adv"):
        assert torch.equal(getattr(whole, name), getattr(cut, name)), name
    assert torch.allclose(whole.x_adv, cut.x_adv, atol=1e-6)
    assert whole.counts == cut.counts


def test_noise_belongs_to_samples_not_to_passes(in_twos: Small) -> None:
    victim = load_victim("poisson_cnn.digits")
    x = registry("datasets").get("digits").load("test").x[:5]
    streams = RowStreams.derive(range(5), "draws")
    first, again = victim.logits(x, noise=streams), victim.logits(x, noise=streams)
    in_twos(victim)
    streams = RowStreams.derive(range(5), "draws")
    assert torch.allclose(victim.logits(x, noise=streams), first, atol=1e-5)
    assert torch.allclose(victim.logits(x, noise=streams), again, atol=1e-5)  # they go on where they stood
    assert not torch.allclose(first, again, atol=1e-3)


def test_energy_and_probes_are_those_of_one_pass(in_twos: Small) -> None:
    x, y = nets.inputs(5, double=True)
    victim = nets.victim("if-hard", double=True)
    whole, probed = count_synops(victim, x), probe_gradient(victim, x, y, RowStreams.derive(range(5)))
    cut = in_twos(victim)
    assert torch.equal(count_synops(cut, x).ac, whole.ac)
    assert count_synops(cut, x).rates == whole.rates
    assert probe_gradient(cut, x, y, RowStreams.derive(range(5))) == probed
    assert probed["layer_probed"] == 5


def test_a_joint_victim_is_cut_as_one(in_twos: Small) -> None:
    x, y = nets.inputs(5, double=True)
    pair = joint(nets.victim("if-hard", double=True), nets.victim("lif-soft", double=True))
    rule = registry("estimators").get("native")

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels)

    whole = pair.loss_and_grad(x, y, loss, rule)
    assert torch.allclose(in_twos(pair).loss_and_grad(x, y, loss, rule).grad, whole.grad, atol=1e-12)


class Wide(nn.Module):
    """Holds one tensor of `floats` numbers a sample, for the gradient too."""

    def __init__(self, floats: int) -> None:
        super().__init__()
        self.floats = floats
        self.most = 0
        self.weight = nn.Parameter(torch.ones(1 << 16, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.most = max(self.most, len(x))
        held = x.flatten(1).mean(dim=1, keepdim=True).expand(-1, self.floats).exp()
        return torch.stack([held.mean(dim=1), x.flatten(1)[:, 0]], dim=1)


def wide(floats: int, side: int = 64) -> ModuleVictim:
    return wrap(Wide(floats), name="wide", shape=(1, side, side), classes=2, domain=Domain.STATIC)


def test_what_a_sample_takes_is_counted_in_tensors() -> None:
    """Whole storages, views of them and of the parameters once; what was freed no more."""
    x = torch.ones(1000)
    assert peak_bytes(lambda: x.exp().view(10, 100).t()) == 4000
    assert peak_bytes(lambda: [x.exp().sum() for _ in range(5)]) <= 4000 + 2 * 4 + 4000
    assert peak_bytes(lambda: x.view(10, 100), known=[x]) == 0
    small, large = wide(1 << 10).sample_bytes, wide(1 << 18).sample_bytes
    assert 1 << 20 <= large[True] <= 4 << 20
    assert small[True] < large[True] // 10
    assert large[False] <= large[True]


def test_the_rows_of_a_pass_lie_on_a_grid_and_are_at_least_one() -> None:
    assert rows_of(PASS_BYTES // 128) == rows_of(PASS_BYTES // 129) == 128
    assert rows_of(PASS_BYTES // 128 + 1) == rows_of(PASS_BYTES // 64) == 64
    assert rows_of(100 * PASS_BYTES) == 1


def test_no_pass_has_more_samples_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = wide(1 << 16)
    monkeypatch.setattr("robustspike.bench.victim.passes.PASS_BYTES", 1 << 20)
    rows = victim.rows_at_once(gradient=True)
    assert rows in (1, 2)
    x = torch.rand(40, 1, 64, 64)
    victim.logits(x)
    assert isinstance(victim.module, Wide)
    assert victim.module.most <= victim.rows_at_once(gradient=False) < 40
    assert not victim.neurons  # which a look at two samples finds out
    victim.module.most = 0
    victim.loss_and_grad(x, torch.zeros(40).long(), cross_entropy, registry("estimators").get("native"))
    assert victim.module.most == rows
    assert victim.cut(40) == {"gradient": rows, "forward": victim.rows_at_once(gradient=False)}


def test_shipped_networks_answer_a_shard_of_any_shipped_suite_in_one_pass() -> None:
    for name in ("lif_cnn.digits", "lif_cnn.cifar10", "lif_cnn.digits_events", "snn_iqa.photopatch"):
        assert load_victim(name).cut(125) == {}


def test_candidates_of_a_sample_share_a_pass() -> None:
    rows = torch.tensor([4, 1, 4, 0, 1, 4, 2])
    found = whole_rows(rows, 3)
    assert [part.tolist() for part in found] == [[3, 1, 4], [6], [0, 2, 5]]
    assert [part.tolist() for part in whole_rows(rows, 1)] == [[3], [1, 4], [6], [0, 2, 5]]
