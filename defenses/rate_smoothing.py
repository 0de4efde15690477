"""Rate-coded randomized smoothing: Bernoulli input spikes, whose votes can be certified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ContractError
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.crafting import pixels_only
from robustspike.defenses.structure import needs_time_first_body
from robustspike.defenses.structure import put_first


class BernoulliCoding(nn.Module):
    """Replace every pixel of every step by a spike with the pixel's probability; straight-through gradient.

    `votes_shift_per_l1` is T: encodings of x and x' differ in total variation by at most T ||x - x'||_1,
    which is what `bench/certify` relies on.
    """

    draws_noise = True

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.votes_shift_per_l1 = steps
        self.noise: RowStreams | None = None

    def forward(self, x_seq: Tensor) -> Tensor:
        if self.noise is None:
            raise ContractError("rate_smoothing: hand the network noise streams for every pass.")
        u = self.noise.uniform((len(x_seq), *x_seq.shape[2:]), dtype=x_seq.dtype).transpose(0, 1)
        spikes = (u < x_seq).to(x_seq.dtype)
        return x_seq + (spikes - x_seq).detach() if torch.is_grad_enabled() else spikes


@dataclass(frozen=True)
class RateSmoothing(Adversarial):
    """Bernoulli input coding in training and at test time; adversarial training in the encoded model.

    Args:
        eps: radius of the adversarial training, 0 for none.

    Cost: as plain training, or steps + 1 times with eps > 0.
    """

    eps: float = 0.0
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="rate_smoothing",
        trains=True,
        stochastic=True,
        adaptive=("eot",),
        source=(
            "Mukhoty et al., ICLR 2024 (certified adversarial robustness for rate encoded SNNs). Differs: "
            "the victim's own neurons and T; certification is `certify`, with the radius divided by T."
        ),
    )

    def fits(self, recipe: VictimRecipe) -> str | None:
        return pixels_only(recipe) or needs_time_first_body(recipe)

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        return put_first(module, BernoulliCoding(spec.steps))
