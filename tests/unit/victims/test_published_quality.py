"""Published quality models, small: shapes, gradients, a step of training, names of published weights."""

from __future__ import annotations

import json
from pathlib import Path

import click.testing
import pytest
import torch

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Task
from robustspike.bench.api import registry
from robustspike.bench.cli import robustspike
from robustspike.victims.quality.linearityiqa import norm_in_norm
from robustspike.victims.quality.trunks import WindowBlock

SMALL = {
    "hyperiqa": {"depths": (1, 1, 1, 1)},
    "dbcnn": {"widths": ((8,), (8,), (8,), (16,), (16,))},
    "linearityiqa": {"depths": (1, 1, 1, 1), "groups": 1, "base": 8},
    "maniqa": {"width": 16, "heads": 2},
}
EXPECTED = {  # names and shapes in the released code
    "hyperiqa": {
        "res.layer1.0.conv1.weight": (64, 64, 1, 1),
        "res.lda1_fc.weight": (16, 1024),
        "res.lda4_fc.weight": (176, 2048),
        "conv1.4.weight": (112, 512, 1, 1),
        "fc1w_conv.weight": (512, 112, 3, 3),
        "fc4w_conv.weight": (8, 112, 3, 3),
        "fc5b_fc.bias": (1,),
    },
    "dbcnn": {"features1.0.weight": (8, 3, 3, 3), "features2.24.weight": (128, 128, 3, 3), "fc.bias": (1,)},
    "linearityiqa": {
        "features.0.weight": (64, 3, 7, 7),
        "features.7.0.bn3.weight": (2048,),
        "dr6.0.weight": (1024, 1024),
        "dr7.4.weight": (64, 256),
        "regression.weight": (1, 128),
    },
    "maniqa": {
        "vit.cls_token": (1, 1, 16),
        "vit.pos_embed": (1, 785, 16),
        "vit.patch_embed.proj.weight": (16, 3, 8, 8),
        "vit.blocks.9.attn.qkv.weight": (48, 16),
        "vit.blocks.0.mlp.fc1.weight": (64, 16),
    },
}


@pytest.mark.parametrize("family", SMALL)
def test_it_answers_has_a_gradient_and_learns(family: str) -> None:
    recipe = registry("victims").get(f"{family}.koniq10k", **SMALL[family])
    module = recipe.build(torch.Generator().manual_seed(0))
    names = {key: tuple(value.shape) for key, value in module.net.state_dict().items()}
    assert EXPECTED[family].items() <= names.items()
    x = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([10.0, 90.0, 40.0])
    leaf = x.clone().requires_grad_(True)
    scores = module.eval()(leaf)
    assert scores.shape == (3, 1) and bool(((scores >= 0) & (scores <= 100)).all())
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient.flatten(1).abs().sum(1) > 0).all())
    for child in module.modules():
        child.training = not isinstance(child, torch.nn.Dropout)
    before = recipe.loss(module, x, y)[0]
    grads = torch.autograd.grad(before, list(module.parameters()), allow_unused=True)
    size = sum(float(g.square().sum()) for g in grads if g is not None) ** 0.5
    with torch.no_grad():
        for parameter, g in zip(module.parameters(), grads, strict=True):
            if g is not None:
                parameter -= 0.01 / size * g
        assert float(recipe.loss(module, x, y)[0]) < float(before)


def test_published_sizes() -> None:
    """Millions of parameters of the papers' trunks: ResNet-50 23.5, VGG-16 14.7, ResNeXt-101 32x8d 86.7."""
    with torch.device("meta"):
        counts = {
            family: registry("victims").get(f"{family}.koniq10k").network()
            for family in SMALL
            if family != "maniqa"
        }
    trunk = {
        "hyperiqa": [p for n, p in counts["hyperiqa"].res.named_parameters() if not n.startswith("lda")],
        "dbcnn": list(counts["dbcnn"].features1.parameters()),
        "linearityiqa": list(counts["linearityiqa"].features.parameters()),
    }
    found = {family: round(sum(p.numel() for p in of) / 1e6, 1) for family, of in trunk.items()}
    assert found == {"hyperiqa": 23.5, "dbcnn": 14.7, "linearityiqa": 86.7}


def test_a_shifted_window_sees_no_pixel_that_only_the_shift_made_a_neighbour() -> None:
    torch.manual_seed(0)
    block = WindowBlock(8, 2, 16, side=8, window=4, shift=2).eval()
    x = torch.randn(1, 64, 8)
    other = x.clone()
    other[0, 0] = torch.randn(8)  # the first pixel: its window, shifted, holds the other corner
    changed = (block(x) - block(other)).abs().sum(dim=2).view(8, 8) > 1e-6
    assert bool(changed[:2, :2].any()) and not bool(changed[6:].any()) and not bool(changed[:, 6:].any())
    plain = WindowBlock(8, 2, 16, side=8, window=4, shift=0).eval()
    changed = (plain(x) - plain(other)).abs().sum(dim=2).view(8, 8) > 1e-6
    assert bool(changed[:4, :4].all()) and int(changed.sum()) == 16


def test_norm_in_norm_is_zero_for_any_line_and_one_for_its_reverse() -> None:
    y = torch.tensor([1.0, 5.0])
    assert float(norm_in_norm(3 * y - 7, y)) == pytest.approx(0, abs=1e-6)
    assert float(norm_in_norm(-y, y)) == pytest.approx(1, abs=1e-6)


def test_they_are_listed_with_what_their_weights_ask_for() -> None:
    arguments = ["list", "victims", "--only", "name=hyperiqa.*", "--json"]
    rows = json.loads(click.testing.CliRunner().invoke(robustspike, arguments).output)
    assert {row["name"] for row in rows} == {"hyperiqa.koniq10k", "hyperiqa.live_challenge"}
    assert all(row["clean on test"] == "train or bring" for row in rows)


def test_another_size_is_refused(tmp_path: Path) -> None:
    recipe = registry("victims").get("dbcnn.koniq10k", dataset="koniq10k(crop=64)")
    with pytest.raises(ConfigError, match=r"it takes images 3x224x224, .* has 3x64x64"):
        recipe.build(torch.Generator())
    assert recipe.spec().task is Task.QUALITY
