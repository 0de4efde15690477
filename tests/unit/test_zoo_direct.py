"""The reference ANN and the directly trained victims: what their options mean, and what ships."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import find_neurons
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.victims.direct.lif_cnn import LIF_CNN_DIGITS
from robustspike.victims.direct.lif_cnn import tet_loss


def test_tet_loss_is_plain_cross_entropy_without_pull_at_one_step() -> None:
    logits = torch.randn(1, 6, 4, generator=generator("tet"))
    y = torch.arange(6) % 4
    expected = nn.functional.cross_entropy(logits[0], y)
    assert torch.allclose(tet_loss(logits, y, weight=0.0), expected)


def test_tet_loss_weighs_every_step_and_the_distance_to_the_threshold() -> None:
    logits = torch.randn(3, 5, 4, generator=generator("tet"), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 0])
    entropies = torch.stack([nn.functional.cross_entropy(step, y) for step in logits])
    pull = (logits - 1).square().mean()
    got = tet_loss(logits, y, weight=0.05)
    assert torch.allclose(got, 0.95 * entropies.mean() + 0.05 * pull, rtol=1e-12)


def test_unknown_objective_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="objective"):
        dataclasses.replace(LIF_CNN_DIGITS, objective="tett")  # type: ignore[arg-type]


def test_tet_names_the_network_that_has_no_steps() -> None:
    recipe = dataclasses.replace(LIF_CNN_DIGITS, objective="tet")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ConfigError, match="sequence"):
        recipe.loss(flat, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "kind", "hard", "detached", "steps"),
    [
        ("lif_cnn.digits", "LIFNode", True, True, 4),
        ("lif_cnn_t8.digits", "LIFNode", True, True, 8),
        ("lif_cnn_tet.digits", "LIFNode", True, True, 4),
        ("lif_cnn_soft.digits", "LIFNode", False, True, 4),
        ("lif_cnn_attached.digits", "LIFNode", True, False, 4),
        ("plif_cnn.digits", "ParametricLIFNode", True, True, 4),
        ("if_cnn.digits", "IFNode", True, True, 4),
    ],
)
def test_variants_are_built_from_what_their_name_says(
    name: str, kind: str, hard: bool, detached: bool, steps: int
) -> None:
    recipe = registry("victims").get(name)
    neurons = find_neurons(recipe.build(generator("build")))
    assert recipe.spec().steps == steps
    assert [type(n.module).__name__ for n in neurons] == [kind, kind]
    assert all((n.module.v_reset is not None) == hard for n in neurons)
    assert all(n.module.detach_reset == detached for n in neurons)
