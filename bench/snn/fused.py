"""The steps of a LIF or IF layer in C: the same bits as in Python, in less time.

The source (`fused.c`) is compiled when a layer first asks for it, by the C compiler of the machine, in about
a second, and kept in the cache folder. Where there is no compiler, where it fails, or where
ROBUSTSPIKE_FUSED=0 is set, everything runs as it does without: `library` answers None.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustspike.bench.files import cached
from robustspike.bench.files import sha256

_LOG = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("fused.c")
_FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC")
_TRIES = (("-DCLONES",), ())  # not every compiler builds a function for several processors at once
_PATIENCE = 60
"""Seconds that a compiler may take; it needs one."""

_SHARE = 1 << 19
"""Elements of a sequence per thread below which one more thread costs more than it saves."""


class _Layer(ctypes.Structure):
    _fields_ = [
        ("tau", ctypes.c_float),
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
        tau: time constant; None for IF.
        threshold: firing threshold.
        v_reset: what a hard reset sets; None for a soft one.
        decay_input: whether the current decays too.
        detach_reset: whether the gradient is cut at the reset.
        own: whether what flows back through a hard reset is summed in the order of the node's own graph.
    """

    tau: float | None
    threshold: float
    v_reset: float | None
    decay_input: bool
    detach_reset: bool
    own: bool = False

    def packed(self, atan: tuple[float, float] = (0.0, 0.0)) -> _Layer:
        return _Layer(
            self.tau or 0.0,
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
    if os.environ.get("ROBUSTSPIKE_FUSED", "1") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        source = _SOURCE.read_bytes()
        name = sha256(source + repr((_FLAGS, compiler, platform.machine())).encode())[:16]
        code = cached(f"fused-{name}", lambda: _compiled(compiler))
        return _loaded(code)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _LOG.info("spiking layers run without compiled code: %s", error)
        return None


def _compiler() -> str | None:
    """Return the path of a C compiler: $CC, else the usual names."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def _compiled(compiler: str) -> bytes:
    """Compile the source and return the shared library. Raises: OSError, SubprocessError: no flags worked."""
    with tempfile.TemporaryDirectory(prefix="robustspike-") as folder:
        out = Path(folder) / "fused.so"
        for last, extra in zip((False, True), _TRIES, strict=True):
            command = [compiler, *_FLAGS, *extra, str(_SOURCE), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=last)
            if done.returncode == 0:
                break
        return out.read_bytes()


def _loaded(code: bytes) -> ctypes.CDLL:
    """Load a shared library from its bytes. Raises: OSError: not one for this machine."""
    with tempfile.TemporaryDirectory(prefix="robustspike-") as folder:
        path = Path(folder) / "fused.so"
        path.write_bytes(code)
        found = ctypes.CDLL(str(path))
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    found.lif_forward.argtypes = [pointer, size, size, size, size, pointer, pointer, pointer, pointer]
    found.lif_backward.argtypes = [pointer, size, size, size, size, *[pointer] * 5]
    found.lif_forward.restype = found.lif_backward.restype = None
    return found


def serves(*tensors: Tensor) -> bool:
    """Say whether the compiled steps can be had and can read and write these tensors."""
    plain = all(
        t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() and type(t) is Tensor
        for t in tensors
    )
    return plain and library() is not None


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
    threads = min(torch.get_num_threads(), max(1, steps * n // _SHARE))
    bounds = [n * i // threads for i in range(threads + 1)]

    def part(start: int, stop: int) -> None:
        run(ctypes.byref(layer), steps, n, start, stop, *pointers)

    if threads == 1:
        part(0, n)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, bounds[:-1], bounds[1:]))
