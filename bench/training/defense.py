"""Base of defenses: what the default for each part of a defense is, and how defenses combine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING
from typing import ClassVar

from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import DefenseSpec
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ConfigError
from robustspike.bench.training.fit import Schedule
from robustspike.bench.training.fit import Step
from robustspike.bench.training.fit import Terms

if TYPE_CHECKING:
    from robustspike.bench.training.recipe import VictimRecipe


class DefenseBase:
    """A training rule, a change of the network, or both. Subclasses are frozen dataclasses.

    The harness calls `fits` when it plans; `describe` and `transform` on a freshly built network (before
    training, and before weights are loaded); `schedule` once; `terms`, `before_step` and `after_step` once
    per training step; `eligible` once per epoch. A rule that only adds terms overrides `penalties`, one
    that only chooses other training points overrides `points`; `Combined` puts several together.
    """

    spec: ClassVar[DefenseSpec]
    second_order: ClassVar[bool] = False
    """Whether the rule differentiates a gradient (`create_graph`); neurons then keep each step's graph."""

    def fits(self, recipe: VictimRecipe) -> str | None:
        """Say why the defense does not apply to a victim, or None where it does."""
        del recipe
        return None

    def describe(self, spec: VictimSpec) -> VictimSpec:
        """Return the description of the hardened victim, e.g. that it is stochastic now."""
        return dataclasses.replace(spec, stochastic=spec.stochastic or self.spec.stochastic)

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        """Return the network with the defense built in (an input filter, other neurons).

        Args:
            module: the freshly built network; may be changed in place.
            spec: what `describe` returned.
        """
        del spec
        return module

    def schedule(self, schedule: Schedule) -> Schedule:
        """Return how to optimise, given how the victim is optimised without defense."""
        return schedule

    def points(self, step: Step) -> Tensor:
        """Return the inputs on which the victim's own loss is taken: by default the clean batch."""
        return step.x

    def penalties(self, step: Step, x: Tensor, logits: Tensor) -> Terms:
        """Return the weighted terms that are added to the victim's own loss.

        Args:
            step: the training step.
            x: what `points` returned; a leaf that carries a gradient (where this method is overridden).
            logits: the answers to x that the loss was taken on, with their graph.
        """
        del step, x, logits
        return {}

    def terms(self, step: Step) -> Terms:
        """Return the weighted loss terms of one training step; their sum is minimised."""
        x = self.points(step).detach().clone()
        x.requires_grad_(type(self).penalties is not DefenseBase.penalties)
        loss, logits = step.loss(x, step.y)
        return {"loss": loss, **self.penalties(step, x, logits)}

    def before_step(self, step: Step) -> None:
        """Change the parameters' gradients after the backward pass, before the optimiser uses them."""

    def after_step(self, step: Step) -> None:
        """Change the network after a step of the optimiser, e.g. project its weights."""

    def eligible(self, epoch: int, epochs: int) -> bool:
        """Say whether the checkpoint after an epoch (from 0) may be chosen, e.g. not during a ramp."""
        del epoch, epochs
        return True


@dataclasses.dataclass(frozen=True)
class Combined(DefenseBase):
    """Several defenses at once: each part's network change, training points and penalties, in order.

    Only rules that override `points` or `penalties` combine; one with `terms` of its own does not.

    Args:
        parts: the defenses; the training points are those of the last part that chooses some.
    """

    parts: tuple[DefenseBase, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if type(part).terms is not DefenseBase.terms:
                raise ConfigError(
                    f"combined defense: '{part.spec.name}' defines its whole loss and cannot be combined. "
                    "Use rules that add penalties or choose training points."
                )

    @property
    def spec(self) -> DefenseSpec:  # type: ignore[override]
        """What the parts declare, taken together."""
        specs = [part.spec for part in self.parts]
        return DefenseSpec(
            name="-".join(s.name for s in specs),
            trains=any(s.trains for s in specs),
            stochastic=any(s.stochastic for s in specs),
            hides_gradient=any(s.hides_gradient for s in specs),
            adaptive=tuple(dict.fromkeys(a for s in specs for a in s.adaptive)),
            source=" | ".join(s.source for s in specs),
        )

    @property
    def second_order(self) -> bool:  # type: ignore[override]
        """Whether any part differentiates a gradient."""
        return any(part.second_order for part in self.parts)

    def fits(self, recipe: VictimRecipe) -> str | None:
        return next((reason for part in self.parts if (reason := part.fits(recipe))), None)

    def describe(self, spec: VictimSpec) -> VictimSpec:
        for part in self.parts:
            spec = part.describe(spec)
        return spec

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        for part in self.parts:
            module = part.transform(module, spec)
        return module

    def schedule(self, schedule: Schedule) -> Schedule:
        for part in self.parts:
            schedule = part.schedule(schedule)
        return schedule

    def points(self, step: Step) -> Tensor:
        chosen = [part for part in self.parts if type(part).points is not DefenseBase.points]
        return chosen[-1].points(step) if chosen else step.x

    def penalties(self, step: Step, x: Tensor, logits: Tensor) -> Terms:
        found: dict[str, Tensor] = {}
        for part in self.parts:
            for name, value in part.penalties(step, x, logits).items():
                found[name] = found[name] + value if name in found else value
        return found

    def before_step(self, step: Step) -> None:
        for part in self.parts:
            part.before_step(step)

    def after_step(self, step: Step) -> None:
        for part in self.parts:
            part.after_step(step)

    def eligible(self, epoch: int, epochs: int) -> bool:
        return all(part.eligible(epoch, epochs) for part in self.parts)
