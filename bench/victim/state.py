"""What a measurement must leave as it was: a victim's tensors, and how its network is put together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.victim.checks import fingerprint_inputs
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.module import digest_tensors

ANSWER_TOLERANCE = 1e-3
"""Largest change of a logit that rounding explains; a moved spike changes it by about 1/T."""

_TENSORS = ("_parameters", "_buffers")
_SETTINGS = (
    "v_threshold",
    "v_reset",
    "tau",
    "decay_input",
    "detach_reset",
    "surrogate_function",
    "_step_mode",
    "_backend",
)
"""What estimators and attacks switch on spiking neurons for the length of a pass."""

_Parts = dict[str, Any]


@dataclass(frozen=True)
class Build:
    """How a network is put together: its modules, hooks, modes, overridden methods and neurons' settings.

    Args:
        parts: for every module the attributes that are compared; tables as copies.
    """

    parts: tuple[tuple[nn.Module, _Parts], ...]

    def differs(self) -> str | None:
        """Say what is not as it was, or None."""
        for module, then in self.parts:
            now = _parts(module)
            for name in then.keys() | now.keys():
                if (name in then) != (name in now) or not _same(name, then[name], now[name]):
                    return f"{name.strip('_').replace('_', ' ')} of a {type(module).__name__}"
        return None

    def restore(self) -> None:
        """Put every attribute back; values inside tensors are not."""
        for module, then in self.parts:
            for name in _parts(module).keys() - then.keys():
                del module.__dict__[name]
            for name, value in then.items():
                if isinstance(value, dict):
                    table = module.__dict__[name]
                    table.clear()
                    table.update(value)
                else:
                    module.__dict__[name] = value


def build_of(victim: ModuleVictim) -> Build:
    """Note how a victim's network is put together. Cost: microseconds a module."""
    return Build(tuple((module, _parts(module)) for module in victim.module.modules()))


def weights_now(victim: ModuleVictim) -> str:
    """Return the digest of a victim's saved tensors as they are: what `spec.weights` was at load."""
    return digest_tensors(iter(sorted(victim.module.state_dict().items())))


def saved_of(victim: ModuleVictim) -> dict[str, str]:
    """Return the digest of every saved tensor by its name and shape: of another shape, it is another one.

    Two notes are compared by the names that both have. A network may keep the state of its last pass in a
    buffer, of as many rows as that had.
    """
    named = victim.module.state_dict().items()
    return {f"{name} {tuple(t.shape)}": digest_tensors(iter([(name, t)])) for name, t in named}


def tensors_of(victim: ModuleVictim) -> str:
    """Return the digest of all parameters and buffers as they are, those that are not saved too."""
    module = victim.module
    return digest_tensors(chain(module.named_parameters(), module.named_buffers()))


@dataclass(frozen=True)
class Pristine:
    """A victim as it was loaded, to be compared after every shard.

    Args:
        victim: the victim.
        answers: its logits on fixed inputs [n, classes]; None where it cannot answer them.
        build, tensors: how its network was put together, and the digest of its parameters and buffers,
            both after that pass: a network may complete itself at its first one.
    """

    victim: ModuleVictim
    answers: Tensor | None
    build: Build
    tensors: str

    @classmethod
    def of(cls, victim: ModuleVictim) -> Pristine:
        """Note a victim that has just been loaded."""
        answers = _answers(victim)
        return cls(victim, answers, build_of(victim), tensors_of(victim))

    def changed(self) -> str | None:
        """Say what is not as it was loaded, or None.

        Cost: a forward pass of 4 inputs and a sha256 of all parameters and buffers.
        """
        what = self.build.differs()
        if what is not None:
            return what
        now = _answers(self.victim)  # first, so that what a pass leaves in buffers has the same shape
        if tensors_of(self.victim) != self.tensors:
            return "parameters or buffers"
        if self.answers is None:
            return None
        if now is None or not moved(now, self.answers) <= ANSWER_TOLERANCE:
            return "answers to fixed inputs"
        return None


def moved(now: Tensor, then: Tensor) -> float:
    """Return by how much answers [n, classes] typically changed, in shares of the largest (or of 1).

    The median over the inputs: rounding on another machine may move one spike of one input.
    """
    worst = float((now - then).abs().amax(dim=1).median())
    return worst / max(1.0, float(then.abs().max()))


def _answers(victim: ModuleVictim) -> Tensor | None:
    x = fingerprint_inputs(victim.spec).to(victim.device)
    noise = RowStreams.derive(range(len(x)), "unchanged", device=x.device) if victim.spec.stochastic else None
    try:
        with torch.no_grad():
            return victim.logits(x, noise=noise).double().cpu()
    except Exception:  # noqa: BLE001  (a network may refuse made-up inputs: then its parts alone are compared)
        return None


def _parts(module: nn.Module) -> _Parts:
    own = vars(module)
    names = [
        "_modules",
        *_TENSORS,
        *(name for name, value in own.items() if "hook" in name and isinstance(value, dict)),
    ]
    found: _Parts = {name: dict(own[name]) for name in names}
    found |= {name: own[name] for name in ("training", "forward") if name in own}
    if "v_threshold" in own and ("surrogate_function" in own or "surrogate_function" in own["_modules"]):
        found |= {name: own[name] for name in _SETTINGS if name in own}
    if not (own["_modules"] or own["_parameters"]):  # surrogates and other functions: their numbers
        found |= {name: value for name, value in own.items() if isinstance(value, float)}
    return found


def _same(name: str, then: Any, now: Any) -> bool:
    """Say whether two notes of one attribute agree; tensors are compared by their digest, elsewhere."""
    if isinstance(then, dict) and isinstance(now, dict):
        if list(then) != list(now):
            return False
        return name in _TENSORS or all(map(is_, then.values(), now.values()))
    return then is now or (isinstance(then, bool | int | float | str) and bool(then == now))
