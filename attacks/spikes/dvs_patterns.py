"""Attacks on the sensor: spikes added in fixed patterns at the border, without looking at the scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustspike.bench.api import Access
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Domain
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams

_PAPER = "Marchisio et al., IJCNN 2021, arXiv:2107.00415"
_BUDGET = "a pattern above the budget is cut to its first cells in order of time"


class _Patterns:
    """Try patterns of added spikes in a fixed order; a sample keeps its first success."""

    def patterns(self, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Yield masks [T, C, H, W] of cells to switch on, in the order in which they are tried."""
        raise TypeError(f"{type(self).__name__} does not define patterns().")

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        x, on = x0.clone(), oracle.threat.bounds[1]
        for pattern in self.patterns(tuple(x0.shape[1:])):
            rows = oracle.active(forwards=1)
            if not oracle.spec.stochastic:
                rows = rows[~oracle.best()[1][rows]]
            if not len(rows):
                break
            added = torch.where(pattern.to(x0.device), on, x0[rows])
            x[rows] = oracle.project(added, rows)
            oracle.labels(x[rows], rows)
        best, hit = oracle.best()
        return torch.where(hit.view(-1, *[1] * (x.dim() - 1)), best, x)


@dataclass(frozen=True)
class Frame(_Patterns):
    """Switch on the ring of border pixels, at every time and for every polarity.

    Cost: 1 forward, to see the answer.
    """

    spec: ClassVar[AttackSpec] = AttackSpec(
        name="dvs_frame.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        access=Access.LABEL,
        minimum_norm=True,
        source=f"{_PAPER}, Frame. Differs: {_BUDGET}.",
        cost="1 forward",
    )

    def patterns(self, shape: tuple[int, ...]) -> Iterator[Tensor]:
        ring = torch.ones(shape, dtype=torch.bool)
        ring[..., 1:-1, 1:-1] = False
        yield ring


def _corners(height: int, *, row: int = 0) -> Iterator[tuple[int, bool]]:
    """Yield the four starting corners, moved inwards by some rows: (row, whether from the right)."""
    for mirrored in (False, True):
        for at in (row, height - 1 - row):
            yield at, mirrored


@dataclass(frozen=True)
class Corner(_Patterns):
    """Switch on a run of pixels along the border from a corner, at every time and for every polarity.

    The run is 2 pixels long at first, at each of the four corners in turn, then longer by `step`, until
    it is as long as the side.

    Args:
        step: pixels by which the run grows.

    Cost: at most 4 (W - 2) / step forwards, rounded up.
    """

    step: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="dvs_corner.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        access=Access.LABEL,
        minimum_norm=True,
        source=f"{_PAPER}, Corner. Differs: {_BUDGET}.",
        cost="4 (W - 2) / step forwards at most",
    )

    def __post_init__(self) -> None:
        _check_step(self.spec.name, self.step)

    def patterns(self, shape: tuple[int, ...]) -> Iterator[Tensor]:
        for length in range(2, shape[-1], self.step):
            for row, mirrored in _corners(shape[-2]):
                pattern = torch.zeros(shape, dtype=torch.bool)
                pattern[..., row, :length] = True
                yield pattern.flip(-1) if mirrored else pattern


@dataclass(frozen=True)
class Dash(_Patterns):
    """Switch on two neighbouring border pixels, at every time and for every polarity, and slide inwards.

    Args:
        step: pixels by which the dash slides after all four corners were tried.

    Cost: at most 4 (W - 2) / step forwards, rounded up.
    """

    step: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="dvs_dash.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        access=Access.LABEL,
        minimum_norm=True,
        source=f"{_PAPER}, Dash. Differs: {_BUDGET}.",
        cost="4 (W - 2) / step forwards at most",
    )

    def __post_init__(self) -> None:
        _check_step(self.spec.name, self.step)

    def patterns(self, shape: tuple[int, ...]) -> Iterator[Tensor]:
        for end in range(2, shape[-1], self.step):
            for row, mirrored in _corners(shape[-2]):
                pattern = torch.zeros(shape, dtype=torch.bool)
                pattern[..., row, end - 2 : end] = True
                yield pattern.flip(-1) if mirrored else pattern


@dataclass(frozen=True)
class MaskDash(_Patterns):
    """A dash that moves on before a mask filter notices it: no pixel gets more than `cap` spikes.

    The dash stays for `cap` time steps, then jumps two pixels inwards, and so on, in one polarity. When
    all columns were tried it starts again `row_step` rows further in, up to an eighth of the height.

    Args:
        cap: most spikes added to any pixel; choose it below the filter's limit.
        step: pixels by which the start slides after all four corners were tried.
        row_step: rows by which it moves in when the columns are exhausted.
        polarity: channel that is written (the last one where there are fewer).

    Cost: at most 4 (W - 2) / step forwards for each row offset.
    """

    cap: int = 1
    step: int = 1
    row_step: int = 1
    polarity: int = 1
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="dvs_mask_dash.l0",
        geometries=("l0",),
        domains=(Domain.SPIKES,),
        access=Access.LABEL,
        minimum_norm=True,
        source=(
            f"{_PAPER}, mask-filter-aware Dash. Differs: {_BUDGET}; every block lasts exactly cap steps "
            "(the release: cap, then cap - 1)."
        ),
        cost="4 (W - 2) / step forwards at most, for each of H/8 row offsets",
    )

    def __post_init__(self) -> None:
        _check_step(self.spec.name, min(self.step, self.row_step, self.cap))
        if self.polarity < 0:
            raise ConfigError(f"{self.spec.name}: polarity must be 0 or more, got {self.polarity}.")

    def patterns(self, shape: tuple[int, ...]) -> Iterator[Tensor]:
        steps, channels, height, width = shape
        channel = min(self.polarity, channels - 1)
        for offset in range(0, height // 8 + 1, self.row_step):
            for end in range(2, width, self.step):
                for row, mirrored in _corners(height, row=offset):
                    pattern = torch.zeros(shape, dtype=torch.bool)
                    for block, start in enumerate(range(0, steps, self.cap)):
                        left = end - 2 + 2 * block
                        pattern[start : start + self.cap, channel, row, left : left + 2] = True
                    yield pattern.flip(-1) if mirrored else pattern


def _check_step(name: str, step: int) -> None:
    if step < 1:
        raise ConfigError(f"{name}: steps and cap must be at least 1, got {step}.")
