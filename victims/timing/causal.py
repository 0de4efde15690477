"""First-spike networks whose spike times are solved in closed form, with exact gradients.

An output neuron fires when the summed responses to the inputs that arrived before it, its causal set,
reach the threshold. With that set known the time has a closed form, so no surrogate is needed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal
from typing import get_args

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import Schedule
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import initialise

Kernel = Literal["lin", "exp", "lif2"]

_FLAT = 1e-4
"""Slope of the potential below which a crossing counts as none: its time would be huge and noisy."""


class CausalLayer(nn.Module):
    """Dense layer from spike times [N, inputs] to first-spike times [N, outputs].

    Kernels, the response a time s after an input spike (0 before): "lin": s. "exp": 1 - exp(-s).
    "lif2": exp(-s / 2 tau) - exp(-s / tau), a leaky neuron with tau_m = 2 tau_s. Weights may be negative.
    A neuron that never crosses, or crosses at `silent` or later, gets the time `silent` and no gradient;
    an input that arrives after the output spike gets none either. One bias input spikes at time 0.

    Args:
        inputs, outputs: sizes.
        kernel: response to one spike.
        silent: time of a neuron that does not fire.
        mean, deviation: weights start from N(mean / n, deviation^2 / n), n = inputs + 1.
        threshold: firing threshold.
        tau: synaptic time constant of "lif2".

    Cost: memory N x (inputs + 1) x outputs a layer.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: Kernel,
        silent: float,
        mean: float = 3.0,
        deviation: float = 1.0,
        threshold: float = 1.0,
        tau: float = 1.0,
    ) -> None:
        super().__init__()
        if kernel not in get_args(Kernel):
            raise ConfigError(f"causal layer: kernel must be 'lin', 'exp' or 'lif2', got '{kernel}'.")
        self.kernel = kernel
        self.silent = silent
        self.mean = mean
        self.deviation = deviation
        self.threshold = threshold
        self.tau = tau
        self.weight = nn.Parameter(torch.zeros(inputs + 1, outputs))

    def draw_parameters(self, rng: torch.Generator) -> None:
        """Draw the initial weights."""
        n = len(self.weight)
        with torch.no_grad():
            self.weight.normal_(self.mean / n, self.deviation / math.sqrt(n), generator=rng)

    def _features(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two functions of an input time whose weighted sums A and B decide the output time."""
        if self.kernel == "lin":
            return torch.ones_like(t), t
        if self.kernel == "exp":
            return torch.ones_like(t), t.exp()
        half = (t / (2 * self.tau)).exp()
        return half.square(), half

    def _crossing(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the time at which the potential of a causal set rises to the threshold; inf if never.

        Each branch is guarded before it divides, so that gradients of the branch not taken stay finite.
        """
        never = torch.full_like(a, math.inf)
        if self.kernel == "lin":  # A t - B = threshold
            rises = a > _FLAT
            return torch.where(rises, (self.threshold + b) / a.clamp(min=_FLAT), never)
        if self.kernel == "exp":  # A - B exp(-t) = threshold
            gap = a - self.threshold
            rises = (gap > _FLAT) & (b > 0)
            z = b / gap.clamp(min=_FLAT)
            return torch.where(rises, torch.where(rises, z, torch.ones_like(z)).log(), never)
        # B q - A q^2 = threshold with q = exp(-t / 2 tau); the larger q is the earlier, rising crossing.
        root = b.square() - 4 * a * self.threshold
        real = root > 1e-9
        z = 2 * a / (b + torch.where(real, root, torch.ones_like(root)).sqrt())
        rises = real & (z > 1e-9)
        return torch.where(rises, 2 * self.tau * torch.where(rises, z, torch.ones_like(z)).log(), never)

    def _causal_set(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mask [N, inputs + 1, outputs] of the causal set, fires [N, outputs]).

        Inputs are taken in the order of arrival until the solution with the first k falls between the
        k-th and the next arrival; a tie belongs to the smaller set.
        """
        arrived, order = t.sort(dim=1)
        a, b = self._features(arrived)
        weight = self.weight[order]
        time = self._crossing((weight * a[..., None]).cumsum(dim=1), (weight * b[..., None]).cumsum(dim=1))
        following = torch.cat([arrived[:, 1:], torch.full_like(arrived[:, :1], math.inf)], dim=1)
        fits = (time >= arrived[..., None] - 1e-6) & (time <= following[..., None] + 1e-6)
        fits &= torch.isfinite(time)
        fires, last = fits.any(dim=1), fits.to(torch.uint8).argmax(dim=1)
        rank = order.argsort(dim=1)
        return (rank[..., None] <= last[:, None]) & fires[:, None], fires

    def synaptic_operations(self, times: Tensor) -> Tensor:
        """Return the inputs that arrived before the output spike, or at all, per sample: [N]."""
        t = torch.cat([torch.zeros_like(times[:, :1]), times], dim=1)
        with torch.no_grad():
            mask, fires = self._causal_set(t)
            arrived = torch.where(fires[:, None], mask, torch.ones_like(mask)) & (self.weight != 0)
        return arrived.flatten(1).sum(dim=1, dtype=torch.float64)

    def spikes_of(self, out: Tensor) -> Tensor:
        """Return which neurons fired, given their times."""
        return out.detach() < self.silent

    def forward(self, times: Tensor) -> Tensor:
        t = torch.cat([torch.zeros_like(times[:, :1]), times], dim=1)
        with torch.no_grad():
            mask, fires = self._causal_set(t)
        masked = self.weight * mask
        a, b = self._features(t)
        time = self._crossing((masked * a[..., None]).sum(dim=1), (masked * b[..., None]).sum(dim=1))
        fires = fires & (time < self.silent)
        return torch.where(fires, time, torch.full_like(time, self.silent))


class CausalNet(nn.Module):
    """Layers of first-spike neurons; pixel x spikes at t_in (1 - x); logits are -beta times."""

    def __init__(self, layers: list[CausalLayer], *, t_in: float, beta: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.t_in = t_in
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        times = self.t_in * (1 - x.flatten(1))
        for layer in self.layers:
            times = layer(times)
        return -self.beta * times


@dataclass(frozen=True, kw_only=True)
class CausalMlp(VictimRecipe):
    """A dense network of first-spike neurons.

    Args:
        kernel: "lin", "exp" or "lif2".
        hidden: sizes of the hidden layers.
        t_in: time of a black pixel's spike.
        beta: slope of the logits in time.
        mean, deviation: initial weights.
        drive: input weight that a neuron should have at least, or it falls silent for good.
    """

    dataset: str = "digits"
    kernel: Kernel = "lin"
    hidden: tuple[int, ...] = (64,)
    t_in: float = 2.0
    beta: float = 4.0
    mean: float = 3.0
    deviation: float = 1.0
    drive: float = 1.5
    schedule: Schedule = Schedule(epochs=25, lr=1e-2)

    family: ClassVar[str] = "timing"
    source: ClassVar[str] = (
        "lin: ReL-PSP, Zhang et al. 2020, arXiv:2003.11837; exp: Mostafa 2017, arXiv:1606.08165; lif2: "
        "Goeltz et al. 2021, arXiv:1912.11443. Differs: one bias spike at 0, a penalty on too little input "
        "weight instead of pushing silent neurons, silent neurons get a fixed late time."
    )

    def spec(self) -> VictimSpec:
        data = self.data()
        return VictimSpec(name=self.name, shape=data.shape, classes=data.classes)

    def build(self, rng: torch.Generator) -> nn.Module:
        data = self.data()
        sizes = (math.prod(data.shape), *self.hidden, data.classes)
        layers = [
            CausalLayer(
                inputs,
                outputs,
                kernel=self.kernel,
                silent=self.t_in * (2 + index),
                mean=self.mean,
                deviation=self.deviation,
            )
            for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes))
        ]
        net = CausalNet(layers, t_in=self.t_in, beta=self.beta)
        initialise(net, rng)
        return net

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy plus the lack of input weight of every neuron, and the logits."""
        logits = module(x)
        loss = nn.functional.cross_entropy(logits, y)
        for layer in module.modules():
            if isinstance(layer, CausalLayer):
                loss = loss + (self.drive - layer.weight.sum(dim=0)).relu().mean()
        return loss, logits


CAUSAL_LIN_DIGITS = CausalMlp(name="causal_lin.digits")
CAUSAL_EXP_DIGITS = dataclasses.replace(CAUSAL_LIN_DIGITS, name="causal_exp.digits", kernel="exp")
CAUSAL_LIF2_DIGITS = CausalMlp(
    name="causal_lif2.digits",
    kernel="lif2",
    beta=8.0,
    mean=12.0,
    deviation=2.0,
    drive=6.0,
    schedule=Schedule(epochs=25, lr=2e-2),
)
