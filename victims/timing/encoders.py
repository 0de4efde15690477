"""Codes that turn a static image into spikes, and read-outs that turn spikes into logits.

The forward pass is always the true hard code. The backward pass is the derivative of a relaxation
(straight-through), stated per code: an approximation, so a victim behind such a code also needs
attacks that use no gradient.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal
from typing import get_args

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import ContractError
from robustspike.bench.api import RowStreams

Code = Literal["direct", "poisson", "ttfs", "latency", "pre", "post", "ratesyn", "phase"]
Backward = Literal["relaxation", "masked"]


class Encoder(nn.Module):
    """Code pixels in [0, 1] as T steps, t = 0..T-1. Shape: [N, C, H, W] -> [T, N, C, H, W].

    Args:
        code: "direct": x at every step (exact gradient). "poisson": a spike with probability x
            (gradient 1). "ttfs": one spike at round((T-1)(1-x)). "latency": one spike at
            floor((1-x) T); x = 0 never fires. "pre": x T spikes at the start. "post": spikes while
            t > (1-x) T. "ratesyn": spikes from round((T-1)(1-x)) on. "phase": bit t of floor(x 2^T),
            most significant first (gradient: the minimum-norm inverse of x = sum 2^-(t+1) s).
        steps: T.
        backward: "relaxation": a tent around the spike time, or a ramp of slope 1 around an edge.
            "masked": gradient 1 where a spike was emitted, as in the released code of the timing
            study; sparse and biased, kept for comparison.
    Source: Ding et al., Nature Communications 2025 (arXiv:2306.05654); phase: Kim et al. 2018.
    Differs: relaxed gradients by default.
    """

    def __init__(self, code: Code, steps: int, *, backward: Backward = "relaxation") -> None:
        super().__init__()
        if code not in get_args(Code) or backward not in get_args(Backward):
            raise ConfigError(
                f"encoder: code must be one of {', '.join(get_args(Code))} and backward one of "
                f"{', '.join(get_args(Backward))}, got '{code}' and '{backward}'."
            )
        self.code = code
        self.steps = steps
        self.backward = backward
        self.draws_noise = code == "poisson"
        if code == "poisson":
            self.votes_shift_per_l1 = steps  # what smoothing relies on, as in the defense rate_smoothing
        self.emits_spikes = code != "direct"
        self.noise: RowStreams | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.code == "direct":
            return x.unsqueeze(0).expand(self.steps, *x.shape)
        with torch.no_grad():
            hard = self._hard(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return hard
        soft = hard * x if self.backward == "masked" else self._soft(x)
        return (soft - soft.detach()) + hard  # in this order the value is exactly the code

    def _time(self, x: Tensor) -> Tensor:
        return torch.arange(self.steps, dtype=x.dtype, device=x.device).view(-1, *[1] * x.dim())

    def _hard(self, x: Tensor) -> Tensor:
        t, steps = self._time(x), self.steps
        if self.code == "poisson":
            if self.noise is None:
                raise ContractError("poisson encoder: no noise streams. Call the victim with noise=.")
            u = self.noise.uniform((steps, *x.shape[1:]), dtype=x.dtype).transpose(0, 1)
            return (u < x).to(x.dtype)
        if self.code == "phase":
            level = (x * 2**steps).floor().clamp(0, 2**steps - 1)
            bits: Tensor = (level / 2 ** (steps - 1 - t)).floor() % 2
            return bits
        last = ((steps - 1) * (1 - x)).round()
        spikes = {
            "ttfs": lambda: t == last,
            "ratesyn": lambda: t >= last,
            "latency": lambda: t == ((1 - x) * steps).floor(),
            "pre": lambda: t < x * steps,
            "post": lambda: t > (1 - x) * steps,
        }[self.code]()
        return spikes.to(x.dtype)

    def _soft(self, x: Tensor) -> Tensor:
        t, steps = self._time(x), self.steps
        if self.code == "poisson":
            return x.unsqueeze(0).expand(steps, *x.shape)
        if self.code == "phase":
            weight = 0.5 ** (t + 1)
            return x * weight / weight.square().sum()
        if self.code == "ttfs":
            return (1 - (t - (steps - 1) * (1 - x)).abs()).relu()
        if self.code == "latency":
            return (1 - (t + 0.5 - (1 - x) * steps).abs()).relu()
        edge = {
            "ratesyn": lambda: t - (steps - 1) * (1 - x),
            "pre": lambda: x * steps - t,
            "post": lambda: t - (1 - x) * steps,
        }[self.code]()
        return (edge + 0.5).clamp(0, 1)


class FusedEncoder(nn.Module):
    """Several codes side by side as channels: [N, C, H, W] -> [T, N, C * codes, H, W]."""

    def __init__(self, encoders: list[Encoder]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.emits_spikes = all(encoder.emits_spikes for encoder in encoders)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([encoder(x) for encoder in self.encoders], dim=2)


class RateReadout(nn.Module):
    """The mean over time: [T, N, K] -> [N, K]."""

    def forward(self, sequence: Tensor) -> Tensor:
        return sequence.mean(dim=0)


class FirstSpikeReadout(nn.Module):
    """Minus beta times each output neuron's first spike time, counted from 1; T + 1 where it is silent.

    Args:
        beta: slope of the logits in time.
        early_exit: whether the network stops at the first output spike: what would have come later is
            then T + 1. The decision is the same, and nothing after that spike can change it.
    Shape: spikes [T, N, K] -> [N, K]. A silent neuron's gradient is spread over all steps.
    Source: Ding et al., Nature Communications 2025: t_min = T + 1 - max_t s[t] (T - t), beta 2.
    Differs: none.
    """

    def __init__(self, beta: float = 2.0, *, early_exit: bool = False) -> None:
        super().__init__()
        self.beta = beta
        self.early_exit = early_exit

    def forward(self, spikes: Tensor) -> Tensor:
        steps = len(spikes)
        left = steps - torch.arange(steps, dtype=spikes.dtype, device=spikes.device)
        first = steps + 1 - (spikes * left[:, None, None]).amax(dim=0)
        if self.early_exit:
            exit_time = first.amin(dim=1, keepdim=True)
            first = torch.where(first == exit_time, first, torch.full_like(first, steps + 1))
        return -self.beta * first


def effective_eps(eps: Fraction, levels: int) -> Fraction:
    """Return the budget that an input rounded to `levels` equal steps turns eps into.

    A quantising input moves by whole steps only, so eps acts as round(eps * levels) / levels.
    """
    return Fraction(round(eps * levels), levels)
