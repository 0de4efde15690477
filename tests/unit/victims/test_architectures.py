"""The published architectures: their size, that they learn, and that an estimator changes no answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import find_neurons
from robustspike.bench.api import fit
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.victims.architectures.base import Parts
from robustspike.victims.architectures.vgg import VGGSNN_CIFAR10_DVS

PARAMETERS = {
    "vgg11.cifar10": 61_377_034,  # 11.0 M in convolutions and 50.4 M in the linear layers that SNN-RAT lists
    "vgg16.cifar10": 33_646_666,  # 14.7 M in convolutions and 18.9 M in QCFS's three linear layers
    "resnet18.cifar10": 11_173_962,  # the 11.17 M of ResNet-18 with the stem of CIFAR
    "resnet19.cifar10": 12_630_858,  # the 12.63 M of tdBN and TET
    "resnet20.cifar10": 272_474,  # the 0.27 M of He et al., with projections
    "sew_resnet18.cifar10": 11_173_962,  # as ResNet-18: neurons have no parameters
    "wrn16_4.cifar10": 2_748_890,  # the 2.7 M of WRN-16-4
    "spikformer.cifar10": 4_150_000,  # Spikformer-4-256
}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def built(name: str, **params: object) -> nn.Module:
    with torch.device("meta"):  # the largest have 63 M weights, and only shapes matter here
        recipe = registry("victims").get(name, **params)
        parts = Parts("m", recipe.node)
        return recipe.network(parts, recipe.data().shape[-3:], recipe.data().classes)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "spikformer.cifar10"])
def test_parameters_are_those_of_the_paper(name: str) -> None:
    assert count(built(name)) == PARAMETERS[name]


def test_spikformer_has_the_papers_and_spikingjellys_size() -> None:
    from spikingjelly.activation_based.model.spikformer import Spikformer

    net = built("spikformer.cifar10")
    theirs = Spikformer(
        img_size_h=32, img_size_w=32, patch_size=4, num_classes=10, embed_dims=256, num_heads=8, depths=4
    )
    assert count(net) == count(theirs)
    assert count(net) == pytest.approx(PARAMETERS["spikformer.cifar10"], rel=5e-3)
    assert [n.threshold for n in find_neurons(net)].count(0.5) == 4  # one in every attention


def test_vggsnn_has_tets_size_on_frames_of_48x48() -> None:
    with torch.device("meta"):
        net = VGGSNN_CIFAR10_DVS.network(Parts("m", VGGSNN_CIFAR10_DVS.node), (2, 48, 48), 10)
    assert count(net) == 9_271_498  # its 9.27 M


def test_vggsnn_takes_the_frames_that_papers_cut() -> None:
    pytest.importorskip("tonic")
    cut = registry("victims").get("vggsnn.cifar10_dvs", dataset="tonic(kind=CIFAR10DVS, steps=10, side=48)")
    assert cut.spec().shape == (10, 2, 48, 48) and cut.spec().steps == 10
    assert registry("victims").get("vggsnn.dvs_gesture").spec().shape == (10, 2, 128, 128)


SMALL = {
    "vgg11.cifar10": {"widths": (4, (4, 6)), "tail": (6,), "hidden": (16,), "steps": 2},
    "qcfs_vgg16.cifar10": {"widths": ((4, 4), 6), "hidden": (16,), "scale": 1.0},
    "resnet18.cifar10": {"stem": 4, "widths": (4, 8), "depths": (1, 1)},
    "qcfs_resnet18.cifar10": {"stem": 4, "widths": (4, 8), "depths": (1, 1)},
    "resnet19.cifar10": {"stem": 4, "widths": (8, 8), "depths": (1, 1), "hidden": (64,), "neuron": "plif"},
    "sew_resnet18.cifar10": {"stem": 4, "widths": (4, 8), "depths": (1, 1)},
    "wrn16_4.cifar10": {"stem": 4, "widths": (8, 8), "depths": (1, 1)},
    "spikformer.cifar10": {"width": 16, "heads": 2, "depth": 1},
    "vggsnn.cifar10_dvs": {"widths": (4, 6), "dataset": "cifar10_dvs"},
}


@pytest.fixture(params=SMALL, ids=SMALL.keys())
def recipe(request: pytest.FixtureRequest):
    return registry("victims").get(request.param, **SMALL[request.param])


def batch(shape: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    """Ten bright places, one a class: anything that sees learns them."""
    y = torch.arange(n) % 10
    x = 0.2 * torch.rand(n, *shape, generator=generator("batch"))
    for row, label in enumerate(y.tolist()):
        x[row, ..., 3 * label : 3 * label + 3, :] += 0.7
    return (x > 0.5).float() if len(shape) == 4 else x, y


def test_a_few_steps_lower_the_loss_on_32_samples(recipe) -> None:
    net = recipe.trainable(recipe.build(generator("init")))
    x, y = batch(recipe.data().shape, 32)
    split = Split(x, y, torch.arange(len(y)))
    report = fit(
        net,
        split,
        split[:10],
        schedule=Schedule(epochs=8, batch=32, lr=1e-2, policy="constant"),
        terms=lambda step: {"loss": step.loss(step.x, step.y)[0]},
        loss_of=recipe.loss,
        seed=0,
    )
    losses = [epoch["loss"] for epoch in report.history]
    assert losses[-1] < losses[0] - 0.02


def test_estimators_leave_the_forward_as_it_is_and_reach_the_input(recipe) -> None:
    victim = ModuleVictim(recipe.build(generator("init")).eval(), recipe.spec())
    x, y = batch(recipe.data().shape, 4)
    with torch.no_grad():
        expected = victim.logits(x)
    assert expected.shape == (4, 10) and torch.equal(expected, victim.logits(x))
    for name in ("native", "atan", "pdsg"):
        found = victim.loss_and_grad(x, y, cross_entropy, registry("estimators").get(name))
        assert torch.equal(found.logits, expected)
        assert bool((found.grad != 0).any()) and bool(torch.isfinite(found.grad).all())


def test_rows_are_independent_of_their_batch_mates(recipe) -> None:
    net = recipe.build(generator("init")).eval().double()
    victim = ModuleVictim(net, recipe.spec())
    x = batch(recipe.data().shape, 6)[0].double()
    with torch.no_grad():
        torch.testing.assert_close(victim.logits(x)[2:4], victim.logits(x[2:4]), rtol=1e-9, atol=1e-9)


def test_every_neuron_has_a_surrogate_of_its_own(recipe) -> None:
    neurons = find_neurons(recipe.build(generator("init")))
    assert len({id(n.module.surrogate_function) for n in neurons}) == len(neurons) > 1


def test_larger_images_reach_the_same_networks() -> None:
    for name in ("vgg16.tiny_imagenet", "wrn16_4.tiny_imagenet"):
        small = {"widths": (4, 4), "depths": (1, 1)} if name.startswith("wrn") else {"widths": (4, 4)}
        recipe = registry("victims").get(name, **small)
        net = recipe.build(generator("init")).eval()
        with torch.no_grad():
            assert net(torch.rand(1, 3, 64, 64, generator=generator("x"))).shape == (1, 200)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("vgg11.cifar10", {"neuron": "izhikevich"}, "'neuron': expected"),
        ("spikformer.cifar10", {"neuron": "qcfs"}, "neuron must be"),
        ("sew_resnet18.cifar10", {"neuron": "qcfs"}, "no ANN to convert"),
        ("vggsnn.cifar10_dvs", {"neuron": "qcfs"}, "takes images"),
        ("resnet18.cifar10", {"block": "bottleneck"}, "'block': expected"),
        ("spikformer.cifar10", {"width": 20}, "multiple of 8"),
        ("vgg16.cifar10", {"dataset": "digits"}, "no pixel"),
    ],
)
def test_impossible_networks_are_refused_by_name(name: str, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        registry("victims").get(name, **wrong).build(generator("init"))
