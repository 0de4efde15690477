"""Spikformer: a vision transformer whose attention multiplies spikes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from typing import ClassVar

from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.victims.architectures.base import Parts
from robustspike.victims.architectures.base import PublishedNet
from robustspike.victims.architectures.base import halved


def _mlp_layer(inputs: int, outputs: int) -> nn.Module:
    from spikingjelly.activation_based import layer

    made: nn.Module = layer.SeqToANNContainer(
        nn.Conv1d(inputs, outputs, kernel_size=1, bias=False), nn.BatchNorm1d(outputs)
    )
    return made


class TransformerBlock(nn.Module):
    """Spiking self-attention and a spiking two-layer network, each with a shortcut; [T, N, C, L]."""

    def __init__(self, parts: Parts, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        from spikingjelly.activation_based.layer.attention import SpikingSelfAttention

        def node(**_: Any) -> nn.Module:
            return parts.act()

        self.attention = SpikingSelfAttention(width, heads, spiking_neuron=node)
        self.attention.attn_lif.v_threshold = 0.5  # as published; SpikingJelly sets it on its own nodes only
        self.mlp = nn.Sequential(
            _mlp_layer(width, ratio * width), parts.act(), _mlp_layer(ratio * width, width), parts.act()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        out: Tensor = x + self.mlp(x)
        return out


class SpikformerBody(nn.Module):
    """Convolutional stem to patches, positions by a convolution, transformer blocks, mean, linear."""

    def __init__(
        self, parts: Parts, channels: int, classes: int, *, width: int, heads: int, depth: int, ratio: int
    ) -> None:
        super().__init__()
        from spikingjelly.activation_based import layer

        stem: list[nn.Module] = []
        for index, outputs in enumerate((width // 8, width // 4, width // 2, width)):
            convolution, norm, node = parts.unit(channels, outputs)
            stem += [convolution, norm]
            if index >= 2:
                stem.append(layer.MaxPool2d(3, stride=2, padding=1, step_mode=parts.mode))
            stem.append(node)
            channels = outputs
        self.stem = nn.Sequential(*stem)
        self.positions = nn.Sequential(*parts.unit(width, width))
        self.blocks = nn.Sequential(*[TransformerBlock(parts, width, heads, ratio) for _ in range(depth)])
        self.head = parts.linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.positions(x)
        out: Tensor = self.head(self.blocks(x.flatten(3)).mean(dim=-1))
        return out


@dataclass(frozen=True, kw_only=True)
class Spikformer(PublishedNet):
    """Spikformer-L-D for small images: patches of 4x4 pixels, L blocks of width D.

    Args:
        width: channels D of a token.
        heads: attention heads.
        depth: blocks L.
        ratio: width of the hidden layer of a block, in D.
    """

    width: int = 256
    heads: int = 8
    depth: int = 4
    ratio: int = 4
    decay_input: bool = True

    source: ClassVar[str] = (
        "Zhou et al., ICLR 2023, arXiv:2209.15425; SpikingJelly's SpikingSelfAttention. Differs: mean of the "
        "last layer over time; default initial weights of PyTorch; ATan surrogate; one schedule for all."
    )
    converts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 8 or self.width % self.heads or self.depth < 1:
            raise ConfigError(
                f"victim '{self.name}': width must be a multiple of 8 and of the heads, depth at least 1; "
                f"got {self.width}, {self.heads} and {self.depth}."
            )

    def network(self, parts: Parts, shape: tuple[int, ...], classes: int) -> nn.Module:
        halved(shape, 2, name=self.name)
        return SpikformerBody(
            parts,
            shape[0],
            classes,
            width=self.width,
            heads=self.heads,
            depth=self.depth,
            ratio=self.ratio,
        )


SPIKFORMER_CIFAR10 = Spikformer(name="spikformer.cifar10")
