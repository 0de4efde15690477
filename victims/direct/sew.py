"""SEW-ResNet: residual blocks whose shortcut joins after the neuron, on spikes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.victims.direct.lif_cnn import DirectCoding
from robustspike.victims.direct.lif_cnn import NeuronKind
from robustspike.victims.direct.lif_cnn import make_neuron

Merge = Literal["add", "and", "iand"]


def _layer(inputs: int, outputs: int, stride: int, node: nn.Module, kernel: int = 3) -> nn.Sequential:
    from spikingjelly.activation_based import layer

    return nn.Sequential(
        layer.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False, step_mode="m"),
        layer.BatchNorm2d(outputs, step_mode="m"),
        node,
    )


class SewBlock(nn.Module):
    """A = two conv-BN-neuron layers of S; O = g(A, S): A + S, A * S, or (1 - A) * S.

    "add" gives spike counts of up to 2 per step. Where the shape changes, S passes through a 1x1
    conv-BN-neuron first. Shape: [T, N, C, H, W], time first.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, merge: Merge, node: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.path = nn.Sequential(
            _layer(inputs, outputs, stride, node()), _layer(outputs, outputs, 1, node())
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _layer(inputs, outputs, stride, node(), kernel=1)
        self.merge = merge

    def forward(self, s: Tensor) -> Tensor:
        a: Tensor = self.path(s)
        kept: Tensor = self.shortcut(s)
        if self.merge == "add":
            return a + kept
        return a * kept if self.merge == "and" else (1 - a) * kept


@dataclass(frozen=True, kw_only=True)
class SewNet(VictimRecipe):
    """conv stem, one SEW block at full and one at half resolution, average pooling, linear.

    Args:
        steps: time steps T.
        widths: channels of the two blocks.
        merge: "add", "and" or "iand".
        neuron: "lif", "plif" or "if".
        tau: membrane time constant in steps.
    """

    dataset: str = "digits"
    steps: int = 4
    widths: tuple[int, int] = (16, 32)
    merge: Merge = "add"
    neuron: NeuronKind = "if"
    tau: float = 2.0
    schedule: Schedule = Schedule()

    family: ClassVar[str] = "direct"
    source: ClassVar[str] = (
        "Fang et al., NeurIPS 2021, arXiv:2102.04159. Differs: two blocks instead of eight or more, AdamW "
        "one-cycle, logits averaged over time."
    )

    def __post_init__(self) -> None:
        if self.merge not in ("add", "and", "iand"):
            raise ConfigError(
                f"victim '{self.name}': merge must be 'add', 'and' or 'iand', got '{self.merge}'."
            )

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes, steps=self.steps)

    def node(self) -> nn.Module:
        """Make one spiking layer."""
        return make_neuron(self.neuron, tau=self.tau, v_reset=0.0, detach_reset=True, decay_input=True)

    def build(self, rng: torch.Generator) -> nn.Module:
        from spikingjelly.activation_based import layer

        data = self.data()
        channels, height, width = data.shape
        first, second = self.widths
        body = nn.Sequential(
            _layer(channels, first, 1, self.node()),
            SewBlock(first, first, 1, self.merge, self.node),
            SewBlock(first, second, 2, self.merge, self.node),
            layer.AvgPool2d(2, step_mode="m"),
            layer.Flatten(step_mode="m"),
            layer.Linear(
                second * (-(-height // 2) // 2) * (-(-width // 2) // 2), data.classes, step_mode="m"
            ),
        )
        initialise(body, rng)
        return DirectCoding(body, self.steps)


SEW_NET_DIGITS = SewNet(name="sew_net.digits")
