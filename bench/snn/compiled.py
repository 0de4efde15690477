"""C beside Python: a source compiled when it is first asked for, by the C compiler of the machine, and kept.

Compiling takes about a second; the result stays in the cache folder. Where there is no compiler, where it
fails, or where ROBUSTSPIKE_FUSED=0 is set, there is no library, and whoever asks does without: what is
compiled gives the same bits as what it stands in for.
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
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustspike.bench.files import cached
from robustspike.bench.files import sha256

_LOG = logging.getLogger(__name__)
_FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC")
_TRIES = (("-DCLONES",), ())  # not every compiler builds a function for several processors at once
_PATIENCE = 60
"""Seconds that a compiler may take; it needs one."""

_SHARE = 1 << 19
"""Elements per thread below which one more thread costs more than it saves."""


def load(source: str, functions: Mapping[str, Sequence[Any]]) -> ctypes.CDLL | None:
    """Return the functions of a C source, or None where they cannot be had or are not wanted.

    Args:
        source: C. Nothing is contracted; CLONES is defined where a function can be built for several
            processors at once (`target_clones`).
        functions: name -> argument types; all return nothing.
    """
    if os.environ.get("ROBUSTSPIKE_FUSED", "1") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        name = sha256(source.encode() + repr((_FLAGS, compiler, platform.machine())).encode())[:16]
        return _loaded(cached(f"compiled-{name}", lambda: _compiled(compiler, source)), functions)
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _LOG.info("spiking layers run without compiled code: %s", error)
        return None


def _compiler() -> str | None:
    """Return the path of a C compiler: $CC, else the usual names."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def _compiled(compiler: str, source: str) -> bytes:
    """Compile a source and return the shared library. Raises: OSError, SubprocessError: no flags worked."""
    with tempfile.TemporaryDirectory(prefix="robustspike-") as folder:
        text, out = Path(folder) / "source.c", Path(folder) / "compiled.so"
        text.write_text(source, encoding="utf-8")
        for last, extra in zip((False, True), _TRIES, strict=True):
            command = [compiler, *_FLAGS, *extra, str(text), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=last)
            if done.returncode == 0:
                break
        return out.read_bytes()


def _loaded(code: bytes, functions: Mapping[str, Sequence[Any]]) -> ctypes.CDLL:
    """Load a shared library from its bytes. Raises: OSError, AttributeError: not one for this machine."""
    with tempfile.TemporaryDirectory(prefix="robustspike-") as folder:
        path = Path(folder) / "compiled.so"
        path.write_bytes(code)
        found = ctypes.CDLL(str(path))
    for name, types in functions.items():
        function = getattr(found, name)
        function.argtypes, function.restype = list(types), None
    return found


def readable(*tensors: Tensor) -> bool:
    """Say whether compiled code can read and write these tensors: contiguous float32 on the CPU."""
    return all(
        t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() and type(t) is Tensor
        for t in tensors
    )


def shared(run: Callable[[int, int], None], n: int, elements: int) -> None:
    """Call run(start, stop) on parts of 0..n-1 that cover it, one part for each of torch's threads.

    Args:
        elements: of the whole work; each thread gets a share that is worth its start.
    """
    threads = min(torch.get_num_threads(), max(1, elements // _SHARE))
    if threads == 1:
        run(0, n)
        return
    bounds = [n * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, bounds[:-1], bounds[1:]))
