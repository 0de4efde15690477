"""Training rules: gradient regularisers, adversarial training, weight 0, crafting."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseBase
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import Step
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import evaluate
from robustspike.bench.api import fit
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.defenses.crafting import craft
from robustspike.defenses.mppd import Mppd
from robustspike.defenses.mppd import last_current
from robustspike.defenses.slopes import penalty_of
from robustspike.defenses.slopes import score_of
from robustspike.defenses.slopes import slope
from robustspike.defenses.trades import divergence

RECIPE = registry("victims").get("lif_cnn.digits", widths=(4, 8))
TRAIN: Split = RECIPE.data().load("train")[:48]
QUICK = Schedule(epochs=2, batch=24, lr=4e-3)

OFF: dict[str, dict[str, object]] = {
    "dsd": {"eps": 0.0, "removes": False},
    "feel": {"encoding": False, "leak": False},
    "fgsm_at": {"eps": 0.0},
    "gaussian": {"sigma": 0.0},
    "gradient_penalty": {"weight": 0.0},
    "mart": {"eps": 0.0, "boost": False},
    "mpd_sgr": {"weight": 0.0},
    "mppd": {"chi": 1.0, "rho": 0.0, "dlif": False},
    "mppd_gaussian": {"chi": 1.0, "rho": 0.0, "dlif": False},
    "nt": {"weight": 0.0},
    "pgd_at": {"eps": 0.0},
    "rsc": {"sigma": 0.0},
    "snn_rat": {"eps": 0.0, "beta": 0.0},
    "sr": {"weight": 0.0},
    "sr_star": {"eps": 0.0, "weight": 0.0},
    "stog": {"eps": 0.0, "gamma": 0.0, "learning": 0.0, "initial": 1.0},
    "tgo": {"weight": 0.0, "sigma": 0.0},
    "trades": {"beta": 0.0},
    "tv_l1": {"chi": 1.0, "rho": 0.0, "dlif": False},
}
ALWAYS_ON = {"hosnn", "rate_smoothing", "robust_conversion"}
"""Defenses that are another network, whatever their weights: nothing to switch off."""


def defense(name: str, **params: object) -> DefenseBase:
    made: DefenseBase = registry("defenses").get(name, **params)
    return made


def hardened(rule: DefenseBase) -> nn.Module:
    return rule.transform(RECIPE.build(generator("init")), rule.describe(RECIPE.spec()))


def trained(rule: DefenseBase, *, split: Split = TRAIN, schedule: Schedule = QUICK, **options) -> nn.Module:
    module = hardened(rule)
    fit(
        module,
        split,
        split,
        schedule=rule.schedule(schedule),
        terms=rule.terms,
        loss_of=RECIPE.loss,
        seed=0,
        before_step=rule.before_step,
        after_step=rule.after_step,
        eligible=rule.eligible,
        **options,
    )
    return module


def step_on(module: nn.Module, n: int = 16, *, x: Tensor | None = None, y: Tensor | None = None) -> Step:
    x = TRAIN.x[:n] if x is None else x
    y = TRAIN.y[:n] if y is None else y
    return Step(module, x, y, generator("step"), 0, RECIPE.loss, 10)


@pytest.fixture(scope="module")
def plain() -> list[Tensor]:
    module = trained(defense("none"))
    return [p.detach() for p in (*module.parameters(), *module.buffers())]


def test_every_training_defense_is_in_the_table_of_switched_off_ones() -> None:
    entries = [registry("defenses").entry(name) for name in registry("defenses").names()]
    ours = [entry.name for entry in entries if entry.distribution == "robustspike"]
    training = {n for n in ours if defense(n).spec.trains and defense(n).fits(RECIPE) is None}
    missing = training - set(OFF) - ALWAYS_ON
    assert not missing, f"add parameters that switch {missing} off"


@pytest.mark.parametrize("name", sorted(OFF))
def test_weight_zero_is_plain_training_bit_for_bit(name: str, plain: list[Tensor]) -> None:
    module = trained(defense(name, **OFF[name]))
    own = "gate.p"  # of StoG, frozen open
    kept = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    found = [p.detach() for key, p in kept.items() if not key.endswith(own)]
    assert len(found) == len(plain)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("name", sorted({*OFF, *ALWAYS_ON}))
def test_switched_on_rule_trains_and_changes_the_weights(name: str, plain: list[Tensor]) -> None:
    rule = defense(name)
    module = trained(rule)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    own, first = (next(p for p in found if p.dim() == 4) for found in (module.parameters(), plain))
    assert not torch.equal(own, first)
    assert rule.spec.source and "Differs" in rule.spec.source
    assert rule.describe(RECIPE.spec()).stochastic == rule.spec.stochastic


@pytest.mark.parametrize("name", ["stog", "mppd", "hosnn", "robust_conversion"])
def test_killed_run_of_a_defense_resumes_to_identical_weights(name: str, tmp_path) -> None:
    class Killed(Exception):
        pass

    whole = trained(defense(name))
    rule, count = defense(name), itertools.count()
    module = hardened(rule)

    def dying(step: Step) -> None:
        rule.after_step(step)
        if next(count) == 2:  # the first step of the second epoch
            raise Killed

    with pytest.raises(Killed):
        fit(
            module,
            TRAIN,
            TRAIN,
            schedule=rule.schedule(QUICK),
            terms=rule.terms,
            loss_of=RECIPE.loss,
            seed=0,
            after_step=dying,
            eligible=rule.eligible,
            checkpoint=tmp_path / "c",
        )
    resumed = trained(rule, checkpoint=tmp_path / "c")
    one, two = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


# --- slopes: SR, NT, Finlay-Oberman ------------------------------------------------------------------


def smooth_net(classes: int = 5) -> nn.Module:
    module = nn.Sequential(nn.Linear(20, 32), nn.Softplus(), nn.Linear(32, classes)).double()
    weights = generator("smooth")
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=weights, dtype=torch.float64) * 0.4)
    return module


def smooth_step(module: nn.Module, classes: int = 5) -> Step:
    x = torch.rand(12, 20, generator=generator("x"), dtype=torch.float64)
    return step_on(module, x=x, y=torch.arange(12) % classes)


def slopes_at(step: Step, target, *, h: float, direction="sign") -> tuple[Tensor, Tensor]:
    """The finite-difference slope and the exact norm of the input gradient."""
    x = step.x.clone().requires_grad_(True)
    logits = step.logits(x)
    score = score_of(logits, step.y, target)
    (exact,) = torch.autograd.grad(score(logits).sum(), x, create_graph=True)
    norm = exact.abs().sum(1) if direction == "sign" else exact.norm(dim=1)
    return slope(step, x, logits, score, h=h, direction=direction), norm


def weight_gradient(value: Tensor, module: nn.Module) -> Tensor:
    """The gradient of a value with respect to all parameters but the last bias, in one vector."""
    found = torch.autograd.grad(value, list(module.parameters())[:3], retain_graph=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("target", ["softmax_prob", "pair_prob", "logit", "margin", "loss"])
@pytest.mark.parametrize("direction", ["sign", "l2"])
def test_difference_converges_to_the_norm_on_a_smooth_net_and_so_does_its_parameter_gradient(
    target: str, direction: str
) -> None:
    module = smooth_net()
    errors, gradient_errors = [], []
    for h in (1e-2, 1e-3, 1e-4):
        found, exact = slopes_at(smooth_step(module), target, h=h, direction=direction)
        errors.append(float((found.detach().square().mean() / exact.detach().square().mean() - 1).abs()))
        parts = [weight_gradient(value.square().mean(), module) for value in (found, exact)]
        gradient_errors.append(float((parts[0] - parts[1]).norm() / parts[1].norm()))
    assert errors[0] < 0.05 and gradient_errors[0] < 0.1
    for series in (errors, gradient_errors):  # O(h): a tenth of h, about a tenth of the error
        assert series[1] < 0.2 * series[0] and series[2] < 0.2 * series[1]


@pytest.mark.parametrize("h", [1e-3, 0.1, 10.0])
def test_linear_score_gives_the_l1_norm_of_the_weights_for_any_h(h: float) -> None:
    module = nn.Linear(20, 1).double()
    step = smooth_step(module)
    found, _ = slopes_at(step, "score", h=h)
    assert torch.allclose(found, module.weight.detach().abs().sum().expand(12), rtol=1e-9)
    moved = step.x + 0.03 * module.weight.detach().sign()
    change = module(moved) - module(step.x)
    assert torch.allclose(change.squeeze(1), 0.03 * found, rtol=1e-9)  # FGSM moves it by eps ||w||_1


def test_two_classes_make_pair_and_softmax_probability_equal() -> None:
    logits = torch.randn(6, 2, generator=generator("two"), dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    pair, soft = (score_of(logits, y, target)(logits) for target in ("pair_prob", "softmax_prob"))
    assert torch.allclose(pair, soft)


def test_probability_slopes_ignore_a_constant_shift_and_do_not_overflow() -> None:
    class Shifted(nn.Module):
        def __init__(self, net: nn.Module, by: float, scale: float = 1.0) -> None:
            super().__init__()
            self.net, self.by, self.scale = net, by, scale

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.scale * self.net(x) + self.by
            return out

    net = smooth_net()
    for target in ("softmax_prob", "pair_prob"):
        one, _ = slopes_at(smooth_step(net), target, h=0.01)
        two, _ = slopes_at(smooth_step(Shifted(net, 7.0)), target, h=0.01)
        assert torch.allclose(one, two, rtol=1e-8)
        assert torch.isfinite(slopes_at(smooth_step(Shifted(net, 0.0, 1e3)), target, h=0.01)[0]).all()
        small, _ = slopes_at(smooth_step(net), target, h=1e-4)
        assert bool((small >= 0).all())  # d increases f_y


def test_nt_on_the_pair_probability_is_sr_at_half_the_weight() -> None:
    net = smooth_net()
    sr = defense("sr", weight=0.1, form="l1_sq", target="pair_prob").terms(smooth_step(net))["sr"]
    nt = defense("nt", weight=0.2, p=2, h=0.01, target="pair_prob").terms(smooth_step(net))["nt"]
    assert float(sr.detach()) == pytest.approx(float(nt.detach()), rel=1e-12)


@pytest.mark.parametrize("form,expected", [("l1", 2.0), ("l1_sq", 5.0), ("l1_sq_half", 2.5)])
def test_penalty_forms(form: str, expected: float) -> None:
    assert float(penalty_of(torch.tensor([1.0, -3.0]), form)) == expected


def test_difference_vanishes_with_h_on_a_spiking_net_while_the_surrogate_norm_stays() -> None:
    victim = load_victim("lif_cnn.digits")
    data = RECIPE.data().load("validation")
    step = Step(victim.module, data.x, data.y, generator("s"), 0, RECIPE.loss)
    # Piecewise constant: 0 for 218 of 249 samples at 1e-4, for all at 1e-5 (the specification's net: 90 %).
    for h, share in ((1e-4, 0.87), (1e-5, 1.0)):
        tiny, surrogate = slopes_at(step, "margin", h=h)
        assert float((tiny == 0).double().mean()) >= share
    assert bool((surrogate.flatten(1).sum(1) > 0).all())
    wide, _ = slopes_at(step, "margin", h=0.01)
    assert float((wide != 0).double().mean()) > 0.3


def test_worst_case_change_exceeds_the_random_one_by_three_l1_over_l2() -> None:
    g = torch.randn(30, generator=generator("g"), dtype=torch.float64)
    eps = 0.05
    noise = (torch.rand(100_000, 30, generator=generator("mc"), dtype=torch.float64) * 2 - 1) * eps
    ratio = float((eps * g.abs().sum()) ** 2 / (noise @ g).square().mean())
    expected = float(3 * g.abs().sum() ** 2 / g.square().sum())
    assert ratio == pytest.approx(expected, rel=0.01)  # Monte-Carlo: 0.4 % standard error
    assert 3 <= expected <= 3 * 30


# --- adversarial training ------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["clean", "uniform", "normal"])
def test_crafted_points_stay_legal_raise_the_loss_and_leave_the_network_alone(start: str) -> None:
    module = load_victim("lif_cnn.digits").module
    module.train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    step = step_on(module, 48)
    moved = craft(step, lambda z: cross_entropy(z, step.y), eps=0.1, steps=3, size=0.05, start=start)
    assert float((moved - step.x).abs().max()) <= 0.1 + 1e-6
    assert float(moved.min()) >= 0 and float(moved.max()) <= 1
    assert not moved.requires_grad
    assert all(m.training for m in module.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    module.eval()
    assert float(step.loss(moved, step.y)[0]) > 2 * float(step.loss(step.x, step.y)[0])
    assert (step.forwards, step.backwards) == (3 * 48 + 2 * 48, 3 * 48)  # evaluation mode trains nothing


def test_training_mode_attack_is_an_option_that_moves_the_running_statistics() -> None:
    module = hardened(defense("none")).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    defense("pgd_at", training_mode=True).points(step_on(module))
    after = module.state_dict()
    assert any("running_mean" in key and not torch.equal(after[key], before[key]) for key in after)


def test_divergence_is_zero_at_equal_answers_and_its_gradient_finite() -> None:
    z = torch.randn(4, 5, generator=generator("z")) * 50
    other = z.clone().requires_grad_(True)
    value = divergence(z, other)
    assert torch.equal(value, torch.zeros(4))
    (gradient,) = torch.autograd.grad(value.sum(), other)
    assert torch.isfinite(gradient).all()
    far = torch.randn(4, 5, generator=generator("far")) * 50
    expected = nn.functional.kl_div(far.log_softmax(1), z.log_softmax(1), log_target=True, reduction="none")
    assert torch.allclose(divergence(z, far), expected.sum(1), atol=1e-4)


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_trades_and_mart_terms_are_finite_and_nonnegative(name: str) -> None:
    terms = defense(name).terms(step_on(hardened(defense("none")).train()))
    assert all(float(value.detach()) >= -1e-6 for value in terms.values())
    assert len(terms) == (2 if name == "trades" else 3)


def test_two_forwards_with_reset_equal_two_fresh_networks() -> None:
    module = hardened(defense("none")).eval()
    step = step_on(module)
    first, second = step.logits(step.x), step.logits(step.x.flip(0))
    fresh = step_on(hardened(defense("none")).eval())
    assert torch.equal(second, fresh.logits(fresh.x.flip(0)))
    assert torch.equal(first, step.logits(step.x))


def test_batch_of_one_trains() -> None:
    for name in ("sr", "pgd_at", "trades", "mppd", "mpd_sgr", "stog"):
        terms = defense(name).terms(step_on(hardened(defense(name)).train(), 1))
        assert all(torch.isfinite(value).all() for value in terms.values()), name


@pytest.mark.parametrize(
    "name,params",
    [
        ("sr", {"weight": -1.0}),
        ("sr", {"h": 0.0}),
        ("sr", {"form": "l2"}),
        ("sr", {"target": "score"}),
        ("sr_star", {"target": "score"}),
        ("nt", {"target": "best"}),
        ("gradient_penalty", {"weight": -0.1}),
        ("gaussian", {"clean": 2.0}),
        ("pgd_at", {"steps": 0}),
        ("pgd_at", {"start": "far"}),
        ("fgsm_at", {"eps": -0.1}),
        ("pgd_at", {"eps": 8.0}),  # of 255, most likely
        ("pgd_at", {"eps": math.inf}),
        ("mppd", {"eps": 8.0}),
        ("trades", {"beta": -1.0}),
        ("mart", {"beta": -1.0}),
        ("mppd", {"chi": 1.5}),
        ("mppd", {"norm": "l3"}),
        ("snn_rat", {"beta": -1.0}),
        ("snn_rat", {"radii": ()}),
        ("stog", {"temperature": 0.0}),
        ("feel", {"part": "imaginary"}),
        ("mpd_sgr", {"window": 0.0}),
        ("tgo", {"delta": 0.0}),
        ("rsc", {"sigma": -1.0}),
    ],
)
def test_unusable_parameters_are_refused(name: str, params: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=name):
        defense(name, **params)


def test_defense_that_does_not_fit_says_why() -> None:
    events = registry("victims").get("lif_cnn.digits_events")
    converted = registry("victims").get("qcfs_cnn.digits")
    assert "event frames" in str(defense("pgd_at").fits(events))
    assert "spiking layers" in str(defense("mppd").fits(converted))
    assert "step by step" in str(defense("rsc").fits(converted))
    assert defense("sr").fits(events) is None
    assert defense("mpd_sgr").fits(events) is None
    assert defense("pgd_at").fits(converted) is None


def measured(name: str) -> dict[str, float]:
    """What the shipped network of a defense has on test data: gradient norms, perturbation dynamics."""
    victim = load_victim("lif_cnn.digits", defense=name)
    data = RECIPE.data().load("test")[:250]
    step = Step(victim.module, data.x, data.y, generator("measure"), 0, RECIPE.loss)
    found = {}
    for target in ("softmax_prob", "margin"):
        x = data.x.clone().requires_grad_(True)
        logits = step.logits(x)
        gradient = step.input_gradient(score_of(logits, step.y, target)(logits), x)
        found[target] = float(gradient.abs().flatten(1).sum(1).mean())
    rule = Mppd()
    currents = [last_current(step, inputs, scaled=True)[2] for inputs in (step.x, rule.perturbed(step))]
    found["e2"] = float(rule.regulariser(*currents).detach())
    return found


def test_each_shipped_regulariser_lowers_what_it_claims_to_lower() -> None:
    plain = measured("none")
    assert measured("sr")["softmax_prob"] < 0.9 * plain["softmax_prob"]  # 1.39 of 1.72
    assert measured("nt")["margin"] < 0.5 * plain["margin"]  # 15.0 of 38.5
    assert (
        measured("mppd")["e2"] < 0.5 * measured("mppd(rho=0)")["e2"]
    )  # its control: same points and neurons
    norms, retracted = (spectral_norms(name) for name in ("none", "snn_rat"))
    assert all(
        a < 0.9 * b for a, b in zip(retracted, norms, strict=True)
    )  # 1.09, 1.36, 1.58 of 1.28, 2.30, 4.54


def spectral_norms(name: str) -> list[float]:
    """The largest singular value of every layer of the shipped network of a defense."""
    module = load_victim("lif_cnn.digits", defense=name).module
    weights = [p.detach().flatten(1) for p in module.parameters() if p.dim() > 1]
    return [float(torch.linalg.matrix_norm(w, 2)) for w in weights]


def test_adversarial_training_raises_accuracy_under_pgd() -> None:
    data = RECIPE.data().load("test")[:100]
    plain, trained_on_it = (
        evaluate(
            load_victim("lif_cnn.digits", defense=name), "pgd.linf(steps=10)", data.x, data.y, eps="1/10"
        )
        for name in ("none", "pgd_at")
    )
    assert trained_on_it.robust > plain.robust + 20
