"""Transfer between quality models: images made on the attacker's own, tried on the victim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.attacks.ensembles.transfer import expanded
from robustspike.attacks.ensembles.transfer import fitting_sources
from robustspike.attacks.ensembles.transfer import usable_sources
from robustspike.attacks.quality.iterated import GOALS
from robustspike.attacks.quality.iterated import QUALITY
from robustspike.attacks.quality.iterated import directions
from robustspike.attacks.quality.iterated import per_image
from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import find_weights
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry


@dataclass(frozen=True)
class QualityTransfer:
    """I-FGSM on other quality models; the victim only answers for the results.

    Args:
        sources: names of the attacker's models, or shell-style patterns of them. Those without weights, with
            inputs of another size than the victim's, and the victim itself, are passed over.
        steps, step: as in quality.ifgsm.

    Cost: 1 forward of the victim, and 1 per source.
    """

    sources: tuple[str, ...] = ("cnn_iqa.*", "snn_iqa.*")
    steps: int = 10
    step: float = 2.5
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.transfer",
        geometries=("linf",),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        source="Transfer of I-FGSM; the direction comes from the victim's own clean score. Differs: none.",
        cost="3 forwards",
    )

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step > 0 or not self.sources:
            raise ConfigError(
                f"{self.spec.name}: steps must be at least 1, step above 0 and sources not empty, got "
                f"{self.steps}, {self.step} and {self.sources}."
            )

    def uses(self) -> dict[str, tuple[str, ...]]:
        return {"victims": expanded(self.sources)}

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse victims for which no source is known."""
        return None if fitting_sources(spec, self.sources) else "no source takes images of its size"

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        rows = oracle.active(forwards=1)
        if not len(rows):
            return x0.clone()
        aim = directions(oracle, oracle.logits(x0[rows], rows).squeeze(1))
        for source in self.networks(oracle):
            local = oracle.local(source, rows, rng=rng.fork("source", source.spec.name, rows=rows))
            x = self.climbed(local, x0[rows], per_image(aim, x0))
            able = torch.isin(rows, oracle.active(forwards=1))
            if bool(able.any()):
                oracle.logits(x[able], rows[able])
        best, seen = oracle.best()
        return torch.where(per_image(seen, x0), best, x0)

    def networks(self, oracle: Oracle) -> list[ModuleVictim]:
        """Load the networks that images are made on."""
        return usable_sources(oracle, self.sources)

    def climbed(self, local: Oracle, x0: Tensor, aim: Tensor) -> Tensor:
        """Return the last iterate of I-FGSM on one source."""
        x, everyone = x0.clone(), torch.arange(len(x0), device=x0.device)
        size = local.radius * self.step / self.steps
        for _ in range(self.steps):
            gradient = torch.nan_to_num(local.loss_and_grad(x, everyone, "score").grad)
            x = local.project(x + size * (gradient * aim).sign(), everyone)
        return x


@dataclass(frozen=True)
class QualityUnaware(QualityTransfer):
    """I-FGSM on the same network without its defense: what an attacker gets who does not know of one.

    The row beside the adaptive ones; on an undefended victim it is quality.ifgsm. Never the measure of a
    defense: it says how much of one is mere ignorance of it.

    Args:
        steps, step: as in quality.ifgsm.

    Cost: 2 forwards of the victim; the undefended network's passes are the attacker's own.
    """

    sources: tuple[str, ...] = ("the victim's own, undefended",)
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="quality.unaware",
        geometries=("linf",),
        access=Access.SCORE,
        tasks=QUALITY,
        goals=GOALS,
        source=(
            "The non-adaptive row of Guardians of Image Quality, ICML 2025, arXiv:2408.01541, with I-FGSM. "
            "Differs: the direction comes from the defended victim's clean score."
        ),
        cost="2 forwards",
    )

    def uses(self) -> dict[str, tuple[str, ...]]:
        return {"victims": ()}  # only the victim itself, on which every record hangs

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse black boxes, and victims whose undefended weights are not registered and shipped."""
        if spec.name not in registry("victims").names():
            return "its undefended network is not registered"
        if spec.black_box:
            return "its undefended network is a black box that has no gradient"
        found = find_weights(registry("victims").get(spec.name), "none", 0, None)
        return None if found is not None else "its undefended weights are not shipped"

    def networks(self, oracle: Oracle) -> list[ModuleVictim]:
        return [load_victim(oracle.spec.name)]
