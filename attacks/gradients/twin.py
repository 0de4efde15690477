"""ANN twin: the gradient of the non-spiking network that a converted or tandem victim came from."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ContractError
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import LossGrad
from robustspike.bench.api import Memory
from robustspike.bench.api import Neuron


@dataclass(frozen=True)
class Twin(GradientEstimator):
    """Differentiate `module.twin(x) -> logits`, an ANN that shares the victim's weights.

    The returned logits and losses are those of the true spiking pass.

    Cost: 2 forwards + 1 backward (one forward is the twin's).
    Raises: ContractError: the victim's module offers no twin, or one of another shape.
    """

    name: ClassVar[str] = "twin"
    forwards: ClassVar[int] = 2
    source: ClassVar[str] = (
        "Transfer from the source ANN, as used against converted networks by Sharmin et al., ECCV 2020. "
        "Differs: the twin shares the deployed weights, and every iterate is judged on the spiking network."
    )

    def fits(self, module: nn.Module, neurons: Sequence[Neuron]) -> str | None:
        return None if callable(getattr(module, "twin", None)) else "the victim has no ANN twin"

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
        twin = getattr(module, "twin", None)
        if not callable(twin):
            raise ContractError(
                f"estimator 'twin': the victim's module {type(module).__name__} has no method twin(x) -> "
                "logits. Only converted and tandem victims have an ANN twin; choose another estimator."
            )
        with torch.no_grad():
            logits = call(x.detach())

        def answer(inputs: Tensor) -> Tensor:
            out: Tensor = twin(inputs)
            if out.shape != logits.shape:
                raise ContractError(
                    f"estimator 'twin': expected logits {list(logits.shape)} from "
                    f"{type(module).__name__}.twin, got {list(out.shape)}."
                )
            return out

        mirrored = super().loss_and_grad(module, answer, x, loss, neurons=neurons, memories=memories)
        return LossGrad(loss(logits), mirrored.grad, logits)
