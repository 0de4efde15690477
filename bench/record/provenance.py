"""Where, when and by which command records were made: run.json beside them, the header of their tables."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path

from robustspike.bench.errors import ArtefactError
from robustspike.bench.files import write_atomic
from robustspike.bench.files import writing

NAME = "run.json"
COSTS = "costs.csv"
MAX_BYTES = 1 << 20
_LONGEST = 300


@dataclass(frozen=True)
class Session:
    """One call of the tool that measured something.

    Args:
        command: the command line, as typed after the name of the shell.
        machine: cores, processor, memory, platform.
        date: the day it began, UTC, ISO 8601.
    """

    command: str
    machine: str
    date: str

    @property
    def line(self) -> str:
        """The session in words."""
        return f"{self.command} · {self.machine} · {self.date}"


def session(command: str) -> Session:
    """Return the session that begins now on this machine."""
    today = datetime.datetime.now(datetime.UTC).date()
    return Session(command, machine(), today.isoformat())


def machine() -> str:
    """Describe this machine: cores that may be used, processor, memory, platform."""
    parts = [f"{cores()} x {_processor()}", _memory(), f"{sys.platform} {platform.machine()}"]
    return ", ".join(part for part in parts if part)


def cores() -> int:
    """Return how many cores this process may use: under taskset or a scheduler not all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or "CPU"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (OSError, ValueError, AttributeError):
        return ""


def note(folder: Path, now: Session) -> None:
    """Add a session to a results folder; one that is already there is not repeated."""
    sessions = read(folder)
    if now not in sessions:
        value = {"sessions": [asdict(known) for known in (*sessions, now)]}
        write_atomic(folder / NAME, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def note_cost(folder: Path, key: str, *, seconds: float, forwards: int, backwards: int) -> None:
    """Add what a cell took to costs.csv of a results folder, beside its records and no part of them.

    Args:
        seconds: processor seconds of all its shards, what the harness did included.
        forwards, backwards: passes that its attack was charged, summed over samples.
    """
    path = folder / COSTS
    with writing(path), path.open("a", encoding="ascii", newline="") as file:
        if not file.tell():
            file.write("key,processor_seconds,forwards,backwards,passes_a_second\n")
        speed = (forwards + backwards) / seconds if seconds > 0 else 0.0
        file.write(f"{key},{seconds:.3f},{forwards},{backwards},{speed:.1f}\n")


def read(folder: Path) -> list[Session]:
    """Read the sessions of a results folder or an unpacked bundle; none where it has no run.json.

    Raises: ArtefactError: it is there, and not what `note` writes.
    """
    path = folder / NAME
    if not path.exists():
        return []
    try:
        is_odd = path.is_symlink() or path.stat().st_size > MAX_BYTES
        data = b"" if is_odd else path.read_bytes()
    except OSError as error:
        raise ArtefactError(_refusal(path, error)) from error
    if is_odd:
        raise ArtefactError(_refusal(path, f"a link, or more than {MAX_BYTES} bytes"))
    return parse(data, path)


def parse(data: bytes, path: Path) -> list[Session]:
    """Return the sessions of the bytes of a run.json. Raises: ArtefactError: they are none."""
    try:
        return [
            Session(**{key: " ".join(str(text).split())[:_LONGEST] for key, text in known.items()})
            for known in json.loads(data.decode("utf-8"))["sessions"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactError(_refusal(path, error)) from error


def _refusal(path: Path, why: object) -> str:
    return f"{path}: does not say how its records were made ({why}). Delete it; the records stay good."


def lines(sessions: Sequence[Session]) -> list[str]:
    """Return the header lines of a table, each once, oldest first."""
    return list(dict.fromkeys(known.line for known in sorted(sessions, key=lambda s: (s.date, s.line))))
