"""Certified accuracy: sound bounds, exact confidence, the right radius."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import certify
from robustspike.bench.api import evaluate
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.certify.interval_bounds import bounds_before_head
from robustspike.bench.certify.interval_bounds import lower_margins
from robustspike.bench.numbers.stats import clopper_pearson_lower

DATA = registry("datasets").get("digits").load("test")[:60]


def test_confidence_bound_is_exact() -> None:
    # All 100 votes: the bound solves p^100 = 0.001.
    assert clopper_pearson_lower(100, 100, error=0.001) == pytest.approx(0.001 ** (1 / 100), abs=1e-12)
    assert clopper_pearson_lower(1, 1, error=0.05) == pytest.approx(0.05, abs=1e-12)
    assert clopper_pearson_lower(0, 10, error=0.05) == 0.0
    bounds = [clopper_pearson_lower(k, 50, error=0.01) for k in range(51)]
    assert bounds == sorted(bounds)
    assert all(bound < k / 50 for k, bound in enumerate(bounds) if k)


def test_total_variation_of_bernoulli_encodings_is_below_t_times_l1() -> None:
    x, other, steps = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.25, 0.48, 0.88]), 2

    def probability(code: tuple[int, ...], p: Tensor) -> float:
        bits = torch.tensor(code, dtype=torch.float64).view(steps, 3)
        return float(torch.where(bits == 1, p.double(), 1 - p.double()).prod())

    codes = list(itertools.product((0, 1), repeat=3 * steps))
    distance = 0.5 * sum(abs(probability(c, x) - probability(c, other)) for c in codes)
    assert 0.05 < distance <= steps * float((x - other).abs().sum())


@pytest.mark.parametrize("name", ["lif_cnn.digits", "lif_cnn_soft.digits", "if_cnn.digits"])
@pytest.mark.parametrize("eps", [0.0, 0.005, 0.05])
def test_every_sampled_point_of_the_ball_stays_inside_the_bounds(name: str, eps: float) -> None:
    victim = load_victim(name)
    x, y = DATA.x[:8], DATA.y[:8]
    bounds, _ = bounds_before_head(victim, x, eps=eps)
    margins = lower_margins(victim, x, y, eps=eps)
    body = victim.module.body
    for draw in range(6):
        u = torch.rand(x.shape, generator=generator("ball", draw)) * 2 - 1
        corner = u.sign() if draw % 2 else u
        point = (x + eps * corner).clamp(0, 1)
        sequence = point.unsqueeze(0).expand(4, *x.shape)
        with torch.no_grad():
            for layer in list(body)[:-1]:
                sequence = layer(sequence)
        for layer in body:
            getattr(layer, "reset", lambda: None)()
        assert bool((sequence >= bounds.low - 1e-4).all() and (sequence <= bounds.high + 1e-4).all())
        logits = victim.logits(point).double()
        gap = logits.gather(1, y[:, None]) - logits
        assert bool((gap >= margins - 1e-3)[margins < torch.inf].all())
    if eps == 0:
        assert (
            torch.allclose(bounds.low, bounds.high, atol=1e-3)
            or float((bounds.low != bounds.high).double().mean()) < 1e-3
        )


def test_certified_accuracy_is_below_what_an_attack_leaves_and_falls_with_the_radius() -> None:
    victim = load_victim("lif_cnn.digits")
    radii = [Fraction(1, 1000), Fraction(1, 200), Fraction(1, 50)]
    found = certify(victim, DATA.x, DATA.y, method="intervals", radii=radii)
    counts = [found.count(r) for r in radii]
    assert found.correct >= counts[0] >= counts[1] >= counts[2]
    assert counts[0] > 0
    for radius, count in zip(radii, counts, strict=True):
        attacked = evaluate(victim, "pgd.linf", DATA.x, DATA.y, eps=radius)
        assert count <= attacked.robust


def smoothed(steps: int = 4) -> ModuleVictim:
    """A network of two pixels whose class is the brighter one, behind Bernoulli coding."""
    from robustspike.defenses.rate_smoothing import BernoulliCoding

    class Brighter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coding, self.steps = BernoulliCoding(steps), steps

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.coding(x.unsqueeze(0).expand(self.steps, *x.shape)).mean(0)
            return out

    from robustspike.bench.api import wrap

    return wrap(Brighter(), name="brighter", shape=(2,), classes=2, steps=steps, stochastic=True)


def test_smoothing_certifies_the_radius_of_the_confident_vote() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    y = torch.tensor([0, 1, 0, 1])
    found = certify(smoothed(), x, y, method="smoothing")
    sure = (clopper_pearson_lower(100, 100, error=0.001) - 0.5) / 4  # divided by T
    assert found.radius[:2].tolist() == pytest.approx([sure, sure])
    assert float(found.radius[3]) == -1.0  # sure of the wrong class
    assert certify(smoothed(), x, y, method="smoothing", votes=12).abstained == 1  # the tie
    assert found.count(0.0) >= 2 and found.count(0.2) == 0
    assert (found.norm, found.confidence) == ("l1", 0.999)
    again = certify(smoothed(), x, y, method="smoothing")
    assert torch.equal(found.radius, again.radius)


def test_method_that_cannot_certify_a_victim_says_so() -> None:
    with pytest.raises(ContractError, match="0 modules draw noise"):
        certify(load_victim("lif_cnn.digits"), DATA.x, DATA.y, method="smoothing")
    with pytest.raises(ContractError, match="not a deterministic"):
        certify(load_victim("qcfs_cnn.digits"), DATA.x, DATA.y, method="intervals", radii=[0.01])
    with pytest.raises(ContractError, match="plain LIF"):
        certify(load_victim("plif_cnn.digits"), DATA.x, DATA.y, method="intervals", radii=[0.01])
    with pytest.raises(ContractError, match="plain LIF"):  # its neurons have a scale of their own
        hardened = load_victim("lif_cnn.digits", defense="mppd")
        certify(hardened, DATA.x, DATA.y, method="intervals", radii=[0.01])
    with pytest.raises(ConfigError, match="error must be"):
        certify(smoothed(), torch.rand(1, 2), torch.tensor([0]), method="smoothing", error=1.0)
