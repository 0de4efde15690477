"""Base of defenses: what the default for each part of a defense is."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import ClassVar

from torch import nn

from robustspike.bench.contracts import DefenseSpec
from robustspike.bench.training import Step
from robustspike.bench.training import Terms

if TYPE_CHECKING:
    from robustspike.bench.recipes import VictimRecipe


class DefenseBase:
    """A training rule, a change of the network, or both. Subclasses are frozen dataclasses.

    The harness calls `fits` when it plans, `transform` on a freshly built network (before training,
    and before weights are loaded), `terms` once per training step.
    """

    spec: ClassVar[DefenseSpec]

    def fits(self, recipe: VictimRecipe) -> str | None:
        """Say why the defense does not apply to a victim, or None where it does."""
        del recipe
        return None

    def transform(self, module: nn.Module) -> nn.Module:
        """Return the network with the defense built in (an input filter, other neurons)."""
        return module

    def terms(self, step: Step) -> Terms:
        """Return the weighted loss terms of one training step; their sum is minimised."""
        return {"loss": step.loss(step.x, step.y)[0]}
