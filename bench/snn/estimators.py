"""Gradient estimators: which backward pass an attack sees through spiking neurons.

An estimator is a frozen dataclass. It is installed for the length of one pass and removed; the
forward output is bit-identical with and without it. Any optimiser runs with any estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import ClassVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.errors import ContractError
from robustspike.bench.snn.neurons import FunctionRule
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import SequenceRule
from robustspike.bench.snn.neurons import SpikeRule


@dataclass
class Memory:
    """What an estimator may remember of one neuron during one attack run.

    Args:
        rows: positions (in the attacked batch of n samples) of the rows of the present pass.
        n: number of samples of the attacked batch; allocate per-sample state with this many rows.
        frozen: true for the second and later draws of one averaged gradient (EOT): statistics that
            follow the attack's iterations must not move.
        distinct: whether no row is known to stand twice; false where nobody has looked.
        store: the estimator's own values, kept from pass to pass.
    """

    rows: Tensor
    n: int
    frozen: bool = False
    distinct: bool = False
    store: dict[str, Any] = field(default_factory=dict)


class LossGrad(NamedTuple):
    """What one gradient query returns: detached tensors, one row per queried row."""

    loss: Tensor
    grad: Tensor
    logits: Tensor


class GradientEstimator:
    """Base of all estimators. Subclasses override `rule`; few override `loss_and_grad`.

    Class attributes:
        name: registry name.
        source: paper and equation, with each deviation.
        forwards, backwards: passes charged for one gradient.
        multi_step_only: whether it needs neurons that process whole sequences.
        needs_dynamics: whether it needs a neuron's equations (rates, leak), not its potential alone.
        detach_reset: whether the gradient through the neurons' reset is cut; None leaves it as it is.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    forwards: ClassVar[int] = 1
    backwards: ClassVar[int] = 1
    multi_step_only: ClassVar[bool] = False
    needs_dynamics: ClassVar[bool] = False
    detach_reset: bool | None = None

    @property
    def mixes_samples(self) -> bool:
        """Whether the gradient of a sample hangs on its batch mates: where a parameter `scope` is "batch".

        Its batches are never cut into several passes, whatever memory they take.
        """
        return getattr(self, "scope", "sample") == "batch"

    @property
    def checked_as(self) -> GradientEstimator:
        """The estimator that is tried to see whether this one applies: itself, unless it draws numbers."""
        return self

    def rule(self, neuron: Neuron, memory: Memory) -> SpikeRule | SequenceRule | None:
        """Return the backward rule of one neuron for one pass; None keeps the neuron's own.

        Called once per neuron and pass. A `SpikeRule` replaces the slope of the firing step; a
        function `(forward, x_seq) -> spikes` replaces the backward pass of the whole layer.
        """
        del neuron, memory
        return None

    def fits(self, module: nn.Module, neurons: Sequence[Neuron]) -> str | None:
        """Say why the estimator does not apply to a victim's network, or None where it does."""
        del module
        if not neurons:
            return "the network has no spiking neurons, so its own gradient is the only one"
        for neuron in neurons:
            if neuron.refusal is not None:
                return f"neuron '{neuron.name}' {neuron.refusal}"
            reason = (
                (self.needs_dynamics and neuron.no_dynamics)
                or (self.multi_step_only and neuron.no_sequence)
                or (self.detach_reset is not None and neuron.no_resetting)
            )
            if reason:
                return reason
        return None

    def loss_and_grad(
        self,
        module: nn.Module,
        call: Callable[[Tensor], Tensor],
        x: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        neurons: Sequence[Neuron],
        memories: Sequence[Memory],
    ) -> LossGrad:
        """Compute per-sample losses and the gradient of their sum with respect to x.

        Args:
            module: the victim's network (estimators that differentiate another path need it).
            call: the victim's forward pass, x -> logits, with the noise of this pass bound.
            x: inputs [N, ...].
            loss: logits -> [N].
            neurons: the module's spiking neurons.
            memories: one per neuron.

        Raises:
            ContractError: the logits have no gradient with respect to x.
        """
        del module
        x = x.detach().requires_grad_(True)
        with torch.enable_grad(), self.installed(neurons, memories):
            logits = call(x)
            values = loss(logits)
            if not values.requires_grad:
                raise ContractError(
                    "victim: its logits carry no gradient with respect to the input. A neuron that "
                    "detaches its spikes in evaluation mode, or a hard threshold without a "
                    "surrogate, cuts the graph; no white-box number can be reported for it."
                )
            (grad,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
        if grad is None:
            raise ContractError(
                "victim: the gradient of its logits with respect to the input is None: the input "
                "is not part of the graph. Check that the forward pass uses x and not a copy."
            )
        return LossGrad(values.detach(), grad.detach(), logits.detach())

    @contextmanager
    def installed(self, neurons: Sequence[Neuron], memories: Sequence[Memory]) -> Iterator[None]:
        """Replace the neurons' backward rules for the length of the block."""
        with ExitStack() as stack:
            for neuron, memory in zip(neurons, memories, strict=True):
                if self.detach_reset is not None:
                    stack.enter_context(neuron.resetting(self.detach_reset))
                rule = self.rule(neuron, memory)
                if rule is None:
                    continue
                if isinstance(rule, SpikeRule):
                    stack.enter_context(neuron.spiking_by(rule))
                elif neuron.is_multi_step:
                    stack.enter_context(neuron.sequence_by(rule))
                else:
                    raise ContractError(
                        f"estimator '{self.name}': neuron '{neuron.name}' processes one step a call, "
                        "but this estimator needs the whole sequence. Set its step_mode to 'm'."
                    )
            yield


@dataclass(frozen=True)
class BpttEstimator(GradientEstimator):
    """Base of the estimators that replace at most the slope of a firing and unroll the rest over time.

    Args:
        detach_reset: cut (true) or keep (false) the gradient through the reset; None: as the neuron
            itself does. The forward pass is the same.
    """

    detach_reset: bool | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class SurrogateEstimator(BpttEstimator):
    """A fixed surrogate: one function of the distance to the threshold for every neuron."""

    def derivative(self, u: Tensor) -> Tensor:
        """Return ds/du at u = h - v_threshold, in membrane units."""
        raise TypeError(f"{type(self).__name__} does not define derivative(u).")

    def rule(self, neuron: Neuron, memory: Memory) -> SpikeRule:
        return FunctionRule(self.derivative)


@dataclass(frozen=True)
class Native(BpttEstimator):
    """The gradient that autograd gives: for spiking neurons, the surrogate they were trained with."""

    name: ClassVar[str] = "native"
    source: ClassVar[str] = "The victim's own surrogate (oracle knowledge of the training). Differs: none."

    def fits(self, module: nn.Module, neurons: Sequence[Neuron]) -> str | None:
        return None if self.detach_reset is None else super().fits(module, neurons)
