"""Compressed victims: integers are integers, projections project, and ADMM ends in its set."""

from __future__ import annotations

import pytest
import torch

from robustspike.bench.api import find_neurons
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import reset
from robustspike.victims.compressed.admm import Multipliers
from robustspike.victims.compressed.admm import SpikeRates
from robustspike.victims.compressed.admm import compressible
from robustspike.victims.compressed.int8 import Int8Weight
from robustspike.victims.compressed.int8 import RoundedError
from robustspike.victims.compressed.integer import IntegerConv
from robustspike.victims.compressed.integer import IntegerLinear
from robustspike.victims.compressed.integer import ShiftNorm
from robustspike.victims.compressed.rounding import prune
from robustspike.victims.compressed.rounding import quantise

TEST = registry("datasets").get("digits").load("test")


def test_integer_net_computes_with_integers_of_its_width_only() -> None:
    net = load_victim("integer_cnn.digits").module
    seen: list[torch.Tensor] = []
    for child in net.modules():
        if isinstance(child, IntegerConv | IntegerLinear | ShiftNorm):
            child.register_forward_hook(lambda m, i, out: seen.extend([i[0], out]))
        if isinstance(child, IntegerConv | IntegerLinear):
            assert torch.equal(child.integers(), child.integers().round())
            assert float(child.integers().abs().max()) <= 7
    with torch.no_grad():
        logits = net(TEST.x[:100])
    assert all(torch.equal(value, value.round()) for value in seen) and len(seen) == 12
    assert float(logits.min()) >= -7 and float(logits.max()) <= 7
    for norm in net.modules():
        if isinstance(norm, ShiftNorm):
            assert (norm.low, norm.high) in ((0, 15), (-7, 7))


def test_integer_twin_gives_the_logits_before_they_saturate() -> None:
    net = load_victim("integer_cnn.digits").module
    with torch.no_grad():
        exact, logits = net.twin(TEST.x), net(TEST.x)
    assert torch.equal(exact.floor().clamp(-7, 7), logits)
    ties = (logits == logits.amax(dim=1, keepdim=True)).sum(dim=1) > 1
    exact_ties = (exact == exact.amax(dim=1, keepdim=True)).sum(dim=1) > 1
    assert int(ties.sum()) > 0 and int(exact_ties.sum()) < int(ties.sum())


def test_prune_keeps_the_largest_and_quantise_is_a_projection_on_few_levels() -> None:
    w = torch.randn(40, 25, generator=generator("w"))
    pruned = prune(w, 0.1)
    assert int((pruned != 0).sum()) == 100
    assert float(pruned[pruned != 0].abs().min()) >= float(w[pruned == 0].abs().max())
    for bits, most in ((1, 2), (2, 3), (4, 15)):
        q = quantise(w, bits)
        assert q.unique().numel() <= most
        assert float((w - q).norm() / w.norm()) < {1: 0.7, 2: 0.6, 4: 0.2}[bits]
    assert torch.equal(quantise(pruned, 4) != 0, (quantise(pruned, 4) != 0) & (pruned != 0))
    assert quantise(pruned, 1).unique().numel() == 3  # zeros stay zero


def test_admm_brings_weights_into_the_set_on_a_quadratic() -> None:
    target = torch.randn(50, generator=generator("t"))
    w = torch.nn.Parameter(target.clone())
    multipliers = Multipliers([w], lambda v: prune(v, 0.2))
    optimiser = torch.optim.SGD([w], lr=0.1)
    before = multipliers.gap()
    for epoch in range(24):
        for _ in range(8):
            loss = 0.5 * (w - target).square().sum() + multipliers.penalty()
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"] = 1 / (2 + multipliers.rho)
            optimiser.step()
        multipliers.update(epoch)
    assert before > 0.3 and multipliers.gap() < 0.05


@pytest.mark.parametrize(("name", "keep", "levels"), [("pruned", 0.25, None), ("quant", 0.5, 15)])
def test_admm_victims_ship_in_their_set(name: str, keep: float, levels: int | None) -> None:
    for w in compressible(load_victim(f"admm_{name}_cnn.digits").module):
        assert float((w != 0).float().mean()) <= keep + 1e-3
        assert levels is None or w.unique().numel() <= levels


def test_activity_regulariser_lowers_the_firing_rate_it_reports() -> None:
    net = registry("victims").get("lif_cnn.digits").build(generator("activity"))
    rates = SpikeRates(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=5.0)
    seen = []
    for _ in range(8):
        reset(net)
        net(TEST.x[:32])
        reset(net)
        loss = rates.mean()
        seen.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    rates.close()
    with torch.no_grad():
        net(TEST.x[:32])
    assert seen[-1] < 0.8 * seen[0] and rates.rates == []


def test_int8_weights_have_255_levels_with_a_power_of_two_step() -> None:
    w = torch.randn(64, 64, generator=generator("w"))
    rounded = Int8Weight()(w)
    step = rounded.abs()[rounded != 0].min()
    assert float(step.log2()) == round(float(step.log2()))
    assert torch.equal((rounded / step).round(), rounded / step)
    assert float((rounded - w).abs().max()) <= float(step)


def test_error_rounding_acts_in_training_and_not_on_attacks() -> None:
    layer = RoundedError()
    x = torch.randn(1000, generator=generator("x")).requires_grad_(True)
    weights = torch.randn(1000, generator=generator("g"))
    (exact,) = torch.autograd.grad((layer.eval()(x) * weights).sum(), x)
    (rounded,) = torch.autograd.grad((layer.train()(x) * weights).sum(), x)
    assert torch.equal(exact, weights)
    assert rounded.unique().numel() <= 255 and 0 < float((rounded - weights).abs().max()) < 0.05


def test_hybrid_computes_its_analog_part_once_and_spikes_after_it() -> None:
    victim = load_victim("hybrid_cnn.digits")
    calls: list[torch.Size] = []
    victim.module.stem.register_forward_hook(lambda m, i, out: calls.append(out.shape))
    with torch.no_grad():
        victim.logits(TEST.x[:5])
    assert calls == [torch.Size([5, 16, 4, 4])]
    assert len(find_neurons(victim.module)) == 1
