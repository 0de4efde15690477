"""SCG on images: the mean of ternary changes, behind a stochastic encoder and without one."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.pixels.scg_image import ScgImage
from robustspike.attacks.pixels.scg_image import TernaryMean
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Native
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import margin
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.victims.timing.encoders import Encoder


class Coder(nn.Module):
    """Bernoulli coding whose own gradient points the wrong way; SCG must not need it."""

    draws_noise = True
    noise: RowStreams | None = None

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        u = self.noise.uniform((self.steps, *x.shape[1:]), dtype=x.dtype).transpose(0, 1)
        return (u < x.detach()).to(x) - (x - x.detach())


class Net(nn.Module):
    def __init__(self, coder: nn.Module, gain: Tensor) -> None:
        super().__init__()
        self.coder, self.gain = coder, nn.Parameter(gain)

    def forward(self, x: Tensor) -> Tensor:
        rise = (self.coder(x).flatten(2) @ self.gain).mean(dim=0) - 1
        return torch.stack([torch.zeros_like(rise), rise], dim=1)


def victim(steps: int, gain: Tensor):
    return wrap(
        Net(Coder(steps), gain), name="coded", shape=(1, 2, 2), classes=2, steps=steps, stochastic=True
    )


def rule(n: int, scale: float = 1.0) -> TernaryMean:
    streams = RowStreams.derive(range(n), "image")
    return TernaryMean(Native(), streams, steps=4, scale=scale, gamma=0.05, norm="max", flipper="bernoulli")


def test_change_is_the_mean_over_time_and_stays_in_the_box() -> None:
    gain = torch.tensor([1.0, -0.5, 0.25, 0.0])
    n, x = 20_000, torch.tensor([0.3, 0.6, 0.5, 0.9])
    batch = x.view(1, 1, 2, 2).expand(n, 1, 2, 2)
    noise = RowStreams.derive(range(n), "noise")
    zeros = torch.zeros(n, dtype=torch.int64)
    out = victim(4, gain).loss_and_grad(batch, zeros, margin, rule(n), noise=noise)
    change = out.grad.flatten(1)
    assert float(change.abs().max()) <= 1
    assert set((change * 4).unique().tolist()) <= {-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0}
    # p (1 - x) where the gradient is positive, - p x where it is negative
    expected = torch.tensor([1.0 * 0.7, -0.5 * 0.6, 0.25 * 0.5, 0.0])
    assert torch.allclose(change.mean(dim=0), expected, atol=4 * 0.5 / (4 * n) ** 0.5)


def test_the_gradient_of_the_encoder_is_not_used() -> None:
    gain = torch.tensor([1.0, 1.0, -1.0, -1.0])
    x = torch.full((3, 1, 2, 2), 0.5)
    threat = ThreatModel(eps=Fraction(1, 2))
    attack = ScgImage(iterations=6)
    result = evaluate_shard(
        victim(8, gain), attack, threat, x, torch.zeros(3, dtype=torch.int64), torch.arange(3)
    )
    assert result.errors == []
    assert float(result.distance.max()) <= 0.5 + 1e-6
    assert result.status.tolist() == [1, 1, 1]


def test_straight_through_gradient_of_a_linear_poisson_victim_is_its_weight_for_every_draw() -> None:
    gain = torch.tensor([1.0, -0.5, 0.25, 0.0])
    coded = wrap(
        Net(Encoder("poisson", 4), gain), name="coded", shape=(1, 2, 2), classes=2, steps=4, stochastic=True
    )
    x = torch.tensor([0.3, 0.6, 0.5, 0.9]).view(1, 1, 2, 2).expand(2_500, 1, 2, 2)
    seen: list[Tensor] = []
    coded.module.coder.register_forward_hook(lambda _, __, spikes: seen.append(spikes.detach()))
    ones = torch.ones(len(x), dtype=torch.int64)
    noise = RowStreams.derive(range(len(x)), "draws")
    out = coded.loss_and_grad(x, ones, margin, Native(), noise=noise)
    assert torch.allclose(-out.grad.flatten(1), gain.expand(len(x), 4))
    draws = seen[-1].transpose(0, 1).flatten(0, 1).flatten(1)  # after the look for neurons
    assert len(draws) == 10_000
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    error = (draws.mean(dim=0) - x[0].flatten()).abs()
    assert bool((error < 4 * (x[0].flatten() * (1 - x[0].flatten()) / len(draws)).sqrt()).all())


def test_poisson_victim_falls_as_the_bound_grows() -> None:
    shipped = load_victim("poisson_cnn.digits")
    data = registry("datasets").get("digits").load("test")[:6]
    robust = []
    for eps in ("0", "1/4"):
        threat = ThreatModel(eps=Fraction(eps))
        result = evaluate_shard(shipped, ScgImage(iterations=8), threat, data.x, data.y, data.ids)
        assert result.errors == []
        robust.append(int((result.status == 0).sum()))
    assert robust[0] >= 5 and robust[1] <= 1


@pytest.mark.parametrize("name", ["nq_cnn.digits", "two_phase_cnn.digits", "fused_cnn.digits"])
def test_victims_whose_noise_is_no_encoder_are_attacked(name: str) -> None:
    data = registry("datasets").get("digits").load("test")[:6]
    threat = ThreatModel(eps=Fraction(1, 2))
    result = evaluate_shard(load_victim(name), ScgImage(iterations=6), threat, data.x, data.y, data.ids)
    assert result.errors == []
    assert int((result.status == 1).sum()) >= 3


@pytest.mark.parametrize(("defense", "encodes"), [("rate_smoothing", True), ("stog", False)])
def test_the_encoder_is_the_noise_that_answers_with_spikes(defense: str, encodes: bool, monkeypatch) -> None:
    plain = load_victim("lif_cnn.digits")
    module = registry("defenses").get(defense).transform(plain.module, plain.spec)
    shipped = ModuleVictim(module, replace(plain.spec, stochastic=True))
    data = registry("datasets").get("digits").load("test")[:3]
    seen = []
    own = TernaryMean._changes

    def changes(self: TernaryMean, grad: Tensor, spikes: Tensor, rows: Tensor) -> Tensor:
        seen.append(len(spikes))
        return own(self, grad, spikes, rows)

    monkeypatch.setattr(TernaryMean, "_changes", changes)
    threat = ThreatModel(eps=Fraction(1, 2))
    result = evaluate_shard(shipped, ScgImage(iterations=2, steps=9), threat, data.x, data.y, data.ids)
    assert result.errors == []
    assert seen == [plain.spec.steps if encodes else 9] * 2


def test_victim_without_an_encoder_gets_spikes_of_its_own() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[0.0] * 4, [1.0, -1.0, 0.5, 0.0]]))
    plain = wrap(module, name="plain", shape=(1, 2, 2), classes=2)
    x = torch.rand(5, 1, 2, 2, generator=generator("plain"))
    out = plain.loss_and_grad(x, torch.zeros(5, dtype=torch.int64), margin, rule(5))
    assert bool((out.grad.flatten(1)[:, 0] >= 0).all()) and bool((out.grad.flatten(1)[:, 1] <= 0).all())
    assert torch.equal(out.grad.flatten(1)[:, 3], torch.zeros(5))


def test_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match="rate"):
        ScgImage(rate=0.0)
