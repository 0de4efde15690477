"""Networks of several convolutions a block, and networks that start from a trained ReLU network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import find_neurons
from robustspike.bench.api import fit
from robustspike.bench.api import generator
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.cli.train import command
from robustspike.bench.training import train as training
from robustspike.bench.training import weights
from robustspike.victims.converted.nodes import ConvertedNet
from robustspike.victims.direct.hybrid_training import HybridTrainedCnn
from robustspike.victims.timing.b1 import B1Net
from robustspike.victims.timing.phase import HybridEncodedCnn

SHAPES = {
    "ann_cnn.digits": nn.Conv2d,
    "lif_cnn.digits": nn.Conv2d,
    "qcfs_cnn.digits": nn.Conv2d,
    "ttfs_b1.digits": nn.Conv2d,
    "ttfs_b1_mapped.digits": nn.Conv2d,
    "hybrid_cnn.digits": nn.Conv2d,
    "phase_cnn.digits": nn.Conv2d,
    "two_phase_cnn.digits": nn.Conv2d,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_tuple_of_widths_is_a_block_of_convolutions_before_one_pool(name: str) -> None:
    net = registry("victims").get(name, widths=(4, (5, 6))).build(generator("blocks")).eval()
    channels = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert channels[:3] == [4, 5, 6]
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    assert linear.in_features == 6 * 2 * 2  # halved twice, whatever the number of convolutions
    with torch.no_grad():
        assert net(torch.rand(2, 1, 8, 8, generator=generator("x"))).shape == (2, 10)


@pytest.mark.parametrize("widths", [(4, ()), ((4, 0), 4), ((4, 4), 4, 4, 4)])
def test_blocks_that_cannot_be_built_are_refused(widths: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match=r"lif_cnn\.digits"):
        registry("victims").get("lif_cnn.digits", widths=widths).build(generator("blocks"))


def test_the_cifar_victims_share_one_shape_of_299_thousand_parameters() -> None:
    for name in ("ann_cnn", "lif_cnn", "qcfs_cnn", "ttfs_b1", "phase_cnn"):
        net = registry("victims").get(f"{name}.cifar10").build(generator("size"))
        assert 298_000 < sum(p.numel() for p in net.parameters()) < 299_000


@pytest.fixture(scope="module")
def train() -> Split:
    return registry("datasets").get("digits").load("train")[:512]


@pytest.fixture(scope="module")
def ann() -> nn.Module:
    return load_victim("ann_cnn.digits").module


def accuracy(net: nn.Module, split: Split) -> float:
    with torch.no_grad():
        return float((net.eval()(split.x).argmax(dim=1) == split.y).float().mean())


def started(name: str, ann: nn.Module, train: Split, **params: object) -> nn.Module:
    recipe = registry("victims").get(name, starts="ann_cnn.digits", **params)
    net = recipe.build(generator("another start"))
    before = {key: value.clone() for key, value in ann.state_dict().items()}
    recipe.start(net, ann, train)
    assert all(torch.equal(before[key], value) for key, value in ann.state_dict().items())
    return net.eval()


def test_qcfs_starts_as_the_relu_network_with_scales_that_cover_its_activations(
    ann: nn.Module, train: Split
) -> None:
    net = started("qcfs_cnn.digits", ann, train, coverage=0.99)
    assert isinstance(net, ConvertedNet)
    for node, layer in zip(net.nodes, (2, 6), strict=True):
        with torch.no_grad():
            out = ann[: layer + 1](train.x)  # type: ignore[index]
        positive = out[out > 0]
        assert float((positive <= node.scale.detach() + 1e-6).float().mean()) == pytest.approx(0.99, abs=1e-3)
    assert accuracy(net, train) > accuracy(ann, train) - 0.05


def test_timed_network_starts_with_the_logits_of_the_relu_network(ann: nn.Module, train: Split) -> None:
    net = started("ttfs_b1.digits", ann, train)
    assert isinstance(net, B1Net)
    with torch.no_grad():
        torch.testing.assert_close(net(train.x), ann(train.x), rtol=1e-4, atol=1e-4)


def test_a_coded_network_starts_with_the_layers_of_the_relu_network(ann: nn.Module, train: Split) -> None:
    recipe = HybridEncodedCnn(name="phase.test", starts="ann_cnn.digits", codes=("phase",), neuron="if")
    assert recipe.family == "coded input" and recipe.spec().steps == 8
    net = recipe.build(generator("another start")).eval()
    recipe.start(net, ann, train)
    mine, theirs = ([m for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (net, ann))
    torch.testing.assert_close(mine[0].weight, theirs[0].weight)
    assert accuracy(net, train) > 0.3  # the code is new to its first layer, what follows is not


def test_a_coded_network_needs_the_victim_that_it_starts_from() -> None:
    with pytest.raises(ConfigError, match="needs the victim that it starts from"):
        HybridEncodedCnn(name="phase.test", codes=("phase",))


def hybrid(**params: object) -> HybridTrainedCnn:
    return HybridTrainedCnn(name="hybrid.test", starts="ann_cnn.digits", **params)  # type: ignore[arg-type]


def test_hybrid_start_sends_the_peak_activation_in_as_the_drive(ann: nn.Module, train: Split) -> None:
    recipe = hybrid(drive=3.0, coverage=1.0)
    net = recipe.build(generator("another start")).eval()
    recipe.start(net, ann, train)
    currents: list[Tensor] = []
    handle = find_neurons(net)[0].module.register_forward_pre_hook(lambda m, args: currents.append(args[0]))
    with torch.no_grad():
        net(train.x)
    handle.remove()
    assert float(currents[0].max()) == pytest.approx(3.0, rel=1e-4)


def test_a_hybrid_start_already_classifies_where_a_drawn_start_does_not(ann: nn.Module, train: Split) -> None:
    recipe = hybrid(steps=8)
    net = recipe.build(generator("another start"))
    drawn = accuracy(net, train)
    recipe.start(net, ann, train)
    assert drawn < 0.3 < 0.8 < accuracy(net, train)


def test_hybrid_training_without_a_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="starts from"):
        HybridTrainedCnn(name="hybrid.test")


def short(name: str, **params: object) -> VictimRecipe:
    recipe: VictimRecipe = registry("victims").get(name, **params)
    return dataclasses.replace(recipe, schedule=Schedule(epochs=1, batch=256, lr=1e-5))


def test_training_from_plain_weights_hardens_them_and_the_certificate_says_so(tmp_path: Path) -> None:
    plain = load_victim("lif_cnn.digits")
    rule = registry("defenses").get("mppd")  # adds parameters to the network: they begin at their own start
    victim, certificate = training.train(
        short("lif_cnn.digits"), rule, out=tmp_path, label="mppd", source="lif_cnn.digits"
    )
    start = weights.read_certificate(
        weights.find_weights(registry("victims").get("lif_cnn.digits"), "none", 0, None)
    )
    moved = (victim.module.body[0].weight - plain.module.body[0].weight).abs().max()
    assert 0 < float(moved) < 1e-3  # one epoch at a small learning rate, from those very weights
    assert certificate["started_from"]["sha256"] == start["sha256"]
    own = weights.training_passes(registry("victims").get("lif_cnn.digits"), "mppd", 0, tmp_path)
    spent = certificate["training"]["forwards"] + certificate["training"]["backwards"]
    assert own["own"] == spent + own["plain"]  # what it started from was trained too


def test_a_recipe_that_starts_from_another_victim_does_so_without_being_told(tmp_path: Path) -> None:
    recipe = dataclasses.replace(hybrid(), schedule=Schedule(epochs=1, batch=256, lr=1e-5))
    _, certificate = training.train(recipe, registry("defenses").get("none"), out=tmp_path)
    assert certificate["started_from"]["victim"] == "ann_cnn.digits"
    assert certificate["test"]["correct"] > 0.5 * certificate["test"]["n"]


def test_the_command_hardens_trained_weights_in_the_epochs_it_is_given(tmp_path: Path) -> None:
    arguments = ["lif_cnn.digits", "--defense", "sr", "--from", "lif_cnn.digits", "--out", str(tmp_path)]
    result = CliRunner().invoke(command, [*arguments, "--epochs", "1", "--lr", "0.0005"])
    assert result.exit_code == 0, result.output
    certificate = weights.read_certificate(tmp_path / "lif_cnn.digits+sr.safetensors")
    assert certificate["started_from"]["victim"] == "lif_cnn.digits"
    assert certificate["recipe"]["schedule"]["epochs"] == 1 == certificate["training"]["epochs"]
    assert certificate["recipe"]["schedule"]["lr"] == 0.0005
    assert certificate["made_with"]["threads"] == 1
    assert certificate["test"]["correct"] > 0.9 * certificate["test"]["n"]  # a drawn start is far below


def test_training_refuses_a_start_that_does_not_belong_to_the_victim(tmp_path: Path) -> None:
    none = registry("defenses").get("none")
    with pytest.raises(ConfigError, match=r"lif_cnn\.digits.*starts from"):
        training.train(short("lif_cnn.digits"), none, out=tmp_path, source="ann_cnn.digits")
    with pytest.raises(ConfigError, match="cannot start"):
        training.train(short("lif_cnn.digits", starts="ann_cnn.digits"), none, out=tmp_path)
    with pytest.raises(ConfigError, match="other layers"):
        training.train(short("qcfs_cnn.digits", starts="ann_cnn.digits", widths=(4, 5)), none, out=tmp_path)


def test_no_epochs_keeps_the_start_and_says_how_good_it_is(tmp_path: Path) -> None:
    recipe = registry("victims").get("ttfs_b1.digits", starts="ann_cnn.digits")
    recipe = dataclasses.replace(recipe, schedule=Schedule(epochs=0))
    _, certificate = training.train(recipe, registry("defenses").get("none"), out=tmp_path)
    assert certificate["validation"] > 0.9 and certificate["best_epoch"] == 0
    assert certificate["training"]["forwards"] == 0 and certificate["started_from"]["passes"] > 0


def test_bfloat16_trains_and_leaves_float32_weights(train: Split) -> None:
    recipe = registry("victims").get("lif_cnn.digits")
    net, seen = recipe.build(generator("bf16")), set()
    handle = net.body[0].register_forward_hook(lambda m, args, out: seen.add(out.dtype))
    report = fit(
        net,
        train,
        train[:100],
        schedule=Schedule(epochs=8, bf16=True),
        terms=lambda step: {"loss": step.loss(step.x, step.y)[0]},
        loss_of=recipe.loss,
        seed=0,
    )
    handle.remove()
    assert seen == {torch.bfloat16, torch.float32}  # training passes, and validation
    assert report.history[-1]["loss"] < 0.7 * report.history[0]["loss"]
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_training_says_which_weights_to_train_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "shipped_weights", lambda recipe: tmp_path / "none")
    with pytest.raises(
        ConfigError, match=r"'ann_cnn\.digits' has no weights.*robustspike train ann_cnn\.digits"
    ):
        training.train(hybrid(), registry("defenses").get("none"), out=tmp_path)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6])
def test_the_shortest_one_cycle_schedules_can_be_run(steps: int, ann: nn.Module, train: Split) -> None:
    recipe = registry("victims").get("ann_cnn.digits")
    net = recipe.build(generator("short"))
    report = fit(
        net,
        train[: 8 * steps],
        train[:50],
        schedule=Schedule(epochs=1, batch=8),
        terms=lambda step: {"loss": step.loss(step.x, step.y)[0]},
        loss_of=recipe.loss,
        seed=0,
    )
    assert report.forwards == 8 * steps


def mean_shift(one: Tensor, other: Tensor) -> tuple[int, int]:
    """Return the (down, right) shift within 3 pixels that makes `other` out of `one`, padding with zeros."""
    padded = nn.functional.pad(one, [3] * 4)
    height, width = one.shape[-2:]
    fits = [
        (3 - top, 3 - left)
        for top in range(7)
        for left in range(7)
        if torch.equal(padded[..., top : top + height, left : left + width], other)
    ]
    assert len(fits) == 1
    return fits[0]


@pytest.mark.parametrize("shape", [(3, 9, 7), (4, 2, 9, 7)], ids=["images", "frames"])
def test_schedule_mirrors_and_shifts_each_sample_by_its_own_amount(shape: tuple[int, ...]) -> None:
    x = torch.rand(64, *shape, generator=generator("vary"))
    before = x.clone()
    out = Schedule(flips=True, shifts=3).vary(x, generator("draw"))
    assert out.shape == x.shape and torch.equal(x, before)
    found = set()
    for one, other in zip(x, out, strict=True):
        try:
            found.add((False, *mean_shift(one, other)))
        except AssertionError:
            found.add((True, *mean_shift(one.flip(-1), other)))
    assert {flip for flip, _, _ in found} == {True, False}
    assert {down for _, down, _ in found} == {right for _, _, right in found} == set(range(-3, 4))
    assert torch.equal(out, Schedule(flips=True, shifts=3).vary(x, generator("draw")))
    assert torch.equal(Schedule().vary(x, generator("draw")), x)


def test_an_epoch_of_a_share_sees_another_part_of_the_data_each_time(train: Split) -> None:
    recipe = registry("victims").get("ann_cnn.digits")
    numbered = Split(train.x[:200], train.y[:200], train.ids[:200])
    rows = {row.numpy().tobytes(): i for i, row in enumerate(numbered.x)}
    seen: list[list[int]] = []

    def terms(step: Step) -> Terms:
        if step.epoch == len(seen):
            seen.append([])
        seen[-1] += [rows[row.numpy().tobytes()] for row in step.x]
        return {"loss": step.loss(step.x, step.y)[0]}

    fit(
        recipe.build(generator("share")),
        numbered,
        train[200:250],
        schedule=Schedule(epochs=3, batch=16, share=0.2),
        terms=terms,
        loss_of=recipe.loss,
        seed=0,
    )
    assert [len(set(part)) for part in seen] == [40, 40, 40]
    assert len({frozenset(part) for part in seen}) == 3


def test_smoothing_spreads_a_share_of_each_label(train: Split, ann: nn.Module) -> None:
    plain = registry("victims").get("ann_cnn.digits")
    smooth = dataclasses.replace(plain, schedule=Schedule(smoothing=0.3))
    logits = ann(train.x[:8])
    uniform = -logits.log_softmax(dim=1).mean()
    hard, soft = (recipe.loss(ann, train.x[:8], train.y[:8])[0] for recipe in (plain, smooth))
    torch.testing.assert_close(soft, 0.7 * hard + 0.3 * uniform)


@pytest.mark.parametrize("wrong", [{"shifts": -1}, {"smoothing": 1.0}, {"share": 0.0}, {"share": 1.5}])
def test_schedule_refuses_impossible_variations(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="shifts"):
        Schedule(**wrong)  # type: ignore[arg-type]
