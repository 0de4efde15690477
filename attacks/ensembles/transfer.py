"""Transfer: adversarial examples made on victims of the attacker's own, tried on the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import Access
from robustspike.bench.api import Attack
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Goal
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import find_weights
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry


def expanded(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """List the registered victims that names or shell-style patterns mean, pattern by pattern."""
    known = registry("victims")
    found = (known.names(pattern) or [pattern] for pattern in patterns)
    return tuple(dict.fromkeys(name for names in found for name in names))


def fitting_sources(spec: VictimSpec, patterns: tuple[str, ...]) -> list[str]:
    """Name the victims with trained weights that take a target's inputs and know its classes."""
    recipes = [registry("victims").get(name) for name in expanded(patterns)]
    return [
        recipe.name
        for recipe in recipes
        if (recipe.spec().shape, recipe.spec().classes) == (spec.shape, spec.classes)
        and find_weights(recipe, "none", 0, None) is not None
    ]


def usable_sources(oracle: Oracle, patterns: tuple[str, ...]) -> list[ModuleVictim]:
    """Load the sources that fit the target and are not the target itself."""
    loaded = [load_victim(name) for name in fitting_sources(oracle.spec, patterns)]
    return [source for source in loaded if source.spec.weights != oracle.spec.weights]


@dataclass(frozen=True)
class Transfer:
    """Run a white-box attack to its end on each source and ask the target for the label.

    Args:
        sources: names of the attacker's victims, or shell-style patterns of them (an ANN, a twin trained by
            BPTT). Those without weights, with other inputs or classes than the target, and the target
            itself, are passed over.
        attack: registry name of the white-box attack.

    Cost: 1 forward per source; the passes through the sources are the attacker's own and not counted.
    """

    sources: tuple[str, ...] = ("ann_cnn.*", "lif_cnn.*")
    attack: str = "mifgsm.linf"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="transfer.linf",
        geometries=("linf",),
        access=Access.LABEL,
        goals=(Goal.UNTARGETED, Goal.TARGETED),
        stochastic=True,
        source=(
            "Papernot et al. 2017, arXiv:1602.02697 (transfer); Lin & Sengupta 2025, arXiv:2504.08897 (from "
            "a BPTT-trained twin). Differs: the iterate of largest margin on the source is sent."
        ),
        cost="2 forwards",
    )

    def uses(self) -> dict[str, tuple[str, ...]]:
        return {"victims": expanded(self.sources), "attacks": (self.attack,)}

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse victims for which no source is known."""
        if fitting_sources(spec, self.sources):
            return None
        return "no source takes its inputs and knows its classes (of those with trained weights)"

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        inner: Attack = registry("attacks").get(self.attack)
        sources = usable_sources(oracle, self.sources)
        if not sources:
            raise ConfigError(
                f"{self.spec.name}: no source of {', '.join(self.sources) or '(none given)'} fits inputs "
                f"{list(oracle.spec.shape)} with {oracle.spec.classes} classes and differs from the target. "
                "Name a victim trained on the same data in `sources`."
            )
        x = x0.clone()
        for source in sources:
            rows = oracle.active(forwards=1)
            if not len(rows):
                break
            streams = rng.fork("source", source.spec.name, rows=rows)
            local = oracle.local(source, rows, rng=streams)
            x[rows] = inner.run(local, x0[rows].clone(), y[rows].clone(), rng=streams)
            oracle.labels(x[rows], rows)
        best, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x0.dim() - 1)), best, x)
