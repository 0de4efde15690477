"""Surrogate-trained convolutional SNNs that are spike-coded at the input, with rate or first-spike decoding.

Only the input is coded in spike times or phases; the layers behind it are those of any directly trained SNN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise
from robustspike.victims.direct.lif_cnn import LifCnn
from robustspike.victims.timing.encoders import Code
from robustspike.victims.timing.encoders import Encoder
from robustspike.victims.timing.encoders import FirstSpikeReadout
from robustspike.victims.timing.encoders import FusedEncoder
from robustspike.victims.timing.encoders import RateReadout

Readout = Literal["rate", "first_spike", "early_exit"]


class EncodedNet(nn.Module):
    """Code, time-first body, read-out: [N, C, H, W] -> [N, K]."""

    def __init__(self, encoder: nn.Module, body: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.body = body
        self.readout = readout

    def sequence(self, x: Tensor) -> Tensor:
        """Return what the last layer says at every step: [T, N, K]."""
        out: Tensor = self.body(self.encoder(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.readout(self.sequence(x))
        return out


@dataclass(frozen=True, kw_only=True)
class EncodedCnn(LifCnn):
    """The convolutional SNN of `LifCnn` with a spike code at its input alone.

    Args:
        codes: codes, side by side as channels where there are several; see `Encoder`.
        readout: "rate": logits averaged over time. "first_spike" and "early_exit": LIF neurons after
            the last layer, decoded by their first spike.
        beta: slope of first-spike logits.
    """

    steps: int = 8
    codes: tuple[Code, ...] = ("ttfs",)
    readout: Readout = "rate"
    beta: float = 2.0

    family: ClassVar[str] = "coded input"
    source: ClassVar[str] = (
        "Codes and read-outs of Ding et al., Nature Communications 2025, arXiv:2306.05654; phase: Kim et al. "
        "2018. Differs: trained by STBP with an ATan surrogate; a code's gradient is that of a relaxation."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.codes or self.readout not in ("rate", "first_spike", "early_exit"):
            raise ConfigError(
                f"victim '{self.name}': needs at least one code and a readout of 'rate', 'first_spike' or "
                f"'early_exit', got {self.codes} and '{self.readout}'."
            )

    def spec(self) -> VictimSpec:
        return dataclasses.replace(super().spec(), stochastic="poisson" in self.codes)

    def build(self, rng: torch.Generator) -> nn.Module:
        encoders = [Encoder(code, self.steps) for code in self.codes]
        body = self.body(self.data().shape[0] * len(encoders))
        readout: nn.Module = RateReadout()
        if self.readout != "rate":
            body.append(self.node())
            readout = FirstSpikeReadout(self.beta, early_exit=self.readout == "early_exit")
        encoder = encoders[0] if len(encoders) == 1 else FusedEncoder(encoders)
        net = EncodedNet(encoder, body, readout)
        initialise(net, rng)
        return net

    def notes(self, certificate: Mapping[str, Any]) -> tuple[str, ...]:
        hard = [code for code in self.codes if code != "direct"]
        if not hard:
            return ()
        return (f"the gradient through {', '.join(hard)} coding is that of a relaxation",)


TTFS_CNN_DIGITS = EncodedCnn(name="ttfs_cnn.digits")
LATENCY_CNN_DIGITS = EncodedCnn(name="latency_cnn.digits", codes=("latency",))
RATESYN_CNN_DIGITS = EncodedCnn(name="ratesyn_cnn.digits", codes=("ratesyn",))
PHASE_CNN_DIGITS = EncodedCnn(name="phase_cnn.digits", codes=("phase",))
POISSON_CNN_DIGITS = EncodedCnn(name="poisson_cnn.digits", codes=("poisson",))
FUSED_CNN_DIGITS = EncodedCnn(name="fused_cnn.digits", codes=("direct", "ttfs"))
FIRST_SPIKE_CNN_DIGITS = EncodedCnn(name="first_spike_cnn.digits", codes=("pre",), readout="first_spike")
EARLY_EXIT_CNN_DIGITS = dataclasses.replace(
    FIRST_SPIKE_CNN_DIGITS,
    name="early_exit_cnn.digits",
    readout="early_exit",
    shares="first_spike_cnn.digits",
)
