"""The checks that every victim passes."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from robustspike.bench.contract.specs import Task
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.losses import margin
from robustspike.bench.numbers.losses import score
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import Native
from robustspike.bench.testing.check import Checks
from robustspike.bench.testing.check import require
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.checks import fingerprint_inputs
from robustspike.bench.victim.module import ModuleVictim

_N = 8
_VALUES = 1 << 19
"""Numbers that are answered at once: of large images fewer than `_N`, and two at least."""


def _n(victim: ModuleVictim) -> int:
    return max(2, min(_N, _VALUES // math.prod(victim.spec.shape)))


def _inputs(victim: ModuleVictim) -> Tensor:
    first = next(iter(victim.module.parameters()), None)
    dtype = torch.float32 if first is None else first.dtype
    return fingerprint_inputs(victim.spec, _n(victim)).to(victim.device, dtype)


def _noise(victim: ModuleVictim, tag: int = 0) -> RowStreams | None:
    if not victim.spec.stochastic:
        return None
    return RowStreams.derive(range(_n(victim)), "victim check", tag, device=victim.device)


def _answer(victim: ModuleVictim, x: Tensor, tag: int = 0) -> Tensor:
    with torch.no_grad():
        return victim.logits(x, noise=_noise(victim, tag))


def can_be_measured(victim: ModuleVictim) -> None:
    check_victim(victim)


def is_a_function_of_its_input(victim: ModuleVictim) -> None:
    x = _inputs(victim)
    first = _answer(victim, x)
    _answer(victim, 1 - x if victim.spec.bounds == (0.0, 1.0) else x.flip(0))
    require(torch.equal(first, _answer(victim, x)), "the answer changed after another input was answered")


def leaves_inputs_and_randomness_alone(victim: ModuleVictim) -> None:
    x = _inputs(victim)
    before, state = x.clone(), torch.get_rng_state()
    _answer(victim, x)
    require(torch.equal(x, before), "logits() changed its input in place")
    require(torch.equal(torch.get_rng_state(), state), "logits() drew from torch's global generator")


def has_a_gradient(victim: ModuleVictim) -> None:
    """Check that gradients are finite and mostly there, or, of a black box, refused."""
    x = _inputs(victim)
    y = _answer(victim, x).argmax(dim=1)
    loss = score if victim.spec.task is Task.QUALITY else margin
    if victim.spec.black_box:
        try:
            victim.loss_and_grad(x, y, loss, Native(), noise=_noise(victim))
        except ContractError:
            return
        require(False, "it says that it is a black box, but hands out gradients")
    out = victim.loss_and_grad(x, y, loss, Native(), noise=_noise(victim))
    require(bool(torch.isfinite(out.grad).all()), "the input gradient is not finite")
    dead = int((out.grad.flatten(1) == 0).all(dim=1).sum())
    require(dead <= len(x) // 2, f"the input gradient is zero for {dead} of {len(x)} random inputs")


def estimators_do_not_change_the_answer(victim: ModuleVictim) -> None:
    if victim.spec.black_box:
        return  # estimators are for gradients, which it refuses
    x = _inputs(victim)
    y = _answer(victim, x).argmax(dim=1)
    loss = score if victim.spec.task is Task.QUALITY else margin
    out = victim.loss_and_grad(x, y, loss, Native(), noise=_noise(victim))
    require(torch.equal(out.logits, _answer(victim, x)), "logits differ with and without a gradient")


def honours_its_noise(victim: ModuleVictim) -> None:
    x = _inputs(victim)
    differ = not torch.equal(_answer(victim, x, 0), _answer(victim, x, 1))
    declared = victim.spec.stochastic
    require(differ == declared, f"spec.stochastic is {declared}, but two noise streams differ: {differ}")


def works_in_double_precision(victim: ModuleVictim) -> None:
    if victim.spec.black_box:
        return  # float64 is for checks of gradients
    twin = ModuleVictim(copy.deepcopy(victim.module).double(), victim.spec)
    out = _answer(twin, _inputs(victim).double())
    require(out.dtype == torch.float64, f"a float64 copy answers in {out.dtype}")
    require(bool(torch.isfinite(out).all()), "a float64 copy answers with NaN or infinity")


VICTIM_CHECKS: Checks = {
    check.__name__: check
    for check in (
        can_be_measured,
        is_a_function_of_its_input,
        leaves_inputs_and_randomness_alone,
        has_a_gradient,
        estimators_do_not_change_the_answer,
        honours_its_noise,
        works_in_double_precision,
    )
}
