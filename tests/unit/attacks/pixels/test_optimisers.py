"""Gradient optimisers: schedules, equivalences, guards, compaction, EOT."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.pixels.apgd import ApgdCe
from robustspike.attacks.pixels.apgd import ApgdDlr
from robustspike.attacks.pixels.apgd import ApgdTargeted
from robustspike.attacks.pixels.apgd import checkpoints
from robustspike.attacks.pixels.bim import Bim
from robustspike.attacks.pixels.fgsm import Fgsm
from robustspike.attacks.pixels.mifgsm import MiFgsm
from robustspike.attacks.pixels.pgd import Pgd
from robustspike.attacks.pixels.pgd_l2 import PgdL2
from robustspike.attacks.pixels.rfgsm import Rfgsm
from robustspike.bench.api import Attack
from robustspike.bench.api import Budget
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import Status
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import wrap
from robustspike.bench.attack.meter import Meter

GRADIENT_ATTACKS: list[Attack] = [
    Fgsm(),
    Rfgsm(),
    Bim(),
    Pgd(),
    MiFgsm(),
    PgdL2(),
    ApgdCe(steps=20),
    ApgdDlr(steps=20),
    ApgdTargeted(steps=10, targets=2),
]


class Flat(nn.Module):
    """Wrap a function of flat inputs."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1))


def fill(module: nn.Module, seed: int) -> nn.Module:
    for i, p in enumerate(module.parameters()):
        draws = RowStreams.derive([i], "weights", seed).normal(tuple(p.shape))[0]
        p.data.copy_(draws * (0.5 if p.dim() > 1 else 0.1))
    return module


def smooth(seed: int = 0, classes: int = 4) -> ModuleVictim:
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, classes))
    return wrap(Flat(fill(net, seed)), name="smooth", shape=(1, 3, 4), classes=classes)


def linear(seed: int = 0, classes: int = 4) -> ModuleVictim:
    return wrap(Flat(fill(nn.Linear(12, classes), seed)), name="linear", shape=(1, 3, 4), classes=classes)


class NoisyMean(nn.Module):
    """A stochastic victim: a linear map of x + noise; its mean gradient is the plain one."""

    draws_noise = True

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.noise: RowStreams | None = None
        self.body = fill(nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)), 0)

    def forward(self, x: Tensor) -> Tensor:
        assert self.noise is not None
        return self.body(x.flatten(1) + self.sigma * self.noise.normal((12,)))


def noisy(sigma: float = 0.5) -> ModuleVictim:
    return wrap(NoisyMean(sigma), name="noisy", shape=(1, 3, 4), classes=4, stochastic=True)


def batch(victim: ModuleVictim, n: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = RowStreams.derive(range(n), "x", seed).uniform(victim.spec.shape)
    noise = RowStreams.derive(range(n), "label") if victim.spec.stochastic else None
    return x, victim.logits(x, noise=noise).argmax(dim=1)


def threat_for(attack: Attack, eps: str | None = "1/10", **changes: object) -> ThreatModel:
    made = ThreatModel(
        geometry=attack.spec.geometries[0],
        eps=None if eps is None else Fraction(eps),
        access=attack.spec.access,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def engine(
    victim: ModuleVictim, x: Tensor, y: Tensor, threat: ThreatModel, *, keeps_going: bool = False
) -> Meter:
    return Meter(
        victim,
        threat,
        registry("geometries").get(threat.geometry),
        x,
        y,
        noise=RowStreams.derive(range(len(x)), "noise"),
        clean=torch.zeros(len(x), victim.spec.classes),
        estimators=registry("estimators").get,
        targets=(y + 1) % victim.spec.classes if threat.goal is Goal.TARGETED else None,
        keeps_going=keeps_going,
    )


def streams(n: int) -> RowStreams:
    return RowStreams.derive(range(n), "rng")


def walk(attack: Attack, victim: ModuleVictim, eps: str = "1/10") -> Tensor:
    """What an attack returns when no sample leaves the batch."""
    x, y = batch(victim)
    meter = engine(victim, x, y, threat_for(attack, eps), keeps_going=True)
    return attack.run(Oracle(meter), x, y, rng=streams(len(x)))


def test_one_step_pgd_without_a_random_start_is_fgsm() -> None:
    one = Pgd(steps=1, step=1.0, random_start=False)
    assert torch.equal(walk(one, smooth()), walk(Fgsm(), smooth()))
    assert not torch.equal(walk(one, smooth()), batch(smooth())[0])


def test_bim_is_pgd_without_a_random_start() -> None:
    steps, step = 7, 1 / 64
    bim = walk(Bim(steps=steps, step=step), smooth(), "1/16")
    assert torch.equal(bim, walk(Pgd(steps=steps, step=16 * step, random_start=False), smooth(), "1/16"))


@pytest.mark.parametrize(
    ("eps", "steps"), [("8/255", 10), ("2/255", 2), ("1/255", 1), ("16/255", 20), ("1/10", 29)]
)
def test_bim_takes_the_number_of_steps_of_the_rule(eps: str, steps: int) -> None:
    assert Bim().iterations(float(Fraction(eps))) == steps


def test_mifgsm_without_a_past_is_bim() -> None:
    mi = walk(MiFgsm(steps=6, step=0.25, decay=0.0), smooth(), "1/16")
    assert torch.equal(mi, walk(Pgd(steps=6, step=0.25, random_start=False), smooth(), "1/16"))


def test_mifgsm_averages_over_every_axis_of_a_sample_and_no_other() -> None:
    """Event frames [T, C, H, W]: a batch mate with a huge gradient must change nothing."""
    victim = wrap(Flat(fill(nn.Linear(24, 3), 1)), name="v", shape=(2, 1, 3, 4), classes=3)
    x, y = batch(victim, 8)
    attack = MiFgsm(steps=3)
    together = engine(victim, x, y, threat_for(attack), keeps_going=True)
    all_rows = attack.run(Oracle(together), x, y, rng=streams(8))
    for i in range(8):
        alone = engine(victim, x[i : i + 1], y[i : i + 1], threat_for(attack), keeps_going=True)
        one = attack.run(Oracle(alone), x[i : i + 1], y[i : i + 1], rng=streams(1))
        assert torch.allclose(one[0], all_rows[i], atol=1e-6)


class HalfDead(nn.Module):
    """Samples whose first pixel is below 1/2 have logits that do not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = fill(nn.Linear(12, 4), 0)

    def forward(self, x: Tensor) -> Tensor:
        alive = (x.flatten(1)[:, :1] >= 0.5).to(x.dtype)
        return self.body(x.flatten(1) * alive)


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS, ids=lambda a: a.spec.name)
def test_zero_gradients_leave_a_sample_finite_and_do_not_stop_its_mates(attack: Attack) -> None:
    victim = wrap(HalfDead(), name="half", shape=(1, 3, 4), classes=4)
    x, _ = batch(victim)
    x[::2, 0, 0, 0], x[1::2, 0, 0, 0] = 0.1, 0.9
    y = victim.logits(x).argmax(dim=1)
    result = evaluate_shard(victim, attack, threat_for(attack, "39/100"), x, y, torch.arange(len(x)))
    assert result.errors == []
    assert result.counts["zero_gradients"] > 0
    assert (result.status[::2] == 0).all(), "a constant sample cannot be broken"
    assert (result.status[1::2] == 1).any(), "its mates are attacked"


@pytest.mark.parametrize(
    "module", [Pgd(random_start=False, steps=6, step=0.1), PgdL2(random_start=False, steps=6, step=0.1)]
)
def test_loss_never_falls_on_a_linear_victim_of_two_classes(module: Attack) -> None:
    victim = linear(classes=2)
    x, y = batch(victim)
    meter = engine(victim, x, y, threat_for(module, "1/4"), keeps_going=True)
    seen: list[Tensor] = []
    original = victim.loss_and_grad

    def spy(*args: object, **kwargs: object) -> object:
        out = original(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(out.loss)
        return out

    victim.loss_and_grad = spy  # type: ignore[method-assign, assignment]
    module.run(Oracle(meter), x, y, rng=streams(len(x)))
    assert len(seen) == 6
    for before, after in itertools.pairwise(seen):
        assert (after >= before - 1e-6).all()


def test_checkpoints_of_the_official_schedule() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10)[:3] == [2, 3, 4]
    assert checkpoints(1) == [1]


def reference_apgd(
    victim: ModuleVictim, x0: Tensor, y: Tensor, x: Tensor, *, eps: float, steps: int
) -> Tensor:
    """One sample at a time, written from the paper: no compaction, no vectors of state."""
    best_of = []
    for i in range(len(x0)):
        clean, point, label = x0[i : i + 1], x[i : i + 1].clone(), y[i : i + 1]

        def look(at: Tensor, label: Tensor = label) -> tuple[float, Tensor]:
            at = at.clone().requires_grad_(True)
            loss = nn.functional.cross_entropy(victim.module(at), label)
            return float(loss.detach()), torch.autograd.grad(loss, at)[0]

        def cut(at: Tensor, clean: Tensor = clean) -> Tensor:
            return torch.minimum(torch.maximum(at, clean - eps), clean + eps).clamp(0, 1)

        value, gradient = look(point)
        best, top, best_gradient = point.clone(), value, gradient
        history, tops, old, size, reduced_last, last = [value], [top], point.clone(), 2 * eps, True, 0
        for k in range(1, steps + 1):
            z = cut(point + size * gradient.sign())
            share = 1.0 if k == 1 else 0.75
            new = cut(point + share * (z - point) + (1 - share) * (point - old))
            old, point = point, new
            value, gradient = look(point)
            history.append(value)
            if value > top:
                best, top, best_gradient = point.clone(), value, gradient
            tops.append(top)
            if k in checkpoints(steps):
                rising = sum(history[j] > history[j - 1] for j in range(last + 1, k + 1))
                stalled = rising <= 0.75 * (k - last) or (not reduced_last and tops[last] >= top)
                reduced_last, last = stalled, k
                if stalled:
                    size, point, gradient = size / 2, best, best_gradient
        best_of.append(best)
    return torch.cat(best_of)


def test_apgd_with_per_row_state_follows_the_sample_by_sample_algorithm() -> None:
    from robustspike.attacks.pixels.apgd import climb
    from robustspike.attacks.pixels.apgd import surface

    victim = smooth()
    x, y = batch(victim)
    x = x.double()  # in float32 the last bit of a batched product can turn the sign of a step
    victim.module.double()
    meter = engine(victim, x, y, threat_for(ApgdCe()), keeps_going=True)
    oracle = Oracle(meter)
    first = surface(oracle, x, rng=streams(len(x)))
    expected = reference_apgd(victim, x, y, first, eps=0.1, steps=30)
    found, top = climb(
        oracle, first.clone(), steps=30, loss_of=lambda rows: "ce", estimator="native", draws=1
    )
    loss = nn.functional.cross_entropy(victim.logits(found), y, reduction="none")
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(loss, top, atol=1e-6), "the best iterate is the one returned"


def test_apgd_starts_on_the_surface_of_the_ball() -> None:
    from robustspike.attacks.pixels.apgd import surface

    victim = smooth()
    x = torch.full((6, 1, 3, 4), 0.5)
    for geometry in ("linf", "l2"):
        threat = ThreatModel(geometry=geometry, eps=Fraction(1, 10))
        oracle = Oracle(engine(victim, x, torch.zeros(6, dtype=torch.int64), threat))
        reach = oracle.geometry.distance(x, surface(oracle, x, rng=streams(6)))
        assert torch.allclose(reach, torch.full_like(reach, 0.1), atol=1e-6)


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS, ids=lambda a: a.spec.name)
def test_dropping_broken_samples_changes_no_verdict(attack: Attack) -> None:
    victim = smooth()
    x = batch(victim)[0].double()
    victim.module.double()
    y = victim.logits(x).argmax(dim=1)
    outcomes = []
    for keeps_going in (False, True):
        meter = engine(victim, x, y, threat_for(attack, "1/20"), keeps_going=keeps_going)
        attack.run(Oracle(meter), x, y, rng=streams(len(x)))
        outcomes.append((meter.hit, int(meter.backwards.sum())))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1] < outcomes[1][1] or attack.spec.cost.startswith("2 forwards")


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS, ids=lambda a: a.spec.name)
@pytest.mark.parametrize("spend", [0, 1, 2, 5])
def test_any_budget_ends_gracefully(attack: Attack, spend: int) -> None:
    victim = smooth()
    x, y = batch(victim, 6)
    threat = threat_for(attack, "1/100", budget=Budget(forwards=spend, backwards=spend // 2))
    result = evaluate_shard(victim, attack, threat, x, y, torch.arange(6))
    assert result.errors == []
    assert int(result.forwards.max()) <= spend and int(result.backwards.max()) <= spend // 2


@pytest.mark.parametrize("attack", GRADIENT_ATTACKS, ids=lambda a: a.spec.name)
def test_zero_eps_returns_the_input_bit_for_bit(attack: Attack) -> None:
    victim = smooth()
    x, y = batch(victim)
    meter = engine(victim, x, y, threat_for(attack, "0"))
    assert torch.equal(attack.run(Oracle(meter), x.clone(), y, rng=streams(len(x))), x)


@pytest.mark.parametrize("attack", [a for a in GRADIENT_ATTACKS if Goal.TARGETED in a.spec.goals])
def test_targeted_goal_reaches_the_target_class(attack: Attack) -> None:
    victim = smooth()
    x, y = batch(victim)
    threat = threat_for(attack, "1", goal=Goal.TARGETED)
    meter = engine(victim, x, y, threat)
    attack.run(Oracle(meter), x, y, rng=streams(len(x)))
    assert meter.hit.any()
    reached = victim.logits(meter.best[meter.hit]).argmax(dim=1)
    assert torch.equal(reached, meter.targets[meter.hit])  # type: ignore[index]


def test_eot_gradient_variance_falls_as_one_over_the_draws() -> None:
    victim = noisy()
    x, y = batch(victim, 1)
    copies = 400
    x, y = x.repeat(copies, 1, 1, 1), y.repeat(copies)
    spread = []
    for draws in (1, 4, 16):
        meter = engine(victim, x, y, ThreatModel())
        out = Oracle(meter).loss_and_grad(x, torch.arange(copies), "ce", draws=draws)
        assert int(meter.backwards[0]) == draws
        spread.append(float(out.grad.var(dim=0).mean()))
    # 400 copies: the variance ratio is known within about 10 %; 3 deviations are allowed
    assert spread[0] / spread[1] == pytest.approx(4, rel=0.3)
    assert spread[1] / spread[2] == pytest.approx(4, rel=0.3)


def test_stochastic_victims_get_averaged_gradients_by_default() -> None:
    victim = noisy()
    x, y = batch(victim, 4)
    meter = engine(victim, x, y, ThreatModel())
    Pgd(steps=2).run(Oracle(meter), x, y, rng=streams(4))
    assert meter.backwards.tolist() == [20] * 4
    assert meter.forwards.tolist() == [30] * 4


def test_apgd_is_at_least_as_strong_as_fgsm_on_a_spiking_victim() -> None:
    victim = load_victim("lif_cnn.digits")
    test = registry("datasets").get("digits").load("test")
    x, y = test.x[:24], test.y[:24]
    weak = evaluate(victim, Fgsm(), x, y, eps="1/10")
    strong = evaluate(victim, ApgdCe(steps=30), x, y, eps="1/10")
    assert strong.robust < weak.robust
    assert strong.shards[0].count(Status.ERROR) == 0


def test_stages_split_passes_and_hits() -> None:
    victim = smooth()
    x, y = batch(victim)
    oracle = Oracle(meter := engine(victim, x, y, threat_for(Fgsm())))
    oracle.stage("weak")
    Fgsm().run(oracle, x, y, rng=streams(len(x)))
    oracle.stage("strong")
    Pgd().run(oracle, x, y, rng=streams(len(x)))
    assert sum(c.forwards for c in meter.stages.values()) == int(meter.forwards.sum())
    assert sum(c.backwards for c in meter.stages.values()) == int(meter.backwards.sum())
    assert sum(c.hits for c in meter.stages.values()) == int(meter.hit.sum())
    assert meter.stages["weak"].hits > 0
