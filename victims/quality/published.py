"""What the recipes of published quality models share: ImageNet's normalisation and the scale of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import initialise
from robustspike.victims.quality.regressors import SCORE_RANGE
from robustspike.victims.quality.regressors import ScoreRecipe

SIDE = 224
"""Pixels of what these networks see: the crop of their papers."""


class OnImageNet(nn.Module):
    """A network for ImageNet's normalised pixels, on pixels in [0, 1]; 100 sigmoid of its answer."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def normalised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        return SCORE_RANGE[1] * torch.sigmoid(self.net(self.normalised(x)))


@dataclass(frozen=True, kw_only=True)
class PublishedIqa(ScoreRecipe):
    """Base of quality models as their papers describe them. Weights are the user's: to train or to bring.

    A subclass gives `network()`, which takes normalised images [N, 3, 224, 224] and answers [N, 1].
    """

    dataset: str = "koniq10k"
    noise: float = 0.0
    mirror: bool = False
    schedule: Schedule = Schedule(epochs=16, batch=16, lr=2e-5, keep="last")

    family: ClassVar[str] = "quality, published"

    def network(self) -> nn.Module:
        """Build the network with drawn weights."""
        raise TypeError(f"{type(self).__name__} does not define network().")

    def notes(self, certificate: Any) -> tuple[str, ...]:
        del certificate
        return ()

    def build(self, rng: torch.Generator) -> nn.Module:
        shape = self.data().shape
        if shape != (3, SIDE, SIDE):
            raise ConfigError(
                f"victim '{self.name}': it takes images 3x{SIDE}x{SIDE}, the data set '{self.dataset}' has "
                f"{'x'.join(map(str, shape))}. Use another data set, or crop={SIDE}."
            )
        net = OnImageNet(self.network())
        initialise(net, rng)
        return net
