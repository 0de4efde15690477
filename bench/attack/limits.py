"""Bounds on foreign code: time, memory, and processes that may die without taking the run along."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from robustspike.bench.errors import BenchError
from robustspike.bench.errors import VictimFailed

LEAST_GIB = 0.125
"""The smallest limit of memory that an honest attack on a tiny network can keep to, for the threads and
buffers that torch makes on its first gradient; below it processes abort."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Numbers of two settings of the GNU C library's memory allocator (malloc.h)."""

_LARGEST_REUSED = 32 << 20
"""Bytes of the largest block that is reused; the most that the library itself would come to."""

_MOST_KEPT = 128 << 20
"""Bytes at the end of the heap that are kept though nobody uses them."""

_HAS_ALARM = hasattr(signal, "SIGALRM")


class TimedOut(BaseException):
    """A block took longer than allowed; no Exception, so that an attack does not catch it by accident."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimedOut in the block once it has taken too long, and again every second if it goes on.

    Works by SIGALRM, so only in a main thread and not on Windows (elsewhere there is no limit), and only
    between two Python instructions: compiled code that never returns is left to `watchdog`.
    """
    if seconds is None or not _HAS_ALARM or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signum: int, _frame: object) -> None:
        raise TimedOut

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def memory_limit(gib: float | None) -> Iterator[None]:
    """Let allocations in the block fail once it has added that much memory to this process.

    By RLIMIT_DATA, which counts the memory that a process may write and no one else sees: what torch, numpy
    and Python allocate, on every thread. Neither the address space that libraries reserve (RLIMIT_AS counts
    it, and stops torch at once) nor what others share counts. An allocation beyond the limit raises
    MemoryError or torch's RuntimeError, so that the block cannot take more whatever it catches. Linux only;
    elsewhere there is no limit.
    """
    if gib is None or sys.platform != "linux":
        yield
        return
    import resource  # POSIX only

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = data_bytes() + int(gib * 2**30)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def keep_freed_memory() -> None:
    """Let this process reuse the memory of a pass in the next one, up to 128 MiB of it, and not hand it back.

    The GNU C library returns large blocks to the system when they are freed, which then has to find, and
    zero, every page of them again: up to a seventh of the time of PGD on a network of digits. No number
    changes. Elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGEST_REUSED)
        set_option(_TRIM_THRESHOLD, _MOST_KEPT)


def data_bytes() -> int:
    """Return how much memory of this process RLIMIT_DATA counts; 0 where Linux does not say."""
    try:
        found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii", "replace"))
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


@dataclass(frozen=True)
class Limits:
    """What an attack or a certifier may take on one shard.

    Args:
        seconds: time; None for no limit.
        gib: memory in GiB that it may add to its process; None for no limit.
    """

    seconds: float | None = None
    gib: float | None = None

    def cannot(self) -> list[str]:
        """Say, a line each, which of these limits this platform cannot hold foreign code to."""
        lines = []
        if self.seconds is not None and not _HAS_ALARM:
            lines.append(
                f"--timeout: {sys.platform} has no alarm signal, so an attack is not stopped after "
                f"{self.seconds:g} s; with --jobs 2 or more its worker is ended at twice that and a minute."
            )
        if self.gib is not None and sys.platform != "linux":
            lines.append(f"--memory: only Linux limits the memory of a process, {sys.platform} does not.")
        return lines

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Hold the block to the limits; what it raises beyond them, `failure` puts in words."""
        with memory_limit(self.gib), time_limit(self.seconds):
            yield

    def failure(self, name: str, n: int, error: BaseException) -> str:
        """Return the one line that says why foreign code failed on a shard of n samples."""
        again = "Give it more ({}) or less to do, remove the record, and run again."
        if isinstance(error, TimedOut):
            return f"{name}: stopped after {self.seconds:g} s on {n} samples. {again.format('--timeout')}"
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            most = "there is" if self.gib is None else f"{self.gib:.3g} GiB"
            taken = f"wanted more memory than {most}"
            return f"{name}: {taken} on {n} samples. {again.format('--memory')}"
        if isinstance(error, VictimFailed):
            return str(error)
        text = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        return text if text.startswith(name) else f"{name}: {text}"


NO_LIMITS = Limits()


@contextmanager
def watchdog(seconds: float | None) -> Iterator[None]:
    """End this process if the block takes too long, even in compiled code that holds the interpreter."""
    if seconds is None:
        yield
        return
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
