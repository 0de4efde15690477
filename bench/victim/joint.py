"""Several victims attacked at once by one input: a sample is broken only where every one of them is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.victim.module import ModuleVictim


class JointVictim(ModuleVictim):
    """Victims with one input: its logits are theirs side by side, [N, members * classes].

    A clean sample counts as right where every member is right, an attacked one as broken where every
    member is wrong (with a targeted goal: answers the target). Losses are means over the members. A pass
    through it counts as one pass for each member.

    Args:
        members: classifiers with the same inputs and classes.

    Raises: ContractError: fewer than two members, or members that differ in inputs, classes or task.
    """

    def __init__(self, members: tuple[ModuleVictim, ...]) -> None:
        kinds = {(m.spec.shape, m.spec.classes, m.spec.domain, m.spec.task, m.spec.bounds) for m in members}
        if len(members) < 2 or len(kinds) > 1:
            named = ", ".join(f"{m.spec.name} {list(m.spec.shape)}" for m in members)
            raise ContractError(
                f"joint: expected at least two victims with the same inputs, classes and task, got {named}."
            )
        first = members[0].spec
        spec = VictimSpec(
            name=" & ".join(m.spec.name for m in members),
            shape=first.shape,
            classes=first.classes,
            domain=first.domain,
            task=first.task,
            bounds=first.bounds,
            steps=max(m.spec.steps for m in members),
            stochastic=any(m.spec.stochastic for m in members),
        )
        super().__init__(nn.ModuleList([m.module for m in members]), spec)
        self.members = members

    @cached_property
    def neurons(self) -> tuple[Neuron, ...]:
        """The layers of all members that make spikes."""
        return tuple(neuron for member in self.members for neuron in member.neurons)

    def _pass(self, x: Tensor, noise: RowStreams | None) -> Tensor:
        """Answer a batch: [N, members * classes], the members one after the other."""
        answers = []
        for index, member in enumerate(self.members):
            streams = None
            if member.spec.stochastic and noise is not None:
                streams = noise.fork("member", index)
            answers.append(member.logits(x, noise=streams))
        return torch.cat(answers, dim=1)


def joint(*members: ModuleVictim) -> JointVictim:
    """Make one victim of several: see `JointVictim`."""
    return JointVictim(members)


def split(logits: Tensor, classes: int) -> Tensor:
    """Return the logits of every member: [N, members * classes] -> [N, members, classes]."""
    return logits.unflatten(1, (-1, classes))


def over_members(
    function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor, classes: int
) -> Tensor:
    """Apply a per-sample function of (logits, y) to every member: [N, members]."""
    parts = split(logits, classes)
    count = parts.shape[1]
    if count == 1:
        return function(logits, y)[:, None]
    return function(parts.flatten(0, 1), y.repeat_interleave(count)).view(-1, count)


def answered_class(logits: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the predicted class: of the first member that is wrong, else of all of them."""
    labels = split(logits, classes).argmax(dim=2)
    first = (labels != y[:, None]).to(torch.int8).argmax(dim=1)
    return labels.gather(1, first[:, None]).squeeze(1)
