"""Step functions: saying of a call of a Function whether it steps over an argument, and where.

A Function is asked, not read: potentials of our own are put in place of an argument, and the jumps of its
answer are found by bisection. So nothing hangs on the data that a network happened to see.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_VALUES = 32
"""Values of an answer beyond which a staircase counts as rounding."""

_BISECTIONS = 60
_WIDTH = 2.5e-5
"""Width of the neighbourhood of a jump, in units of the reach of the search."""


@dataclass(frozen=True)
class Step:
    """How a Function steps over one argument.

    Args:
        argument: position of the potential among the arguments.
        place: potential of the first jump; a float, or a tensor that broadcasts over the potential.
        threshold: position of the argument that holds the place instead, or None.
        spacing: distance between jumps; 0 where there is one.
        levels: number of jumps.
        height: how much the output rises at a jump.
    """

    argument: int
    place: float | Tensor
    threshold: int | None
    spacing: float
    levels: int
    height: float

    def above(self, args: Sequence[Any]) -> Tensor:
        """Return how far the potential of a call is above its first jump."""
        u: Tensor = args[self.argument]
        place = self.place if self.threshold is None else args[self.threshold]
        if isinstance(place, Tensor):
            return u - place.to(u.device)
        return u - place if place else u

    def distance(self, args: Sequence[Any]) -> Tensor:
        """Return how far the potential of a call is above its nearest jump, without a graph."""
        u = self.above(args).detach()
        if self.levels > 1:
            u = u - self.spacing * (u / self.spacing).round().clamp(0, self.levels - 1)
        return u


def find_step(own: Callable[..., Any], args: Sequence[Any], out: Any) -> Step | None:
    """Say over which argument a Function steps, and where; None if it is no regular staircase.

    Args:
        own: the Function's apply.
        args: the arguments of a call; of these one at a time is replaced.
        out: what it answered.

    Cost: about 130 calls of the Function alone.
    """
    if not isinstance(out, Tensor) or not out.is_floating_point() or not out.numel():
        return None
    if len(out.detach().unique()) > MOST_VALUES:
        return None
    for index, u in enumerate(args):
        if isinstance(u, Tensor) and u.shape == out.shape and u.is_floating_point() and u.requires_grad:
            with torch.no_grad():
                found = _step_over(own, args, index, out)
            if found is not None:
                return found
    return None


def _step_over(own: Callable[..., Any], args: Sequence[Any], index: int, out: Tensor) -> Step | None:
    u = args[index].detach()
    reach = 4 * max(1.0, *(size for size in map(_size, args) if size < 1e6))

    def fire(v: Tensor) -> Tensor:
        answer: Tensor = own(*args[:index], v.clone(), *args[index + 1 :])
        return answer

    def jump(low: Tensor, value: Tensor) -> Tensor:
        """Return the least potentials above `low` whose answer is not `value` any more."""
        high = torch.full_like(u, reach)
        for _ in range(_BISECTIONS):
            middle = low + (high - low) / 2
            fires = fire(middle) != value
            low, high = torch.where(fires, low, middle), torch.where(fires, middle, high)
        return high

    lowest, highest = fire(torch.full_like(u, -reach)), fire(torch.full_like(u, reach))
    if not bool(torch.isfinite(highest - lowest).all()) or bool((highest == lowest).any()):
        return None
    if not torch.equal(out.detach(), fire(u)):
        return None  # it draws its spikes at random
    first = jump(torch.full_like(u, -reach), lowest)
    width = _WIDTH * reach
    above = fire(first + width)
    heights, spacing, levels = above - lowest, 0.0, 1
    if not bool((above == highest).all()):
        distances = jump(first + width, above) - first
        spacing = float(distances.median())
        steps = ((highest - lowest) / heights).round()
        if spacing < 4 * width or not bool(torch.isfinite(steps).all()):
            return None
        if float((distances - spacing).abs().max()) > 1e-3 * spacing:
            return None
        levels = int(steps.max())
        if levels > 2 and bool((lowest != 0).any()):
            return None  # rounding of numbers of both signs
    height = float(heights.flatten()[0])
    if float((heights - height).abs().max()) > 1e-5 * abs(height):
        return None
    place, threshold = _known_place(first, args, index)
    step = Step(index, place, threshold, spacing, levels, height)
    at = args[threshold] if threshold is not None else place
    count = (u >= at).to(u.dtype) if levels == 1 else ((u - at) / spacing).floor().add(1).clamp(0, levels)
    wrong = (lowest + count * height - out).abs() > 1e-3 * abs(height)
    near = step.distance(args).abs() <= width  # rounding decides there, and < or <=
    return None if bool((wrong & ~near).any()) else step


def _size(value: Any) -> float:
    if isinstance(value, Tensor):
        return float(value.detach().abs().max()) if value.is_floating_point() and value.numel() else 0.0
    return abs(float(value)) if isinstance(value, int | float) else 0.0


def _known_place(first: Tensor, args: Sequence[Any], index: int) -> tuple[float | Tensor, int | None]:
    """Return the place of a jump found by bisection as the number, or the argument, that it must be."""

    def is_at(value: float | Tensor) -> bool:
        return bool(((first - value).abs() <= 1e-5 * max(1.0, float(first.abs().max()))).all())

    if is_at(0.0):
        return 0.0, None
    for other, value in enumerate(args):
        if other == index:
            continue
        if isinstance(value, int | float) and is_at(float(value)):
            return float(value), None
        if isinstance(value, Tensor) and value.is_floating_point():
            try:
                fits = torch.broadcast_shapes(value.shape, first.shape) == first.shape
            except RuntimeError:
                continue
            if fits and is_at(value):
                return 0.0, other
    if bool((first == first.flatten()[0]).all()):
        return float(first.flatten()[0]), None
    return first[:1], None  # a threshold per channel: the same for every sample
