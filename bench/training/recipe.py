"""Recipes: how a victim is built and trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contract.registry import registry
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.errors import ConfigError
from robustspike.bench.training.fit import Schedule
from robustspike.bench.training.fit import accuracy


@dataclass(frozen=True, kw_only=True)
class VictimRecipe:
    """Base of victim recipes.

    Args:
        name: registry name.
        dataset: registry name of the data set it is trained on.
        schedule: how it is optimised.
        shares: name of the recipe whose weights it uses, for variants that are not trained (another
            T of a converted network); "" for its own.
        starts: name of the victim whose trained weights its training starts from; "" for drawn weights.

    Class attributes:
        family: "direct", "converted", "timing" (spike times carry values throughout), "coded input"
            (a spike code at the input alone), "quality", ...; the group in listings.
        source: paper and equation, with each deviation.
        weights_package: package with the shipped weights, in its folder `weights`.
        retrains: whether a recipe that shares weights can also be trained; its own weights then come first.
        deployed: parameters that only say how trained weights are used (T of a converted network): any value
            takes the same weights. Every other parameter changes the weights, and so the name of their file.
    """

    name: str
    dataset: str
    schedule: Schedule = Schedule()
    shares: str = ""
    starts: str = ""

    family: ClassVar[str] = ""
    source: ClassVar[str] = ""
    weights_package: ClassVar[str] = "robustspike.victims"
    retrains: ClassVar[bool] = False
    deployed: ClassVar[tuple[str, ...]] = ()

    def spec(self) -> VictimSpec:
        """Describe the deployed victim."""
        raise TypeError(f"{type(self).__name__} does not define spec().")

    def build(self, rng: torch.Generator) -> nn.Module:
        """Build the untrained network that will be deployed: pixels [N, *shape] -> logits [N, K]."""
        raise TypeError(f"{type(self).__name__} does not define build().")

    def start(self, module: nn.Module, source: nn.Module, train: Split) -> None:
        """Turn the weights of the trained network that `starts` names into a start for this one.

        Args:
            module: what `build` returned; changed in place.
            source: the trained network, on the CPU; not to be changed.
            train: the training split.
        """
        del module, source, train
        raise ConfigError(
            f"victim '{self.name}': cannot start from '{self.starts}'. Only a recipe that says how, in "
            "`start`, can."
        )

    def trainable(self, module: nn.Module) -> nn.Module:
        """Return the network that is trained; it shares its parameters with the deployed one."""
        return module

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training loss of a batch and the logits."""
        logits = module(x)
        return nn.functional.cross_entropy(logits, y, label_smoothing=self.schedule.smoothing), logits

    def after_epoch(self, module: nn.Module, epoch: int, validation: Split) -> None:
        """Update what the trained network keeps between epochs, in its buffers (nothing by default)."""

    def augment(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return the inputs of a training batch, varied at random where the recipe says so."""
        return self.schedule.vary(x, rng)

    def score(self, module: nn.Module, split: Split) -> tuple[float, float]:
        """Return what a checkpoint is chosen by (larger is better), and its loss, on a split."""
        return accuracy(module, split)

    def figures(self, module: nn.Module, split: Split) -> dict[str, float]:
        """Return what the certificate says about the trained network on the test split."""
        return {"correct": round(accuracy(module, split)[0] * len(split))}

    def finish(self, module: nn.Module, data: Dataset, *, root: Path | None) -> None:
        """Complete the deployed network after training (calibrate a conversion, fold layers)."""

    def measure(self, module: nn.Module, data: Dataset, *, root: Path | None) -> dict[str, Any]:
        """Measure what the certificate states besides accuracy (JSON values; nothing by default)."""
        del module, data, root
        return {}

    def notes(self, certificate: Mapping[str, Any]) -> tuple[str, ...]:
        """Say what a reader must know before trusting a number on these weights (nothing by default)."""
        del certificate
        return ()

    def data(self) -> Dataset:
        """Return the recipe's data set."""
        loaded: Dataset = registry("datasets").get(self.dataset)
        return loaded
