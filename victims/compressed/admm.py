"""Compression by ADMM: weights drawn to a pruned or quantised set while training, with fewer spikes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Dataset
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import Step
from robustspike.bench.api import Terms
from robustspike.bench.api import accuracy
from robustspike.bench.api import find_neurons
from robustspike.bench.api import fit
from robustspike.victims.compressed.rounding import prune
from robustspike.victims.compressed.rounding import quantise
from robustspike.victims.direct.lif_cnn import LifCnn


class Multipliers:
    """The ADMM variables of some weights: Z in the set, U the scaled dual, rho the strength.

    Args:
        weights: the weights to compress.
        project: projection on the set.
        rho: initial strength.
        ramp: factor of rho every `every` epochs, while U is divided by it; a fixed rho does not converge
            on small nets.
    """

    def __init__(
        self,
        weights: list[nn.Parameter],
        project: Callable[[Tensor], Tensor],
        *,
        rho: float = 1e-3,
        ramp: float = 4.0,
        every: int = 3,
    ) -> None:
        self.weights = weights
        self.project = project
        self.rho, self.ramp, self.every = rho, ramp, every
        with torch.no_grad():
            self.z = [project(w) for w in weights]
        self.u = [torch.zeros_like(w) for w in weights]

    def penalty(self) -> Tensor:
        """Return rho/2 sum ||W - Z + U||^2."""
        parts = [(w - z + u).square().sum() for w, z, u in zip(self.weights, self.z, self.u, strict=True)]
        return self.rho / 2 * torch.stack(parts).sum()

    @torch.no_grad()
    def update(self, epoch: int) -> None:
        """Project, move the dual, and strengthen rho where its turn has come."""
        self.z = [self.project(w + u) for w, u in zip(self.weights, self.u, strict=True)]
        for w, z, u in zip(self.weights, self.z, self.u, strict=True):
            u.add_(w - z)
        if epoch % self.every == self.every - 1:
            self.rho *= self.ramp
            for u in self.u:
                u.div_(self.ramp)

    @torch.no_grad()
    def gap(self) -> float:
        """Return the largest relative distance of a weight from its projection."""
        return max(float((w - self.project(w)).norm() / w.norm().clamp(min=1e-12)) for w in self.weights)


class SpikeRates:
    """Collects the mean firing rate of every neuron layer during a forward pass, with its graph."""

    def __init__(self, module: nn.Module) -> None:
        self.rates: list[Tensor] = []
        self._handles = [
            neuron.module.register_forward_hook(lambda m, i, out: self.rates.append(out.mean()))
            for neuron in find_neurons(module)
        ]

    def mean(self) -> Tensor:
        """Return the mean over the layers since the last call, and forget them."""
        out = torch.stack(self.rates).mean()
        self.rates.clear()
        return out

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def compressible(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all convolutions and linear layers but the first, which stays dense."""
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [layer.get_parameter("weight") for layer in layers[1:]]


@dataclass(frozen=True, kw_only=True)
class AdmmCnn(LifCnn):
    """A directly trained SNN that is then pruned, quantised, or both, by ADMM.

    `schedule` trains the dense net. Then ADMM for `rounds` epochs, the hard projection, and `retrain`
    epochs in which zeros stay zero (pruning) or the projected weights stay fixed (quantisation).

    Args:
        keep: share of the weights of each layer that is not zero.
        bits: width of the weights; 0 leaves them real.
        activity: weight of the mean firing rate in the loss.
        rounds: epochs of ADMM.
        retrain: epochs after the projection.
    """

    keep: float = 0.25
    bits: int = 0
    activity: float = 0.3
    rounds: int = 24
    retrain: int = 8

    family: ClassVar[str] = "compressed"
    source: ClassVar[str] = (
        "Deng et al., arXiv:1911.00822. Differs: rho grows 4-fold every 3 epochs (fixed rho did not converge "
        "on small nets); the first layer stays dense; prune, then quantise what is left."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1 or self.bits < 0:
            raise ConfigError(
                f"victim '{self.name}': keep must be in (0, 1] and bits 0 or more, got {self.keep} and "
                f"{self.bits}."
            )

    def project(self, w: Tensor) -> Tensor:
        """Return the nearest weight in the set."""
        pruned = prune(w, self.keep)
        return quantise(pruned, self.bits) if self.bits else pruned

    def finish(self, module: nn.Module, data: Dataset, *, root: Path | None) -> None:
        """Run ADMM, project, and train what is still free."""
        training, validation = data.load("train", root=root), data.load("validation", root=root)
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        weights = compressible(module)
        multipliers = Multipliers(weights, self.project)
        rates = SpikeRates(module)

        def admm_terms(step: Step) -> Terms:
            loss, _ = step.loss(step.x, step.y)
            return {
                "loss": loss,
                "admm": multipliers.penalty(),
                "activity": self.activity * rates.mean(),
            }

        def score(net: nn.Module, split: Split) -> tuple[float, float]:
            found = accuracy(net, split)
            rates.rates.clear()
            return found

        common: dict[str, Any] = {"loss_of": self.loss, "seed": 0, "score": score}
        fit(
            module,
            training,
            validation,
            schedule=Schedule(epochs=self.rounds, policy="constant"),
            terms=admm_terms,
            after_epoch=lambda net, epoch, split: multipliers.update(epoch),
            eligible=lambda epoch, epochs: epoch == epochs - 1,
            **common,
        )
        with torch.no_grad():
            for w in weights:
                w.copy_(self.project(w))
        fixed = [w.detach().clone() for w in weights]

        def restore(step: Step) -> None:
            del step
            with torch.no_grad():
                for w, kept in zip(weights, fixed, strict=True):
                    w.copy_(kept if self.bits else w * (kept != 0))

        def terms(step: Step) -> Terms:
            return {"loss": step.loss(step.x, step.y)[0], "activity": self.activity * rates.mean()}

        fit(
            module,
            training,
            validation,
            schedule=Schedule(epochs=self.retrain),
            terms=terms,
            after_step=restore,
            **common,
        )
        rates.close()

    def measure(self, module: nn.Module, data: Dataset, *, root: Path | None) -> dict[str, Any]:
        """Return the share of non-zero weights and the number of distinct ones, per compressed layer."""
        weights = compressible(module)
        return {
            "nonzero": [round(float((w != 0).double().mean()), 4) for w in weights],
            "levels": [len(set(w.flatten().tolist())) for w in weights],
        }


ADMM_PRUNED_CNN_DIGITS = AdmmCnn(name="admm_pruned_cnn.digits")
ADMM_QUANT_CNN_DIGITS = AdmmCnn(name="admm_quant_cnn.digits", keep=0.5, bits=4)
