"""FGSM-AT and PGD-AT: train on adversarial examples only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustspike.bench.api import DefenseSpec
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.crafting import Start


@dataclass(frozen=True)
class FgsmTraining(Adversarial):
    """Train on one-step adversarial examples from the clean point.

    Cost: 2 times plain training.
    """

    steps: int = 1
    step: float = 1.0
    start: Start = "clean"
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="fgsm_at",
        trains=True,
        adaptive=("wide_surrogate",),
        source="Goodfellow et al. 2015, arXiv:1412.6572. Differs: adversarial points only, no clean share.",
    )


@dataclass(frozen=True)
class PgdTraining(Adversarial):
    """Train on PGD examples from a uniform start.

    Cost: steps + 1 times plain training.
    """

    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="pgd_at",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Madry et al. 2018, arXiv:1706.06083, eq. 2.1. Differs: 5 steps of eps/2 at the suite's eps; the "
            "attack sees running BatchNorm statistics (SNN-RAT's and FEEL's code), batch ones as an option."
        ),
    )
