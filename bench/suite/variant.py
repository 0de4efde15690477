"""Names resolved, once: which network a cell means."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from functools import lru_cache
from pathlib import Path

from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import registry
from robustspike.bench.suite.cell import Cell
from robustspike.bench.suite.cell import Params
from robustspike.bench.suite.cell import victim_label
from robustspike.bench.training.defense import DefenseBase
from robustspike.bench.training.recipe import VictimRecipe
from robustspike.bench.training.weights import find_weights
from robustspike.bench.training.weights import trained_recipe
from robustspike.bench.training.weights import trained_with


@dataclass(frozen=True)
class Variant:
    """One network that can be measured: a victim, its parameters and training seed, and its defense.

    Args:
        victim, params, seed, defense: its plain identity, which cells hold and workers get; the defense in
            its canonical spelling.
        family: name of the defense, without parameters.
        recipe: how the victim is built.
        rule: the defense as it is asked for.
        weights: the file of its weights, None where it was not trained.
        folder: the folder of weights that was looked into first.
    """

    victim: str
    params: Params
    seed: int
    defense: str
    family: str
    recipe: VictimRecipe
    rule: DefenseBase
    weights: Path | None
    folder: Path | None

    @property
    def label(self) -> str:
        """The victim's name in tables."""
        return victim_label(self.victim, self.params, self.seed)

    @cached_property
    def made(self) -> VictimRecipe:
        """The recipe with the schedule that the weights were trained with, as their certificate says."""
        return trained_recipe(self.recipe, self.defense, self.seed, self.folder)

    @cached_property
    def trained(self) -> DefenseBase:
        """The defense with the parameters that the weights were trained with, as their certificate says."""
        return trained_with(self.recipe, self.defense, self.seed, self.folder)


@lru_cache(maxsize=4096)
def resolve(victim: str, params: Params, seed: int, defense: str, folder: Path | None) -> Variant:
    """Look up the names of a variant. Nothing is loaded but a small certificate, and that when asked for.

    Args:
        victim: registry name.
        params: changed parameters of its recipe.
        seed: training seed.
        defense: registry name, or a call: "mppd(rho=0)".
        folder: a folder with more weights.

    Raises: ConfigError: unknown names or parameters.
    """
    recipe: VictimRecipe = registry("victims").get(victim, **dict(params))
    label = registry("defenses").canonical(defense)
    rule: DefenseBase = registry("defenses").get(label)
    weights = find_weights(recipe, label, seed, folder)
    return Variant(victim, params, seed, label, parse_call(label)[0], recipe, rule, weights, folder)


def variant_of(cell: Cell, folder: Path | None) -> Variant:
    """Return the variant that a cell is measured on."""
    return resolve(cell.victim, cell.victim_params, cell.victim_seed, cell.defense, folder)
