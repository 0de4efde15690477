"""Worker processes, which may die without taking the run along."""

from __future__ import annotations

import multiprocessing
import os
import signal
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
from pathlib import Path
from typing import Any
from typing import TypeVar

from robustspike.bench.attack.limits import LEAST_GIB

Task = TypeVar("Task")


def memory_share(jobs: int) -> float | None:
    """Return a worker's share of this machine's memory in GiB: four fifths of it by the number of workers.

    At least what an honest attack needs; None where the platform does not say how much it has.
    """
    usable = usable_memory()
    return None if usable is None else max(LEAST_GIB, usable / jobs)


def workers_for(cores: int, gib: float | None) -> int:
    """Return how many workers to start where nobody says: one a core, or as many as memory holds.

    Args:
        cores: processor cores that this process may use.
        gib: memory that each worker is allowed to add; 0 for any, None where that was not said.
    """
    usable = usable_memory()
    if gib == 0 or usable is None:
        return cores
    return max(1, min(cores, int(usable / (gib or LEAST_GIB))))


def usable_memory() -> float | None:
    """Return four fifths of this machine's (or control group's) memory in GiB; None where nothing says."""
    if not hasattr(os, "sysconf"):
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        try:
            total = min(total, int((Path("/sys/fs/cgroup") / name).read_text("ascii", "replace")))
        except (OSError, ValueError):
            continue
    return 0.8 * total / 2**30


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
    on_start: Callable[[Task], None] | None = None,
) -> Iterator[tuple[Task, bool]]:
    """Call `call(task, *arguments)` for every task in worker processes, `start(*arguments)` once in each.

    `on_start` is told, here, every task that is handed to a worker.

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
                            if on_start is not None:
                                on_start(task)
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
