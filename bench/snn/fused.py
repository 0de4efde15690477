"""The steps of a LIF or IF layer in C: the same bits as in Python, in less time.

The source (`fused.c`) is compiled when a layer first asks for it (see `compiled`). Where it cannot be,
`library` answers None, and everything runs as it does without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from robustspike.bench.snn import compiled

_SOURCE = Path(__file__).with_name("fused.c")
_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p
_FUNCTIONS = {
    "lif_forward": (_POINTER, *[_SIZE] * 4, *[_POINTER] * 4),
    "lif_backward": (_POINTER, *[_SIZE] * 4, *[_POINTER] * 5),
}


class _Layer(ctypes.Structure):
    _fields_ = [
        ("tau", ctypes.c_float),
        ("share", ctypes.c_float),
        ("rest", ctypes.c_float),
        ("threshold", ctypes.c_float),
        ("decays", ctypes.c_int32),
        ("soft", ctypes.c_int32),
        ("detached", ctypes.c_int32),
        ("own", ctypes.c_int32),
        ("inner", ctypes.c_float),
        ("outer", ctypes.c_float),
    ]


@dataclass(frozen=True)
class Layer:
    """The equations of a plain layer.

    Args:
        tau: time constant; None for IF and PLIF.
        threshold: firing threshold.
        v_reset: what a hard reset sets; None for a soft one.
        decay_input: whether the current decays too.
        detach_reset: whether the gradient is cut at the reset.
        own: whether what flows back through a hard reset is summed in the order of the node's own graph.
        share: what leaks of the potential in a step, for PLIF; 0 for the others.
    """

    tau: float | None
    threshold: float
    v_reset: float | None
    decay_input: bool
    detach_reset: bool
    own: bool = False
    share: float = 0.0

    def packed(self, atan: tuple[float, float] = (0.0, 0.0)) -> _Layer:
        return _Layer(
            self.tau or 0.0,
            self.share,
            self.v_reset or 0.0,
            self.threshold,
            self.decay_input,
            self.v_reset is None,
            self.detach_reset,
            self.own,
            *atan,
        )


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled steps, or None where they cannot be had or are not wanted (ROBUSTSPIKE_FUSED=0)."""
    return compiled.load(_SOURCE.read_text(encoding="utf-8"), _FUNCTIONS)


def serves(*tensors: Tensor) -> bool:
    """Say whether the compiled steps can be had and can read and write these tensors."""
    return compiled.readable(*tensors) and library() is not None


def forward(layer: Layer, current: Tensor, v: Tensor, *, charged: Tensor | None, spikes: Tensor) -> None:
    """Run the steps on currents [T, N, ...], all tensors as `serves` wants them.

    Args:
        v: potential before the first step [N, ...]; overwritten by that after the last.
        charged: where the potentials before every reset are written [T, N, ...], if anywhere.
        spikes: where the spikes are written [T, N, ...]; may be the currents.
    """
    _shared("lif_forward", layer.packed(), current, current, v, charged, spikes)


def backward(
    layer: Layer,
    grad: Tensor,
    charged: Tensor,
    slopes: Tensor | tuple[float, float],
    carry: Tensor | None,
    *,
    out: Tensor,
) -> None:
    """Write the gradient of the currents [T, N, ...], all tensors as `serves` wants them.

    Args:
        grad: gradient of the spikes.
        slopes: of every step, or (a, b) for b / (1 + (a u)^2).
        carry: gradient of the potential after the last step [N, ...]; None where nothing hangs on it.
    """
    given = isinstance(slopes, Tensor)
    packed = layer.packed() if isinstance(slopes, Tensor) else layer.packed(slopes)
    _shared("lif_backward", packed, grad, grad, charged, slopes if given else None, carry, out)


def _shared(name: str, layer: _Layer, like: Tensor, *tensors: Any) -> None:
    """Call a function of the library on [T, N, ...], its neurons divided among torch's threads."""
    run: Callable[..., None] = getattr(library(), name)
    steps, n = len(like), like[0].numel()
    pointers = [None if t is None else t.data_ptr() for t in tensors]

    def part(start: int, stop: int) -> None:
        run(ctypes.byref(layer), steps, n, start, stop, *pointers)

    compiled.shared(part, n, steps * n)
