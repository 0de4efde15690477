"""Progress of a run: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING
from typing import Protocol

import click

if TYPE_CHECKING:
    from robustspike.bench.run.run import Tick
    from robustspike.bench.suite.cell import Cell

EVERY = 10.0
"""Seconds between two plain lines."""

FIRST = 0.5
"""Seconds to the first one."""


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def on_start(self, cell: Cell) -> None:
        """A shard of a cell starts."""

    def on_tick(self, tick: Tick) -> None:
        """A shard is done."""


def name_of(cell: Cell) -> str:
    """Name a cell in a line."""
    return f"{cell.victim_label} + {cell.defense}: {cell.label}, {cell.threat.label}"


def clock(seconds: float) -> str:
    """Write a length of time as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def progress(cells: int, *, quiet: bool = False, verbose: bool = False) -> Iterator[Watcher]:
    """Show how a run of so many cells goes on, on stderr.

    Args:
        quiet: show nothing.
        verbose: plain lines, one for every shard that is done too.
    """
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty() and not verbose:
        with _bar(cells) as watcher:
            yield watcher
    else:
        plain = Plain(cells, verbose=verbose)
        with plain.told():
            yield plain


class _Silent:
    def on_start(self, cell: Cell) -> None:
        del cell

    def on_tick(self, tick: Tick) -> None:
        del tick


@dataclass
class Plain:
    """A line within a second, then one every so often, whatever the run is doing.

    Args:
        cells: how many cells there are.
        verbose: also a line for every shard that is done.
        every: seconds between two lines.
        say: prints a line.
        now: a clock in seconds.
    """

    cells: int
    verbose: bool = False
    every: float = EVERY
    say: Callable[[str], None] = field(default=lambda line: click.echo(line, err=True))
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self.now()
        self._done = self._total = 0
        self._first: tuple[int, float] | None = None
        self._running = ""

    def on_start(self, cell: Cell) -> None:
        """Note the cell that runs."""
        self._first = self._first or (self._done, self.now())
        self._running = name_of(cell)

    def on_tick(self, tick: Tick) -> None:
        """Note how far the run is."""
        if not self._total:  # what an earlier run had done took no time
            began = self._began if self._first is None else self._first[1]
            self._first = (tick.done - 1, began)
        self._running = self._running or name_of(tick.cell)
        self._done, self._total = tick.done, tick.total
        if self.verbose:
            self.say(f"done {tick.done}/{tick.total}: {name_of(tick.cell)}")

    def line(self) -> str:
        """Say how far the run is: elapsed, shards, remaining, the cell that runs."""
        elapsed = clock(self.now() - self._began)
        if self._first is None:
            return f"{elapsed} elapsed, {self.cells} cells: looking up what is measured, checking victims"
        left = ""
        done = self._done - self._first[0]
        if self._total and done > 0:
            rest = (self.now() - self._first[1]) / done * (self._total - self._done)
            left = f", {self._done}/{self._total} shards, about {clock(rest)} left"
        return f"{elapsed} elapsed{left}; running {self._running}"

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Print lines for the length of the block."""
        over = threading.Event()

        def tell() -> None:
            pause = min(FIRST, self.every)  # what is refused at once is one line, the refusal
            while not over.wait(pause):
                self.say(self.line())
                pause = self.every

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()


@contextlib.contextmanager
def _bar(cells: int) -> Iterator[Watcher]:
    from rich.console import Console
    from rich.progress import BarColumn
    from rich.progress import MofNCompleteColumn
    from rich.progress import Progress
    from rich.progress import TextColumn
    from rich.progress import TimeElapsedColumn
    from rich.progress import TimeRemainingColumn

    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{cells} cells", total=None)

        class Bar:
            def on_start(self, cell: Cell) -> None:
                bar.update(task, description=name_of(cell))

            def on_tick(self, tick: Tick) -> None:
                bar.update(task, completed=tick.done, total=tick.total)

        yield Bar()
