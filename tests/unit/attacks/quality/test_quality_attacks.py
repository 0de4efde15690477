"""Every quality attack: inside its budget after rounding, reproducible, batch-independent, effective."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.quality.constrained import Perceptual
from robustspike.attacks.quality.constrained import activity
from robustspike.attacks.quality.constrained import busyness
from robustspike.attacks.quality.rank import mirrored
from robustspike.attacks.quality.transfer import QualityTransfer
from robustspike.attacks.quality.universal import UNet
from robustspike.bench.api import Budget
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ShardResult
from robustspike.bench.api import Split
from robustspike.bench.api import Status
from robustspike.bench.api import Task
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import initialise
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.api import spearman
from robustspike.bench.api import ssim
from robustspike.bench.api import wrap
from robustspike.bench.data.quality.photopatch_iqa import PhotopatchIqa

SHAPE = (3, 16, 16)
FAST = {
    "quality.bbq_like": {"queries": 40},
    "quality.facpa": {"images": 16, "epochs": 4, "batch": 8, "width": 4, "levels": 2, "lr": 0.05},
    "quality.korhonen": {"steps": 6, "least": 4},
    "quality.nes": {"iterations": 4, "samples": 6, "tile": 8},
    "quality.parsimonious": {"queries": 60, "block": 8},
    "quality.patch_rs": {"queries": 30, "area": 49},
    "quality.perceptual": {"steps": 6, "step": 1e-2, "lambdas": (1000.0,), "least_ssim": 0.0},
    "quality.sma": {"images": 16},
    "quality.square": {"queries": 30},
    "quality.uap": {"images": 16, "batch": 8},
    "quality.uap_cumulative": {"images": 16, "batch": 8, "lr": 10.0},
    "quality.uap_generative": {"images": 16, "epochs": 4, "batch": 8, "width": 4, "levels": 2, "lr": 0.05},
}
NAMES = [name for name in registry("attacks").names("quality.*") if name != "quality.unaware"]
"""All but the one that asks for the registered victim behind a defense (tests/unit/defenses)."""
CONTROLS = ("quality.random_sign", "quality.random_gauss")
CONFINED = ("quality.patch_rs", "quality.recolor", "quality.stadv")
"""Attacks that may not set every pixel as they like: on weights without structure they do little."""

QUICK: dict[str, dict[str, object]] = {
    "quality.bbq_like": {"queries": 100},
    "quality.nes": {"iterations": 8},
    "quality.parsimonious": {"queries": 150},
    "quality.patch_rs": {"queries": 150},
    "quality.square": {"queries": 150},
}


class Toy(nn.Module):
    """A dyadic linear score, exact in float64 for 8-bit-like inputs: 50 + sum(w (x - 1/2))."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randint(-8, 9, (1, *SHAPE), generator=generator("toy score"))
        self.weight = nn.Parameter(weight.double() / 64)

    def forward(self, x: Tensor) -> Tensor:
        return 50 + ((x - 0.5) * self.weight.to(x)).flatten(1).sum(dim=1, keepdim=True)


class Sibling(Toy):
    """The attacker's own model: the weights of Toy, some of them lost."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.weight[:, :, ::2] = 0


class Flat(nn.Module):
    """The same score for every image, with a gradient of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return 50 + 0 * x.flatten(1).sum(dim=1, keepdim=True)


def victim(module: nn.Module) -> ModuleVictim:
    return wrap(module, name="toy", shape=SHAPE, classes=1, task=Task.QUALITY, score_range=(0.0, 100.0))


def images(n: int = 6) -> Tensor:
    return RowStreams.derive(range(n), "toy images").integers(193, SHAPE).double() / 256 + 0.125


@pytest.fixture(autouse=True)
def practice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the attackers made-up images to learn on, and a model of their own for transfer."""
    x = RowStreams.derive(range(32), "practice").integers(256, SHAPE).float() / 256
    made = Split(x, torch.zeros(32).double(), torch.arange(32))
    monkeypatch.setattr(PhotopatchIqa, "load", lambda self, split, root=None: made)
    own = "robustspike.attacks.ensembles.transfer"
    monkeypatch.setattr(f"{own}.fitting_sources", lambda spec, patterns: ["sibling"])
    monkeypatch.setattr(f"{own}.load_victim", lambda name: victim(Sibling()))


def judge(
    name: str,
    threat: ThreatModel | None = None,
    module: nn.Module | None = None,
    rows: list[int] | None = None,
) -> ShardResult:
    attack = registry("attacks").get(name, **FAST.get(name, {}))
    chosen = threat or ThreatModel(
        eps=Fraction(1, 16), goal=Goal.SHIFT, levels=256, access=attack.spec.access
    )
    if chosen.geometry not in attack.spec.geometries:
        chosen = replace(chosen, geometry=attack.spec.geometries[0])
    index = torch.arange(6) if rows is None else torch.tensor(rows)
    x = images()[index]
    return evaluate_shard(
        victim(module or Toy()), attack, replace(chosen, access=attack.spec.access), x, index.double(), index
    )


@pytest.mark.parametrize("name", NAMES)
def test_moves_the_score_inside_the_budget_after_rounding(name: str) -> None:
    result = judge(name)
    assert result.errors == []
    assert float(result.distance.max()) <= 1 / 16 + 1e-9
    assert torch.equal((result.x_adv * 256).round() / 256, result.x_adv)
    change = (result.adv_score - result.clean_score).abs()
    with torch.no_grad():
        fresh = Toy()(result.x_adv).squeeze(1)
    assert torch.allclose(fresh, result.adv_score)
    best = float(Toy().weight.detach().abs().sum()) / 16
    if name in ("quality.fgsm", "quality.ifgsm", "quality.mifgsm"):
        assert change.tolist() == pytest.approx([best] * 6, rel=1e-9)
    elif name not in (*CONTROLS, "quality.bbq_like", "quality.sma", *CONFINED):
        assert float(change.mean()) > 0.04 * best
    assert float(change.mean()) > 0
    spec = registry("attacks").get(name).spec
    assert int(result.forwards.max()) > 0
    assert (int(result.backwards.max()) > 0) == (spec.access == "white")


def test_fgsm_moves_a_linear_score_by_eps_times_its_l1_norm() -> None:
    result = judge("quality.fgsm")
    exact = float(Toy().weight.detach().abs().sum()) / 16
    assert torch.equal((result.adv_score - result.clean_score).abs(), torch.full((6,), exact).double())


@pytest.mark.parametrize("name", NAMES)
def test_zero_budget_returns_the_image_bit_for_bit(name: str) -> None:
    result = judge(name, ThreatModel(eps=Fraction(0), goal=Goal.SHIFT))
    assert result.errors == [] and torch.equal(result.x_adv, images())


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bytes_and_batch_mates_do_not_matter(name: str) -> None:
    whole, again = judge(name), judge(name)
    assert torch.equal(whole.x_adv, again.x_adv)
    for rows in ([4], [5, 0]):
        part = judge(name, rows=rows)
        assert torch.equal(part.x_adv, whole.x_adv[rows]), rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("forwards", "backwards"), [(0, 0), (1, 0), (1, 1), (9, 3)])
def test_small_budgets_are_respected(name: str, forwards: int, backwards: int) -> None:
    budget = Budget(forwards=forwards, backwards=backwards)
    result = judge(name, ThreatModel(eps=Fraction(1, 16), goal=Goal.SHIFT, budget=budget))
    assert result.errors == []
    assert int(result.forwards.max()) <= forwards and int(result.backwards.max()) <= backwards


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_victim_is_not_moved(name: str) -> None:
    result = judge(name, module=Flat())
    assert result.errors == [] and result.count(Status.ROBUST) == 6
    assert torch.equal(result.x_adv, images())


@pytest.mark.parametrize(
    "name", ["quality.ifgsm", "quality.square", "quality.uap", "quality.facpa", "quality.korhonen"]
)
def test_raise_and_lower_go_the_right_way(name: str) -> None:
    for goal, sign in ((Goal.RAISE, 1), (Goal.LOWER, -1)):
        result = judge(name, ThreatModel(eps=Fraction(1, 16), goal=goal))
        assert bool((sign * (result.adv_score - result.clean_score) >= 0).all())
        assert float((sign * (result.adv_score - result.clean_score)).mean()) > 0


def test_shift_goes_to_the_side_with_more_room() -> None:
    class Tilted(Toy):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.where(x[:, :1, 0, 0] > 0.5, 20.0, -20.0)

    result = judge("quality.fgsm", module=Tilted())
    down = result.clean_score > 50
    assert 0 < int(down.sum()) < 6
    assert bool(((result.adv_score < result.clean_score) == down).all())


def test_rank_reversal_reverses_ranks() -> None:
    known = torch.arange(10.0)
    assert mirrored(known, torch.tensor([0.0, 3.0, 9.0, -5.0, 99.0])).tolist() == [9, 6, 0, 9, 0]
    result = judge("quality.sma", ThreatModel(eps=Fraction(1, 8), goal=Goal.SHIFT))
    assert spearman(result.clean_score.numpy(), result.adv_score.numpy()) < 0


def test_transfer_needs_a_source_that_is_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = QualityTransfer()
    assert "no source" in str(attack.fits(victim(Toy()).spec))  # 16x16 images
    assert attack.fits(registry("victims").get("snn_iqa.photopatch").spec()) is None
    half = float(Sibling().weight.detach().abs().sum()) / 16
    change = (judge("quality.transfer").adv_score - judge("quality.transfer").clean_score).abs()
    assert change.tolist() == pytest.approx([half] * 6, rel=1e-9)
    monkeypatch.setattr("robustspike.attacks.ensembles.transfer.load_victim", lambda name: victim(Toy()))
    assert torch.equal(judge("quality.transfer").x_adv, images())  # the target itself is no source


def test_perceptual_attack_keeps_to_its_similarity() -> None:
    attack = Perceptual(distance="haarpsi", steps=6, lambdas=(1000.0,), least_ssim=0.99)
    threat = ThreatModel(eps=Fraction(1, 8), goal=Goal.SHIFT, levels=255)
    x = (images() * 255).round() / 255
    result = evaluate_shard(victim(Toy()), attack, threat, x, torch.zeros(6).double(), torch.arange(6))
    assert result.errors == []
    assert float(ssim(x, result.x_adv).min()) >= 0.99
    assert float((result.adv_score - result.clean_score).abs().min()) > 0


@pytest.mark.parametrize("distance", ["linf", "ssim", "haarpsi", "gmsd"])
def test_perceptual_distances_all_work(distance: str) -> None:
    attack = Perceptual(distance=distance, steps=4, lambdas=(100.0,), least_ssim=0.0)
    threat = ThreatModel(eps=Fraction(1, 16), goal=Goal.SHIFT)
    x = images(2)
    result = evaluate_shard(victim(Toy()), attack, threat, x, torch.zeros(2).double(), torch.arange(2))
    assert result.errors == [] and bool((result.adv_score != result.clean_score).all())


def test_learned_distances_say_what_they_need() -> None:
    from robustspike.bench.numbers.image_quality import is_available

    if is_available("lpips"):
        pytest.skip("lpips is installed here")
    attack = Perceptual(distance="lpips", steps=1, lambdas=(1.0,))
    threat = ThreatModel(eps=Fraction(1, 16), goal=Goal.SHIFT)
    result = evaluate_shard(
        victim(Toy()), attack, threat, images(2), torch.zeros(2).double(), torch.arange(2)
    )
    assert result.count(Status.ERROR) == 2 and "optional back end" in result.errors[0]
    assert issubclass(ContractError, Exception)


def test_activity_map_marks_edges_and_only_them() -> None:
    x = torch.zeros(1, 3, 16, 16)
    x[..., 8:] = 1
    mask = activity(x)[0, 0]
    assert bool((mask[:, :5] == 0).all()) and bool((mask[4:12, 6:10] == 1).all())
    assert torch.equal(activity(torch.zeros(1, 3, 16, 16)), torch.ones(1, 1, 16, 16))
    assert float(busyness(x).amax()) == 1 and float(busyness(x)[..., 2:6].amax()) == 0


def test_unet_takes_odd_sizes() -> None:
    net = UNet(3, width=4, levels=3)
    initialise(net, generator("unet"))
    out = net(torch.rand(2, 3, 21, 34, generator=generator(0)), torch.ones(2))
    assert out.shape == (2, 3, 21, 34) and float(out.abs().max()) < 1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("quality.ifgsm", {"steps": 0}),
        ("quality.perceptual", {"distance": "vif"}),
        ("quality.korhonen", {"mask_mode": "both"}),
        ("quality.mad", {"rmse": 0.0}),
        ("quality.square", {"p": 0.0}),
        ("quality.nes", {"samples": 1}),
        ("quality.bbq_like", {"angle": 90.0}),
        ("quality.uap", {"batch": 0}),
        ("quality.facpa", {"levels": 0}),
        ("quality.sma", {"images": 1}),
        ("quality.transfer", {"sources": ()}),
        ("quality.sega", {"draws": 0}),
        ("quality.ssah", {"steps": 0}),
        ("quality.stadv", {"weight": -1.0}),
        ("quality.recolor", {"grid": 1}),
        ("quality.pgd_l2", {"step": 0.0}),
        ("quality.patch_rs", {"p": 2.0}),
        ("quality.parsimonious", {"block": 0}),
    ],
)
def test_wrong_parameters_are_refused(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=name):
        registry("attacks").get(name, **wrong)


@pytest.mark.slow
def test_every_attack_does_its_work_on_a_shipped_spiking_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # real practice images and sources
    target = load_victim("snn_iqa.photopatch")
    data = registry("datasets").get("photopatch_iqa").load("test")[:8]
    change = {}
    for name in NAMES:
        attack = registry("attacks").get(name, **QUICK.get(name, {}))
        threat = ThreatModel(
            geometry=attack.spec.geometries[0],
            eps=Fraction(4, 255),
            goal=Goal.SHIFT,
            levels=255,
            access=attack.spec.access,
        )
        result = evaluate_shard(target, attack, threat, data.x, data.y, data.ids)
        assert result.errors == [] and float(result.distance.max()) <= 4 / 255 + 1e-6, name
        assert torch.equal((result.x_adv * 255).round() / 255, result.x_adv), name
        change[name] = float((result.adv_score - result.clean_score).abs().mean())
    weak = (*CONTROLS, "quality.bbq_like", "quality.recolor", "quality.patch_rs")
    assert min(change[name] for name in weak) > 0
    beaten = {name for name in NAMES if change[name] <= change["quality.random_sign"]}
    assert beaten <= set(weak), change
