"""FEEL-SNN: frequency encoding and evolutionary leak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.api import ConfigError
from robustspike.bench.api import DefenseSpec
from robustspike.bench.api import Neuron
from robustspike.bench.api import VictimRecipe
from robustspike.bench.api import VictimSpec
from robustspike.defenses.crafting import Adversarial
from robustspike.defenses.crafting import Start
from robustspike.defenses.crafting import pixels_only
from robustspike.defenses.structure import SteppedNeuron
from robustspike.defenses.structure import needs_replaceable_neurons
from robustspike.defenses.structure import needs_time_first_body
from robustspike.defenses.structure import put_first
from robustspike.defenses.structure import replace_neurons


def half_widths(steps: int, size: int) -> tuple[int, ...]:
    """Return the half-widths r of the pass band of each step for images of a size.

    The paper's r for 32 pixels fall from 16 in steps of 2 at T = 4 and at T = 8 ([16, 14, 12, 10],
    [16, ..., 2]); other sizes are scaled and rounded up at halves. r is at least 1.
    """
    return tuple(max(1, int((16 - 2 * t) / 32 * size + 0.5)) for t in range(steps))


class FrequencyEncoding(nn.Module):
    """Show step t only the centred box |f| <= r[t] of the image's spectrum.

    Args:
        widths: half-width per step.
        part: what is made of the complex inverse transform: "real", or "modulus" (released code, whose
            box keeps index -r but not +r; then real part and modulus differ).

    Shape: [T, N, C, H, W] -> the same.
    """

    def __init__(self, widths: tuple[int, ...], part: Literal["real", "modulus"]) -> None:
        super().__init__()
        self.widths = widths
        self.part = part

    def mask(self, height: int, width: int) -> Tensor:
        """Return which frequencies pass at each step: [T, 1, 1, H, W] of 0 and 1, centred spectrum."""
        rows = torch.arange(height)[:, None] - height // 2
        columns = torch.arange(width)[None, :] - width // 2
        top = 1 if self.part == "modulus" else 0
        masks = [
            (rows >= -r) & (rows <= r - top) & (columns >= -r) & (columns <= r - top) for r in self.widths
        ]
        return torch.stack(masks)[:, None, None].float()

    def forward(self, x_seq: Tensor) -> Tensor:
        mask = self.mask(*x_seq.shape[-2:]).to(x_seq)
        spectrum = torch.fft.fftshift(torch.fft.fft2(x_seq), dim=(-2, -1))
        back = torch.fft.ifft2(torch.fft.ifftshift(mask * spectrum, dim=(-2, -1)))
        return back.abs() if self.part == "modulus" else back.real


class LeakNeuron(SteppedNeuron):
    """A neuron with one trainable leak per neuron and step: u[t] = lam[t] v[t-1] + gain I[t].

    `tau`, which gradient estimators read, is that of the mean leak.
    """

    def __init__(self, neuron: Neuron, steps: int, shape: tuple[int, ...], initial: float | None) -> None:
        super().__init__(neuron)
        self.leak = nn.Parameter(torch.full((steps, *shape), neuron.leak if initial is None else initial))

    @property
    def tau(self) -> float:
        """Time constant of the mean leak, at least 1."""
        mean = min(max(float(self.leak.detach().mean()), 0.0), 1 - 1e-6)
        return 1 / (1 - mean)

    def charge(self, v: Tensor, current: Tensor, t: int) -> Tensor:
        return self.leak[t] * v + self.input_gain * current


@dataclass(frozen=True)
class FrequencyAndLeak(Adversarial):
    """Encode each step with a narrower band, and learn a leak per neuron and step.

    Args:
        encoding, leak: whether each part is used.
        part: "real" (default) or "modulus" (release) of the inverse transform.
        initial_leak: start of the leaks (release: 1); None keeps the victim's own.
        eps: radius of additional adversarial training, 0 for none (the paper's plain rows).

    Cost: as plain training, and two FFTs per step.
    """

    eps: float = 0.0
    steps: int = 2
    start: Start = "uniform"
    encoding: bool = True
    leak: bool = True
    part: Literal["real", "modulus"] = "real"
    initial_leak: float | None = 1.0
    spec: ClassVar[DefenseSpec] = DefenseSpec(
        name="feel",
        trains=True,
        adaptive=("wide_surrogate",),
        source=(
            "Xu et al., NeurIPS 2024, 37:91930-91950. Differs: real part of a Hermitian band (the release "
            "takes the modulus of an asymmetric one: option); widths scaled to the image; shared optimiser."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part not in ("real", "modulus"):
            raise ConfigError(f"feel: part must be 'real' or 'modulus', got '{self.part}'.")

    def fits(self, recipe: VictimRecipe) -> str | None:
        reason = super().fits(recipe)
        if not reason and self.leak:
            reason = needs_replaceable_neurons(recipe)
        if not reason and self.encoding:
            reason = pixels_only(recipe) or needs_time_first_body(recipe)
        return reason

    def transform(self, module: nn.Module, spec: VictimSpec) -> nn.Module:
        if self.leak:
            module = replace_neurons(
                module, spec, lambda neuron, shape: LeakNeuron(neuron, spec.steps, shape, self.initial_leak)
            )
        if self.encoding:
            widths = half_widths(spec.steps, min(spec.shape[-2:]))
            module = put_first(module, FrequencyEncoding(widths, self.part))
        return module
