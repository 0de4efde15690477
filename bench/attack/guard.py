"""Foreign code under guard: what an attack returns, and what it must leave alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.attack.contract import Attack
from robustspike.bench.attack.limits import Limits
from robustspike.bench.attack.meter import Meter
from robustspike.bench.attack.oracle import Oracle
from robustspike.bench.attack.result import ShardResult
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import ThreatViolation
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.victim.module import ModuleVictim


def _run(attack: Attack, meter: Meter, rng: RowStreams, result: ShardResult, limits: Limits) -> Tensor | None:
    """Run the attack and return what it returned if that is a tensor to judge at all.

    An attack is foreign code: whatever it raises, SystemExit too, is its error; only Ctrl-C gets through.
    """
    x0, y = meter.x0.clone(), meter.y.clone()
    state = _module_state(meter.victim)
    name = attack.spec.name
    try:
        with _global_randomness_unused(name), limits.kept():
            returned = attack.run(Oracle(meter), x0, y, rng=rng)
        if not torch.equal(x0, meter.x0) or not torch.equal(y, meter.y):
            raise ContractError(f"{name}: modified x0 or y in place. Work on a clone.")
        if _module_state(meter.victim) != state:
            raise ContractError(f"{name}: changed the victim's parameters, buffers or training mode.")
        return _checked(name, returned, meter.x0)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (see above)
        message = limits.failure(name, len(x0), error)
        result.errors.append(message)
        result.cause = error if isinstance(error, BenchError) else ContractError(message)
    return None


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
def _global_randomness_unused(name: str) -> Iterator[None]:
    """Raise if the block moves a global random generator; put it back in any case."""
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    moved = False
    try:
        yield
    finally:
        now = np.random.get_state()  # noqa: NPY002
        moved = not (
            torch.equal(torch.get_rng_state(), before[0])
            and all(np.array_equal(a, b) for a, b in zip(now, before[1], strict=True))
            and random.getstate() == before[2]
            and (not cuda or all(map(torch.equal, torch.cuda.get_rng_state_all(), cuda)))
        )
        if moved:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
            random.setstate(before[2])
            if cuda:
                torch.cuda.set_rng_state_all(cuda)
    if moved:
        raise ContractError(f"{name}: drew from a global random generator. Draw from `rng` only.")


def _module_state(victim: ModuleVictim) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    tensors = (*victim.module.parameters(), *victim.module.buffers())
    return tuple(t._version for t in tensors), tuple(m.training for m in victim.module.modules())
