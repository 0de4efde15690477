"""Checks of a victim before anything is measured on it."""

from __future__ import annotations

import torch
from torch import Tensor

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import Victim
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.victim.module import ModuleVictim


def _other_draw(victim: ModuleVictim, x: Tensor, streams: RowStreams) -> Tensor:
    with torch.no_grad():
        return victim.logits(x, noise=streams.fork("another"))


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

    Checks on a few inputs, in evaluation mode: output shape and finiteness; two calls equal; rows
    independent; the input gradient exists (the eval-mode trap).

    Args:
        victim: the victim.
        x: real inputs to probe with; made up where not given.

    Raises: ContractError: names the check that failed and what to do.
    """
    spec = victim.spec
    if not isinstance(victim, Victim):
        raise ContractError(f"'{victim!r}' is not a victim: it lacks `spec` or `logits`.")
    x = (fingerprint_inputs(spec) if x is None else x[:4]).to(victim.device)
    streams = RowStreams.derive(range(len(x)), "check", device=x.device)

    def answer(inputs: Tensor, rows: Tensor) -> Tensor:
        noise = streams.fork("noise", rows=rows) if spec.stochastic else None
        with torch.no_grad():
            return victim.logits(inputs, noise=noise)

    everyone = torch.arange(len(x), device=x.device)
    first = answer(x, everyone)
    where = f"victim '{spec.name}'"
    if not torch.isfinite(first).all():
        raise ContractError(
            f"{where}: logits are not finite on legal inputs (got {first.flatten()[:4].tolist()} ...). "
            "Check the weights and the normalisation."
        )
    if not torch.equal(first, answer(x, everyone)):
        raise ContractError(
            f"{where}: two calls on the same input (and the same noise) differ. It keeps state "
            "between calls or draws unseeded noise; reset in forward(), draw from self.noise."
        )
    if spec.stochastic and torch.equal(first, _other_draw(victim, x, streams)):
        raise ContractError(
            f"{where}: declares itself stochastic, but two independent noise streams give the same answer. "
            "Its noise is frozen: draw from self.noise on every call."
        )
    if len(x) > 1:
        alone = torch.cat([answer(x[i : i + 1], everyone[i : i + 1]) for i in range(len(x))])
        scale = first.abs().max().clamp(min=1.0)
        # One spike that a rounding moves changes a logit by O(1/T); half of the rows may do so.
        agree = ((alone - first).abs().amax(dim=1) <= 1e-4 * scale).double().mean()
        if agree < 0.5:
            raise ContractError(
                f"{where}: a sample's logits depend on its batch mates. Normalise per sample, keep "
                "BatchNorm in evaluation mode, share no state over the batch axis."
            )
    if spec.task is Task.CLASSIFY:
        y = first.argmax(dim=1)
        noise = streams.fork("noise") if spec.stochastic else None
        victim.loss_and_grad(
            x, y, lambda logits, t: -logits.gather(1, t[:, None]).squeeze(1), GradientEstimator(), noise=noise
        )
