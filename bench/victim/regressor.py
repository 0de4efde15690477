"""Quality models of other people: one score from whatever they answer, at the size they were trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import VictimFailed
from robustspike.bench.numbers.losses import LOSSES
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import Native
from robustspike.bench.victim.adapt import adapted
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.checks import fingerprint_inputs
from robustspike.bench.victim.module import Mirrored
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.module import private_copy


def one_score(out: Any) -> Tensor:
    """Return the scores [N, 1] in what a quality model answered.

    Taken as such: [N], [N, 1], [N, 1, 1, 1], a single number for a batch of one, and [T, N, 1], which is
    averaged over time; of a tuple the first element. Raises: ContractError: anything else.
    """
    if isinstance(out, tuple | list) and out:
        out = out[0]
    if isinstance(out, Tensor):
        if out.dim() == 3 and out.shape[2] == 1:
            return out.mean(dim=0)
        if out.numel() == (len(out) if out.dim() else 1):
            return out.reshape(-1, 1)
    got = f"a tensor {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
    raise ContractError(
        f"quality model: expected one score per image, [N] or [N, 1], or of every step [T, N, 1]; got {got}. "
        "Return the score alone."
    )


class Sized(nn.Module):
    """Show a network images of the size that it was trained on.

    Args:
        inner: the network, [N, C, size, size] to [N, 1].
        size: side of what it sees, in pixels.
        crops: 0 resizes the whole image (bilinear, with antialiasing where it shrinks); a square number
            shows so many squares on an even grid, cut without a change of scale, and averages their scores.
    """

    def __init__(self, inner: nn.Module, size: int, crops: int) -> None:
        super().__init__()
        self.inner = inner
        self.size = size
        self.crops = crops

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor
        if not self.crops:
            shown = functional.interpolate(
                x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
            )
            out = self.inner(shown)
            return out
        squares = [
            x[..., top : top + self.size, left : left + self.size]
            for top in self._starts(x.shape[-2])
            for left in self._starts(x.shape[-1])
        ]
        out = self.inner(torch.cat(squares))
        return out.view(len(squares), len(x), 1).mean(dim=0)

    def _starts(self, length: int) -> list[int]:
        number = math.isqrt(self.crops)
        room = length - self.size
        return [room // 2] if number == 1 else [round(i * room / (number - 1)) for i in range(number)]


def adapted_regressor(
    network: nn.Module,
    *,
    score_range: tuple[float, float],
    size: int,
    crops: int,
    **adapting: Any,
) -> nn.Module:
    """Return a quality model as a module [N, *shape] -> [N, 1] whose larger scores are better.

    Args:
        network: changed as `adapt` says.
        score_range: (worst, best) of its own scale; worst is the larger one where smaller is better.
        size, crops: as in `Sized`; size 0 hands it the images as they are.
        adapting: the arguments of `adapt` about its conventions.

    Raises: ConfigError: parameters that do not fit together.
    """
    name, shape = adapting["name"], adapting["shape"]
    worst, best = score_range
    if worst == best or not all(map(math.isfinite, score_range)):
        raise ConfigError(
            f"'{name}': the score range is (worst, best), two different numbers; got {score_range}."
        )
    if crops and (math.isqrt(crops) ** 2 != crops or not 0 < size <= min(shape[-2:])):
        raise ConfigError(
            f"'{name}': crops must be a square number (1, 4, 9, 16, 25, ...) of squares no larger than the "
            f"images, {shape[-2]}x{shape[-1]}; got {crops} of {size}x{size}."
        )
    if size < 0 or (crops and adapting["stochastic"]):
        raise ConfigError(
            f"'{name}': the size must not be negative, and a stochastic network takes no crops."
        )
    module: nn.Module = adapted(network, classes=1, readout=one_score, **adapting)[0]
    if size:
        module = Sized(module, size, crops)
    return Mirrored(module, worst + best) if worst > best else module


def regressor(
    network: nn.Module,
    *,
    name: str,
    shape: tuple[int, ...],
    score_range: Sequence[float],
    size: int = 0,
    crops: int = 0,
    steps: int = 0,
    stochastic: bool = False,
    **settings: Any,
) -> ModuleVictim:
    """Return a quality model as a checked victim; one without a gradient is a black box.

    Args:
        network: a copy of it is taken.
        score_range: (worst, best), as in `adapted_regressor`, and so are size and crops.
        steps, stochastic, settings: as in `adapt`.

    Raises: ConfigError, ContractError: as `adapt`, and where the score range is no pair.
    """
    if len(score_range) != 2:
        raise ConfigError(f"--score-range: expected two numbers, WORST,BEST, got {len(score_range)}.")
    module = adapted_regressor(
        private_copy(network),
        name=name,
        shape=shape,
        domain=Domain.STATIC,
        bounds=(0.0, 1.0),
        score_range=(score_range[0], score_range[1]),
        size=size,
        crops=crops,
        steps=steps,
        stochastic=stochastic,
        **settings,
    )
    spec = VictimSpec(
        name=name,
        shape=shape,
        classes=1,
        steps=steps,
        task=Task.QUALITY,
        stochastic=stochastic,
        score_range=(min(score_range), max(score_range)),
    )
    victim = ModuleVictim(module, spec)
    try:
        check_victim(victim)
    except VictimFailed as error:
        raise ContractError(
            f"{error}. It was made for another size (--input-size, --crops), or wants other arguments."
        ) from error
    if not _has_gradient(victim):
        victim.spec = dataclasses.replace(victim.spec, black_box=True)
    return victim


def _has_gradient(victim: ModuleVictim) -> bool:
    x = fingerprint_inputs(victim.spec, 2).to(victim.device)
    noise = RowStreams.derive(range(2), "look", device=x.device) if victim.spec.stochastic else None
    try:
        found = victim.loss_and_grad(x, x.new_zeros(2), LOSSES["score"], Native(), noise=noise)
    except ContractError:
        return False
    return bool((found.grad != 0).any())
