"""Max-norm and percentile conversion of a trained ReLU network, by SpikingJelly's converter."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Dataset
from robustspike.bench.api import find_neurons
from robustspike.victims.converted.base import ConvertedRecipe

_CALIBRATION = 1024
"""Training samples that set the thresholds: one batch, since a running average depends on the order."""


def convert(ann: nn.Module, x: Tensor, *, mode: str, channel_wise: bool, half_threshold: bool) -> nn.Module:
    """Convert a ReLU network with SpikingJelly: BatchNorm folded, each ReLU an IF neuron between scales.

    Args:
        ann: the source network; not changed.
        x: calibration inputs [N, ...], used as one batch.
        mode: "max", or a percentile such as "99.9%".
        channel_wise: whether each channel has its own threshold.
        half_threshold: whether potentials start at half a threshold instead of 0.
    """
    from spikingjelly.activation_based import ann2snn
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate

    class Quiet(ann2snn.RateCodingRecipe):  # type: ignore[misc]
        """The recipe without its progress bar."""

        def calibrate(self, converter: object, fx_model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            del converter
            with torch.no_grad():
                fx_model(x)
            return fx_model

    # SpikingJelly ignores half_threshold for layer-wise thresholds, so the neuron is made here.
    factory = (lambda _: neuron.HalfThresholdIFNode()) if half_threshold and not channel_wise else None
    recipe = Quiet(
        [x],
        mode=mode,
        channel_wise=channel_wise,
        half_threshold=half_threshold and channel_wise,
        neuron_factory=factory,
    )
    net: nn.Module = ann2snn.Converter(recipe, device=x.device).convert(ann)
    functional.set_step_mode(net, "m")
    for found in find_neurons(net):
        found.module.surrogate_function = surrogate.ATan()  # its default is one object for all neurons
        found.module.detach_reset = True  # type: ignore[assignment]
    return net.eval()


class SpikingJellyConversion(nn.Module):
    """A ReLU network and its conversion: constant input, logits averaged over T steps."""

    def __init__(self, ann: nn.Module, snn: nn.Module, steps: int) -> None:
        super().__init__()
        self.ann = ann
        self.snn = snn
        self.steps = steps

    def sequence(self, x: Tensor, steps: int | None = None) -> Tensor:
        """Return the logits of every time step [T, N, K], T = `steps` or the network's own."""
        from spikingjelly.activation_based import functional

        functional.reset_net(self.snn)
        steps = self.steps if steps is None else steps
        out: Tensor = self.snn(x.unsqueeze(0).expand(steps, *x.shape))
        functional.reset_net(self.snn)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x).mean(dim=0)

    def twin(self, x: Tensor) -> Tensor:
        """Return the logits of the source ANN: a smooth path to attack."""
        out: Tensor = self.ann(x)
        return out


@dataclass(frozen=True, kw_only=True)
class NormalisedCnn(ConvertedRecipe):
    """A ReLU network whose thresholds are the largest or nearly largest activations on training data.

    Args:
        mode: "max", or a percentile such as "99.9%".
        channel_wise: whether each channel has its own threshold.
        half_threshold: whether potentials start at half a threshold, which removes most of the latency.
    """

    steps: int = 8
    mode: str = "max"
    channel_wise: bool = False
    half_threshold: bool = False

    source: ClassVar[str] = (
        "Diehl et al., IJCNN 2015 (max-norm); Rueckauer et al. 2017, arXiv:1612.04052 (percentile); "
        "SpikingJelly ann2snn.RateCodingRecipe. Differs: thresholds from one batch of 1024 samples; "
        "ATan surrogates, one per neuron layer."
    )

    def __post_init__(self) -> None:
        if self.mode != "max" and not self.mode.endswith("%"):
            raise ConfigError(
                f"victim '{self.name}': mode must be 'max' or a percentile like '99.9%', got '{self.mode}'."
            )

    def build(self, rng: torch.Generator) -> nn.Module:
        ann = self.source_network(nn.ReLU, rng).eval()
        return SpikingJellyConversion(
            ann, self._converted(ann, torch.ones(1, *self.data().shape)), self.steps
        )

    def _converted(self, ann: nn.Module, x: Tensor) -> nn.Module:
        return convert(
            ann, x, mode=self.mode, channel_wise=self.channel_wise, half_threshold=self.half_threshold
        )

    def finish(self, module: nn.Module, data: Dataset, *, root: Path | None) -> None:
        """Convert the trained network with thresholds from training data."""
        assert isinstance(module, SpikingJellyConversion)
        x = data.load("train", root=root).x[:_CALIBRATION]
        module.ann.eval()
        module.snn = self._converted(module.ann, x.to(next(module.ann.parameters()).device))


MAXNORM_CNN_DIGITS = NormalisedCnn(name="maxnorm_cnn.digits")
MAXNORM_HALF_CNN_DIGITS = dataclasses.replace(
    MAXNORM_CNN_DIGITS, name="maxnorm_half_cnn.digits", half_threshold=True
)
PERCENTILE_CNN_DIGITS = NormalisedCnn(
    name="percentile_cnn.digits", steps=4, mode="99%", channel_wise=True, half_threshold=True
)
