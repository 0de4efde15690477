"""Does an attack still gain from more iterations? If so, its verdict at few iterations is no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

from robustspike.bench.api import Attack
from robustspike.bench.api import Evaluation
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import evaluate
from robustspike.bench.api import registry

STEPS = (10, 100, 1000)
"""The sweep of the literature on reliable evaluation."""


def iterations(
    victim: ModuleVictim,
    x: Tensor,
    y: Tensor,
    *,
    eps: Fraction | str,
    attack: str = "sapgd.linf(estimator='assg(bound=0.94)')",
    steps: Sequence[int] = STEPS,
    seed: int = 0,
) -> dict[int, Evaluation]:
    """Evaluate one attack at several numbers of iterations.

    Args:
        victim, x, y, eps, seed: see `evaluate`.
        attack: registry call of an attack with a parameter `steps`.
        steps: numbers of iterations.

    Cost: up to sum(steps) gradients per sample.
    Raises: ConfigError: the attack has no parameter `steps`.
    """
    found = {}
    for count in steps:
        chosen: Attack = registry("attacks").get(attack, steps=count)
        found[count] = evaluate(victim, chosen, x, y, eps=eps, seed=seed)
    return found
