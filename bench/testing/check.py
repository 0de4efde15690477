"""What a check is: a named function that raises `CheckFailed` with what was expected and what came."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustspike.bench.errors import BenchError


class CheckFailed(AssertionError):
    """A contract check that did not hold."""


class CheckSkipped(Exception):
    """A contract check that does not apply, with the reason."""


Checks = Mapping[str, Callable[[Any], None]]


@dataclass(frozen=True)
class Outcome:
    """How one check went: "passed", "failed" or "skipped", why, and how long it took."""

    name: str
    result: str
    detail: str
    seconds: float


def require(condition: object, message: str) -> None:
    """Raise `CheckFailed` unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def run_checks(component: Any, checks: Checks) -> list[Outcome]:
    """Run every check on a component; failures are collected, not raised."""
    outcomes = []
    for name, check in checks.items():
        start = time.perf_counter()
        result, detail = "passed", ""
        try:
            check(component)
        except CheckSkipped as skipped:
            result, detail = "skipped", str(skipped)
        except (AssertionError, BenchError, RuntimeError, TypeError, ValueError, LookupError) as error:
            result, detail = "failed", f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(name, result, detail, time.perf_counter() - start))
    return outcomes
