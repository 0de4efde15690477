"""The checks of victim recipes, and the network that is checked where a recipe has no weights yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robustspike.bench.contract.registry import registry
from robustspike.bench.data.base import Dataset
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import generator
from robustspike.bench.snn.neurons import reset
from robustspike.bench.snn.neurons import supplied_with
from robustspike.bench.testing.check import Checks
from robustspike.bench.testing.check import require
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import load_victim
from robustspike.bench.victim.module import ModuleVictim


@torch.no_grad()
def liven(network: torch.nn.Module, x: torch.Tensor) -> None:
    """Fit the running statistics of an untrained network to data: without them it hardly spikes."""
    layers = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    with supplied_with(network, RowStreams.derive(range(len(x)), "contract")):
        reset(network)
        network.train()(x)
        reset(network)
    network.eval()
    for layer, momentum in zip(layers, usual, strict=True):
        layer.momentum = momentum


def victim_of_recipe(recipe: Any, *, weights: Path | None = None) -> tuple[ModuleVictim, str]:
    """Return a registered recipe's victim, and which: "its weights FILE" or "its untrained network"."""
    path = find_weights(recipe, "none", 0, weights)
    if path is not None:
        return load_victim(recipe.name, weights=weights), f"its weights {path.name}"
    module = recipe.build(generator("contract"))
    data: Dataset = recipe.data()
    if not data.needs_root:
        liven(recipe.trainable(module), data.load("train").x[:64])
    return ModuleVictim(module, recipe.spec()), "its untrained network"


def recipe_declares_itself(recipe: Any) -> None:
    spec = recipe.spec()
    require(recipe.name == recipe.name.lower(), f"name must be lower-case, got '{recipe.name}'")
    require(spec.name == recipe.name, f"spec().name is '{spec.name}', the recipe's name '{recipe.name}'")
    registry("datasets").get(recipe.dataset)


def recipe_fits_its_data(recipe: Any) -> None:
    spec, data = recipe.spec(), recipe.data()
    for what in ("shape", "classes", "domain", "task", "bounds"):
        mine, given = getattr(spec, what), getattr(data, what)
        require(mine == given, f"spec().{what} is {mine}, that of data set '{recipe.dataset}' is {given}")


def recipe_builds_one_network_a_seed(recipe: Any) -> None:
    first, again = (recipe.build(generator("contract")).state_dict() for _ in range(2))
    require(first.keys() == again.keys(), "two networks of one seed have other parameters")
    for name, tensor in first.items():
        require(torch.equal(tensor, again[name]), f"'{name}' differs between two networks of one seed")


RECIPE_CHECKS: Checks = {
    check.__name__: check
    for check in (recipe_declares_itself, recipe_fits_its_data, recipe_builds_one_network_a_seed)
}
