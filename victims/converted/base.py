"""What all converted victims share: the source network's shape, and the report of what conversion cost."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import ClassVar

import torch
from torch import nn

from robustspike.bench.api import Dataset
from robustspike.bench.api import Schedule
from robustspike.bench.api import Split
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.victims.converted.nodes import ConvertedNet
from robustspike.victims.converted.nodes import latency_curve
from robustspike.victims.layout import Widths
from robustspike.victims.layout import activation_quantiles
from robustspike.victims.layout import copy_layers
from robustspike.victims.layout import relu_network

MEASURED = 1000
"""Test samples on which the ANN and the latency curve are measured: 32 steps are long on real data."""

LARGEST_LOSS = 0.02
"""Accuracy that a conversion may lose before it is marked: below, its robustness means nothing."""


@dataclass(frozen=True, kw_only=True)
class ConvertedRecipe(VictimRecipe):
    """Base of converted victims: trains an ANN of the reference shape, deploys its spiking view.

    Args:
        steps: time steps T of the spiking network.
        widths: channels of the convolutions; a tuple among them is a block of several before one pool.
        coverage: where training `starts` from a ReLU network, the share of its positive activations that
            lie below the first lambda.
    """

    dataset: str = "digits"
    steps: int = 4
    widths: Widths = (16, 32)
    coverage: float = 0.97
    schedule: Schedule = Schedule()

    family: ClassVar[str] = "converted"
    deployed: ClassVar[tuple[str, ...]] = ("steps",)

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes, steps=self.steps)

    def source_network(self, activation: Callable[[], nn.Module], rng: torch.Generator) -> nn.Sequential:
        """Build the untrained ANN with the given activations and average pooling."""
        data = self.data()
        ann = relu_network(data.shape, data.classes, self.widths, name=self.name, activation=activation)
        initialise(ann, rng)
        return ann

    def start(self, module: nn.Module, source: nn.Module, train: Split) -> None:
        """Take over the layers of a trained ReLU network, and set every lambda to what it needs.

        lambda becomes the `coverage` quantile of the activations that its layer has in that network.
        """
        assert isinstance(module, ConvertedNet)
        copy_layers(source, module.ann)
        for node, scale in zip(module.nodes, activation_quantiles(source, train, self.coverage), strict=True):
            node.scale.data.fill_(scale)

    def trainable(self, module: nn.Module) -> nn.Module:
        """Return the ANN: it is what is trained."""
        ann = module.ann
        assert isinstance(ann, nn.Module)
        return ann

    def measure(self, module: nn.Module, data: Dataset, *, root: Path | None) -> dict[str, Any]:
        """Return the source ANN's correct answers and the converted network's after 1 to 32 steps."""
        test = data.load("test", root=root)[:MEASURED]
        with torch.no_grad():
            right = 0
            for start in range(0, len(test), 250):
                part = test[start : start + 250]
                right += int((module.twin(part.x).argmax(dim=1) == part.y).sum())  # type: ignore[operator]
        curve = latency_curve(module, test)
        return {"n": len(test), "ann": right, "latency": {str(t): k for t, k in curve.items()}}

    def notes(self, certificate: Mapping[str, Any]) -> tuple[str, ...]:
        """Mark a conversion that is more than 2 points below its ANN at the deployed T."""
        measured = certificate.get("measured", {})
        right = measured.get("latency", {}).get(str(self.steps))
        if right is None:
            return ()
        n, ann = measured["n"], measured["ann"]
        if ann - right <= LARGEST_LOSS * n:
            return ()
        return (f"conversion lost {ann - right} of {n} answers at T={self.steps} (ANN {ann}, SNN {right})",)
