"""Bounds on foreign code: time, memory, and processes that may die without taking the run along."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED
from concurrent.futures import Future
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import TypeVar

from robustspike.bench.errors import BenchError

Task = TypeVar("Task")


class TimedOut(BaseException):
    """A block took longer than allowed; no Exception, so that an attack does not catch it by accident."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimedOut in the block once it has taken too long, and again every second if it goes on.

    Works by SIGALRM, so only in a main thread (elsewhere there is no limit), and only between two Python
    instructions: compiled code that never returns is left to `watchdog`.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
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
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = data_bytes() + int(gib * 2**30)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def data_bytes() -> int:
    """Return how much memory of this process RLIMIT_DATA counts; 0 where Linux does not say."""
    try:
        found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii", "replace"))
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def memory_share(jobs: int) -> float:
    """Return a worker's share of this machine's memory in GiB: four fifths of it by the number of workers."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        try:
            total = min(total, int((Path("/sys/fs/cgroup") / name).read_text("ascii", "replace")))
        except (OSError, ValueError):
            continue
    return 0.8 * total / 2**30 / jobs


@dataclass(frozen=True)
class Limits:
    """What an attack or a certifier may take on one shard.

    Args:
        seconds: time; None for no limit.
        gib: memory in GiB that it may add to its process; None for no limit.
    """

    seconds: float | None = None
    gib: float | None = None

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


@contextmanager
def interrupts_stay_here() -> Iterator[None]:
    """Let processes started in the block ignore Ctrl-C: this one stops them, without their tracebacks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)


def in_processes(
    tasks: Sequence[Task],
    call: Callable[..., object],
    *arguments: Any,
    jobs: int,
    start: Callable[..., None],
) -> Iterator[tuple[Task, bool]]:
    """Call `call(task, *arguments)` for every task in worker processes, `start(*arguments)` once in each.

    Where a worker dies, the tasks that were running are repeated, each alone in a process; the one whose
    process dies again is the culprit.

    Yields: tasks as they end, with whether their process survived.
    Raises: whatever a call raises; what has not started is then dropped.
    """
    waiting, suspects = deque(tasks), deque[Task]()
    while waiting or suspects:
        alone = bool(suspects)
        batch = deque([suspects.popleft()]) if alone else waiting
        workers = 1 if alone else min(jobs, len(waiting))
        lost: list[Task] = []
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=start, initargs=arguments) as pool:
            running: dict[Future[object], Task] = {}
            try:
                while (batch and not lost) or running:
                    while batch and not lost and len(running) < workers:
                        task = batch.popleft()
                        try:
                            with interrupts_stay_here():
                                future = pool.submit(call, task, *arguments)
                            running[future] = task
                        except BrokenProcessPool:
                            lost.append(task)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        task = running.pop(future)
                        if isinstance(future.exception(), BrokenProcessPool):
                            lost.append(task)
                        else:
                            future.result()
                            yield task, True
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if alone and lost:
            yield lost[0], False
        else:
            suspects.extend(lost)
