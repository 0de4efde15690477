"""NT: exact on linear scores, the l1 limit on smooth nets, running statistics, weight 0."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import Step
from robustspike.bench.api import Task
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import fit
from robustspike.bench.api import generator
from robustspike.bench.api import initialise
from robustspike.bench.api import reset
from robustspike.defenses.none import Undefended
from robustspike.defenses.nt import NormRegularization
from robustspike.defenses.nt import running_statistics
from robustspike.victims.quality.regressors import Lif
from robustspike.victims.quality.regressors import QualityRegressor

SPEC = VictimSpec(name="toy", shape=(6,), classes=1, task=Task.QUALITY, score_range=(0.0, 10.0))


def step_of(module: nn.Module, x: Tensor, y: Tensor) -> Step:
    def loss(net: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        out = net(inputs)
        return nn.functional.mse_loss(out.squeeze(1), labels), out

    return Step(module, x, y, generator("test"), 0, loss)


@pytest.mark.parametrize("h", [1e-3, 0.1, 2.0])
@pytest.mark.parametrize("p", [1, 2])
def test_linear_score_gives_its_l1_norm_for_every_h(h: float, p: int) -> None:
    net = nn.Sequential(nn.Linear(6, 1)).double()
    defense = NormRegularization(weight=1.0, h=h, p=p)
    defense.transform(net, SPEC)
    x = torch.rand(5, 6, dtype=torch.float64, generator=generator(1))
    norm = float(net[0].weight.detach().abs().sum()) / 10  # scores over their range
    expected = norm if p == 1 else norm**2 / 2
    found = float(defense.penalty(step_of(net, x, torch.zeros(5).double())).detach())
    assert found == pytest.approx(expected, rel=1e-9)


def test_smooth_net_is_within_ten_percent_of_the_gradient_norm() -> None:
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    initialise(net, generator("smooth"))
    defense = NormRegularization(weight=1.0, h=1e-3)
    defense.transform(net, SPEC)
    x = torch.rand(16, 6, dtype=torch.float64, generator=generator(2)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(x).sum() / 10, x)
    exact = float(gradient.abs().sum(dim=1).mean())
    found = float(defense.penalty(step_of(net, x.detach(), torch.zeros(16).double())).detach())
    assert found == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("target", ["score", "prob", "margin", "pair_prob", "loss"])
def test_classifiers_have_a_score_too(target: str) -> None:
    net = nn.Sequential(nn.Linear(6, 4)).double()
    x = torch.rand(8, 6, dtype=torch.float64, generator=generator(3)).requires_grad_(True)
    y = torch.arange(8) % 4
    defense = NormRegularization(weight=1.0, h=1e-5, target=target)
    step = step_of(net, x.detach(), y)
    logits = step.logits(x)
    (gradient,) = torch.autograd.grad(defense.score(step, logits)(logits).sum(), x)
    exact = float(gradient.abs().sum(dim=1).mean())
    assert float(defense.penalty(step).detach()) == pytest.approx(exact, rel=1e-3)


def test_penalty_leaves_running_statistics_alone_and_batch_mates_apart() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).double()
    initialise(net, generator("bn"))
    defense = NormRegularization(statistics="running")
    defense.transform(net, SPEC)
    x = torch.rand(8, 6, dtype=torch.float64, generator=generator(4))
    before = [buffer.clone() for buffer in net.buffers()]
    whole = float(defense.penalty(step_of(net, x, torch.zeros(8).double())).detach())
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    single = [float(defense.penalty(step_of(net, row[None], torch.zeros(1).double())).detach()) for row in x]
    assert whole == pytest.approx(sum(single) / 8, rel=1e-9)
    assert net[1].training
    with running_statistics(net):
        assert not net[1].training and net.training


@pytest.mark.parametrize("kind", ["cnn", "snn"])
def test_weight_zero_is_plain_training_and_a_weight_lowers_the_norm(kind: str) -> None:
    recipe = QualityRegressor(name="tiny", kind=kind, widths=(8, 8), steps=3)
    x = torch.rand(32, 3, 16, 16, generator=generator(5))
    data = Split(x, 100 * x.mean(dim=(1, 2, 3)).double(), torch.arange(32))
    schedule = Schedule(epochs=5, batch=8, keep="last")

    def trained(defense: NormRegularization | None) -> dict[str, Tensor]:
        net = recipe.build(generator("init", kind))
        if defense is not None:
            defense.transform(net, recipe.spec())
        fit(
            net,
            data,
            data,
            schedule=schedule,
            terms=(defense or Undefended()).terms,
            loss_of=recipe.loss,
            augment=recipe.augment,
            score=recipe.score,
            seed=0,
        )
        return net.state_dict()

    def norm(state: dict[str, Tensor]) -> float:
        net = recipe.build(generator("init", kind)).eval()
        net.load_state_dict(state)
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(net(leaf).sum(), leaf)
        return float(gradient.abs().sum())

    plain, zero, hard = (
        trained(None),
        trained(NormRegularization(weight=0)),
        trained(NormRegularization(weight=1, h=0.01)),
    )
    assert all(torch.equal(plain[key], zero[key]) for key in plain)
    assert norm(hard) < norm(plain)


def test_joint_penalty_is_the_slope_under_the_batchs_own_statistics() -> None:
    """Running statistics lag behind the weights, and a penalty on them can be had for nothing."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).double()
    initialise(net, generator("lagging"))
    x = torch.rand(32, 6, dtype=torch.float64, generator=generator(7))
    found = {}
    for lag in (0.0, 100.0):
        net[1].running_mean.fill_(lag)
        before = {name: buffer.clone() for name, buffer in net.named_buffers()}
        for statistics in ("running", "auto"):
            defense = NormRegularization(weight=1.0, h=1e-6, statistics=statistics)
            defense.transform(net, SPEC)
            penalty = defense.penalty(step_of(net, x, torch.zeros(32).double()))
            found[statistics, lag] = float(penalty.detach())
        assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
        assert net[1].momentum == 0.1 and net[1].training
    assert found["running", 100.0] == 0 < found["running", 0.0]
    assert found["auto", 100.0] == found["auto", 0.0]
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(leaf).sum() / 10, leaf)
    direction = gradient.sign()
    there, here = (
        net(torch.cat([x, x + 1e-6 * direction]))[rows] / 10 for rows in (slice(32, 64), slice(32))
    )
    assert found["auto", 0.0] == pytest.approx(float((there - here).abs().mean().detach()) / 1e-6, rel=1e-6)


@pytest.mark.parametrize("statistics", ["running", "joint"])
def test_a_spiking_score_is_penalised_by_its_true_difference_along_the_surrogates_sign(
    statistics: str,
) -> None:
    recipe = QualityRegressor(name="tiny", kind="snn", widths=(8, 8), steps=3)
    net = recipe.build(generator("init", "true difference"))
    x = torch.rand(8, 3, 16, 16, generator=generator(6))
    for norm in net.norms:
        norm.weight.data.fill_(4.0)  # enough for many spikes
    net.train()(x)  # running statistics of its own
    defense, h = NormRegularization(weight=1.0, h=0.1, share=0.5, statistics=statistics), 0.1
    defense.transform(net, recipe.spec())
    step = step_of(net, x, torch.zeros(8).double())
    found = float(defense.penalty(step).detach())
    joint = statistics == "joint"
    assert (step.forwards, step.backwards) == ((12, 16) if joint else (8, 12))
    net.train(joint)

    def score(shown: Tensor) -> Tensor:
        reset(net)
        return net(shown).squeeze(1)

    leaf = x[:4].clone().requires_grad_(True)
    here = score(leaf)
    (gradient,) = torch.autograd.grad(here.sum(), leaf)
    moved = leaf.detach() + h * gradient.sign()
    if joint:
        here, there = score(torch.cat([leaf.detach(), moved])).chunk(2)
    else:
        there = score(moved)
    assert found == pytest.approx(float((there - here).abs().mean().detach()) / h / 100, rel=1e-5)
    assert found > 0


@pytest.mark.parametrize("tau", [2.0, 1.5])
def test_training_computes_what_the_spiking_node_does(tau: float) -> None:
    layer = Lif(tau).train()
    x = torch.randn(4, 19, 3, 5, 5, generator=generator("lif")).mul(2).requires_grad_(True)
    weight = torch.randn(x.shape, generator=generator("weight"))
    fast, exact = layer(x), layer.node(x)
    assert 0 < float(fast.detach().mean()) < 1 and torch.equal(fast, exact)
    found, expected = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (fast, exact))
    if tau == 2:  # dividing by it is exact: bit for bit
        assert torch.equal(found, expected)
    assert torch.allclose(found, expected, atol=1e-6)


def test_wrong_parameters_are_refused() -> None:
    for wrong in ({"weight": -1.0}, {"h": 0.0}, {"p": 3}, {"target": "logit"}):
        with pytest.raises(ConfigError, match="nt:"):
            NormRegularization(**wrong)
