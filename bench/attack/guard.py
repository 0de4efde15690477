"""Foreign code under guard: what an attack returns, and what it must leave alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.limits import Limits
from robustspike.bench.attack.meter import Meter
from robustspike.bench.attack.oracle import Oracle
from robustspike.bench.attack.result import ERROR
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import ThreatViolation
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.victim.state import build_of
from robustspike.bench.victim.state import saved_of


def _run(attack: Attack, meter: Meter, rng: RowStreams, result: ShardResult, limits: Limits) -> Tensor | None:
    """Run the attack and return what it returned if that is a tensor to judge at all.

    An attack is foreign code: whatever it raises, SystemExit too, is its error; only Ctrl-C gets through.
    """
    x0, y = meter.x0.clone(), meter.y.clone()
    build, saved = build_of(meter.victim), saved_of(meter.victim)
    name, found = attack.spec.name, None
    try:
        with _global_state_unused(name), limits.kept():
            returned = attack.run(Oracle(meter), x0, y, rng=rng)
        if meter.overspent:
            raise ContractError(
                f"{name}: spent more passes than its budget. Leave what `active` returns alone."
            )
        if not torch.equal(x0, meter.x0) or not torch.equal(y, meter.y):
            raise ContractError(f"{name}: modified x0 or y in place. Work on a clone.")
        found = _checked(name, returned, meter.x0)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (see above)
        message = limits.failure(name, len(x0), error)
        result.errors.append(message)
        result.cause = error if isinstance(error, BenchError) else ContractError(message)
    what = build.differs()
    if what is not None:
        build.restore()
    elif any(saved.get(key, now) != now for key, now in saved_of(meter.victim).items()):
        what = "parameters or buffers"
    if what is not None:
        result.status.fill_(ERROR)  # of those too that were not attacked: whose answers are they?
        result.cause = ContractError(
            f"{name}: left the victim changed ({what}). Change nothing, or put it back."
        )
        result.errors.append(str(result.cause))
        return None
    return found


def _checked(name: str, returned: object, x0: Tensor) -> Tensor:
    if not isinstance(returned, Tensor):
        raise ThreatViolation(f"{name}: run() must return a tensor, got {type(returned).__name__}.")
    if returned.shape != x0.shape or returned.dtype != x0.dtype or returned.device != x0.device:
        raise ThreatViolation(
            f"{name}: run() must return {list(x0.shape)} {x0.dtype} on {x0.device}, got "
            f"{list(returned.shape)} {returned.dtype} on {returned.device}."
        )
    return returned.detach().clone()


@contextmanager
def _global_state_unused(name: str) -> Iterator[None]:
    """Raise if the block moves a global random generator or a switch of torch; put them back in any case."""
    before, switches = _generators(), _switches()
    drawn = switched = False
    try:
        yield
    finally:
        now = _generators()
        drawn = not (
            all(torch.equal(a, b) for a, b in zip(now[0], before[0], strict=False))
            and all(np.array_equal(a, b) for a, b in zip(now[1], before[1], strict=True))
            and now[2] == before[2]
        )
        switched = _switches() != switches
        if drawn:
            torch.set_rng_state(before[0][0])
            if len(before[0]) > 1:
                torch.cuda.set_rng_state_all(before[0][1:])
            np.random.set_state(before[1])  # noqa: NPY002
            random.setstate(before[2])
        if switched:
            torch.set_grad_enabled(switches[0])
            torch.set_default_dtype(switches[1])
            torch.set_num_threads(switches[2])
    if drawn:
        raise ContractError(f"{name}: drew from a global random generator. Draw from `rng` only.")
    if switched:
        raise ContractError(
            f"{name}: left torch's gradient mode, default dtype or number of threads changed. Put them back."
        )


def _generators() -> tuple[list[Tensor], Any, Any]:
    """Return the states of torch's generators (the CPU's first), numpy's and Python's own."""
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *of_cuda], np.random.get_state(), random.getstate()  # noqa: NPY002


def _switches() -> tuple[bool, torch.dtype, int]:
    return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
