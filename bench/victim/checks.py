"""Checks of a victim before anything is measured on it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import Victim
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import VictimFailed
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.snn.estimators import Memory
from robustspike.bench.snn.estimators import Native
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.victim.module import TURN
from robustspike.bench.victim.module import ModuleVictim

PROBES = 4
"""Inputs on which a victim is checked."""


def fingerprint_inputs(spec: VictimSpec, n: int = 4) -> Tensor:
    """Return fixed pseudo-random legal inputs [n, *shape] for probing a victim."""
    streams = RowStreams.derive(range(n), "fingerprint")
    u = streams.uniform(spec.shape)
    low, high = spec.bounds
    if spec.domain is Domain.SPIKES:
        return torch.where(u > 0.8, high, low)
    if spec.domain is Domain.EVENTS:
        return (u * 4).floor()
    return low + (high - low) * u


def check_victim(victim: ModuleVictim, x: Tensor | None = None) -> None:
    """Refuse a victim on which no honest number can be measured.

    Checks on a few inputs, in evaluation mode: number format and number of outputs; output shape and
    finiteness; two calls equal, with another call between them; nothing changed by answering; rows
    independent of their batch mates; the input gradient exists (the eval-mode trap).

    Args:
        victim: the victim.
        x: real inputs to probe with; made up where not given, or where they are fewer than `PROBES`.

    Cost: 9 forwards of 4 inputs and one gradient.
    Raises: ContractError: names the check that failed and what to do.
    """
    if not isinstance(victim, Victim):
        raise ContractError(f"'{victim!r}' is not a victim: it lacks `spec` or `logits`. Use wrap().")
    with TURN, torch.inference_mode(False):
        _check_format(victim)
        _check_answers(victim, x)


def _check_format(victim: ModuleVictim) -> None:
    """Refuse numbers of outputs and number formats in which nothing can be measured."""
    spec = victim.spec
    where = f"victim '{spec.name}'"
    if spec.task is Task.CLASSIFY and spec.classes < 2:
        raise ContractError(
            f"{where}: a classifier has a logit for each of 2 or more classes, this one has {spec.classes}. "
            "Return [-z, z] for a single logit z, or declare a quality model (task=Task.QUALITY)."
        )
    for name, tensor in victim.module.named_parameters():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise ContractError(
                f"{where}: parameter '{name}' is {tensor.dtype}. Half precision rounds by batch, so that no "
                "verdict could be confirmed: convert the network with .float(); inputs stay float32."
            )


def _check_answers(victim: ModuleVictim, x: Tensor | None) -> None:
    spec = victim.spec
    where = f"victim '{spec.name}'"
    made_up = fingerprint_inputs(spec, 2 * PROBES).to(victim.device)
    given = made_up[:0] if x is None else x[:PROBES].to(made_up)
    probes, others = torch.cat([given, made_up[:PROBES]])[:PROBES].clone(), made_up[PROBES:]
    real = len(given) or PROBES
    streams = RowStreams.derive(range(PROBES), "check", device=probes.device)
    everyone = torch.arange(PROBES, device=probes.device)

    def answer(inputs: Tensor, rows: Tensor, draw: str = "noise") -> Tensor:
        noise = streams.fork(draw, rows=rows) if spec.stochastic else None
        with torch.no_grad():
            return victim.logits(inputs, noise=noise)

    kept, state = probes.clone(), _state(victim)
    first = answer(probes, everyone)
    if not torch.isfinite(first[:real]).all():
        raise ContractError(
            f"{where}: logits are not finite on legal inputs (got {first.flatten()[:4].tolist()} ...). "
            "Check the weights and the normalisation."
        )
    if not torch.equal(probes, kept):
        raise ContractError(f"{where}: its forward pass changes its input in place. Work on a copy of x.")
    answer(others, everyone)
    if not _same(first, answer(probes, everyone)):
        raise ContractError(
            f"{where}: two calls on the same input (and the same noise) differ. It keeps state "
            "between calls or draws unseeded noise; reset in forward(), draw from self.noise."
        )
    changed = next(
        (name for name, value in _state(victim).items() if not _same(value, state.get(name))), None
    )
    if changed is not None:
        raise ContractError(
            f"{where}: '{changed}' in its state changes when it answers. Update statistics in training mode "
            "only, and reset what belongs to one input."
        )
    if spec.stochastic and torch.equal(first, answer(probes, everyone, "another")):
        raise ContractError(
            f"{where}: declares itself stochastic, but two independent noise streams give the same answer. "
            "Its noise is frozen: draw from self.noise on every call."
        )
    _check_rows(where, probes, others, first, answer)
    if spec.task is Task.CLASSIFY:
        y = first.argmax(dim=1)
        noise = streams.fork("noise") if spec.stochastic else None
        victim.loss_and_grad(
            probes, y, lambda logits, t: -logits.gather(1, t[:, None]).squeeze(1), Native(), noise=noise
        )


def _check_rows(
    where: str, probes: Tensor, others: Tensor, first: Tensor, answer: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Refuse a victim whose answer to one input depends on the other inputs of the batch.

    In a batch of the same size every kernel rounds alike, so a row must not move at all when its mates are
    exchanged. Alone it may: one spike that a rounding moves changes a logit by O(1/T), for half of the rows.
    """
    everyone = torch.arange(len(probes), device=probes.device)
    scale = first.abs().nan_to_num(0.0).max().clamp(min=1.0)
    moved = torch.zeros(len(probes), dtype=torch.bool, device=probes.device)
    for parity in (0, 1):
        stays = everyone % 2 == parity
        mixed = torch.where(stays.view(-1, *[1] * (probes.dim() - 1)), probes, others)
        off = (answer(mixed, everyone) - first).abs().amax(dim=1) > 1e-5 * scale
        moved |= stays & off
    alone = torch.cat([answer(probes[i : i + 1], everyone[i : i + 1]) for i in everyone.tolist()])
    differs = (alone - first).abs().amax(dim=1) > 1e-4 * scale
    if bool(moved.any()) or float(differs.double().mean()) > 0.5:
        raise ContractError(
            f"{where}: a sample's logits depend on its batch mates ({int((moved | differs).sum())} of "
            f"{len(probes)} probes moved). Normalise per sample, keep running statistics in BatchNorm and "
            "put it into evaluation mode, share no state over the batch axis."
        )


def _same(a: Tensor, b: Tensor | None) -> bool:
    """Say whether two tensors are equal, NaN in the same places included."""
    return b is not None and a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))


def _state(victim: ModuleVictim) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in victim.module.state_dict().items()}


def refusal(victim: ModuleVictim, estimator: GradientEstimator) -> str | None:
    """Say why a gradient estimator does not apply to a victim, or None where it does.

    It must say so itself, give a gradient on two made-up inputs, and leave the forward pass as it is, bit
    for bit: attacked is the network, not a relative of it. Found out once for each victim and estimator.

    Cost: the first time, 1 forward and one gradient of the estimator on 2 inputs.
    Raises: VictimFailed, ContractError: the victim cannot be run at all.
    """
    estimator = estimator.checked_as
    with TURN:
        if estimator not in victim.refusals:
            parts = victim.members or (victim,)
            reasons = (_refused(part, estimator) for part in parts)
            victim.refusals[estimator] = next((reason for reason in reasons if reason is not None), None)
        return victim.refusals[estimator]


@contextmanager
def _batches(victim: ModuleVictim) -> Iterator[dict[str, int]]:
    """Yield a mapping, filled by the passes of the block: a neuron's name -> the size of its batches."""
    seen: dict[str, int] = {}

    def hook(neuron: Neuron) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        axis = 1 if neuron.is_multi_step else 0

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() > axis:
                seen[neuron.name] = inputs[0].shape[axis]

        return before

    handles = [neuron.module.register_forward_pre_hook(hook(neuron)) for neuron in victim.neurons]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _refused(victim: ModuleVictim, estimator: GradientEstimator) -> str | None:
    reason = estimator.fits(victim.module, victim.neurons)
    if reason is not None:
        return reason
    x = fingerprint_inputs(victim.spec, 2)[: victim.passes(2, gradient=True)[0].stop].to(victim.device)
    streams = RowStreams.derive(range(len(x)), "estimator", device=x.device)

    def call(inputs: Tensor) -> Tensor:
        noise = streams.fork("noise") if victim.spec.stochastic else None
        return victim.logits(inputs, noise=noise)

    with torch.inference_mode(False):
        with torch.no_grad(), _batches(victim) as seen:
            plain, again = call(x), call(x)
        # an estimator that is told of fewer rows than a neuron has may write beyond them
        many = [seen.get(neuron.name, len(x)) for neuron in victim.neurons]
        memories = [Memory(rows=torch.arange(n, device=x.device), n=n) for n in many]
        try:
            with victim.bounded():
                found = estimator.loss_and_grad(
                    victim.module,
                    call,
                    x,
                    lambda logits: logits.sum(dim=1),
                    neurons=victim.neurons,
                    memories=memories,
                )
        except Exception as error:  # noqa: BLE001  (foreign code, which refuses in its own way)
            cause = error.__cause__ if isinstance(error, VictimFailed) else None
            own = cause or error
            return str(own) if isinstance(own, BenchError) else f"{type(own).__name__}: {own}"
    for neuron, n, memory in zip(victim.neurons, many, memories, strict=True):
        if n != len(x) and memory.store:
            return (
                f"it remembers each sample, and neuron '{neuron.name}' sees {n} inputs for {len(x)} samples "
                "(crops or noisy copies in one batch)"
            )
    if _same(found.logits, plain) or not _same(plain, again):  # what never repeats says nothing
        return None
    moved = float((found.logits - plain).abs().nan_to_num().max())
    return f"under it the forward pass is not the victim's own: the logits move by up to {moved:.3g}"
