"""RSC: randomized smoothing coding, fresh Gaussian noise on the input of every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.crafting import pixels_only
from robustspike.defenses.structure import SequenceNoise
from robustspike.defenses.structure import needs_time_first_body
from robustspike.defenses.structure import put_first


@dataclass(frozen=True)
class SmoothingCoding(Adversarial):
    """Show step t the image plus sigma n[t], n[t] fresh for every step, in training and at test time.

    Args:
        sigma: standard deviation in pixel units.
        eps: radius of additional adversarial training, 0 for none.

    Cost: as plain training.
    """

    eps: float = 0.0
    sigma: float = 0.2
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="rsc",
        trains=True,
        stochastic=True,
        adaptive=("eot",),
        source=(
            "Wu et al., ACM MM 2024, arXiv:2407.20099. Differs: sigma is not published, chosen here; the "
            "training scheme E-RSCT is not specified and replaced by plain training through the coding."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma < 0:
            raise ConfigError(f"rsc: sigma must be 0 or more, got {self.sigma}.")

    def fits(self, recipe: VictimRecipe) -> str | None:
        return pixels_only(recipe) or needs_time_first_body(recipe)

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        return put_first(module, SequenceNoise(self.sigma))
