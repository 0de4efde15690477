"""Measurements beside the verdict: what the attack cannot see or influence, and nothing is decided by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.data.events.events import EventLists
from robustspike.bench.data.events.events import Recording
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.image_quality import haarpsi
from robustspike.bench.numbers.image_quality import psnr
from robustspike.bench.numbers.image_quality import ssim
from robustspike.bench.numbers.losses import LOSSES
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import Native
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.victim.module import TURN
from robustspike.bench.victim.module import ModuleVictim

SLOPE_STEP = 1 / 255
"""Length of the finite difference beside the gradient norm: the smallest step an 8-bit attack can take."""


def quality_extras(
    victim: ModuleVictim, x: Tensor, y: Tensor, x_adv: Tensor, streams: RowStreams
) -> dict[str, Tensor]:
    """Measure how visible the attack is, and how steep the score is at the clean input: [N] each.

    Returns: gradient_l1, the l1 norm of the score's own input gradient (for a spiking victim a surrogate
        quantity); slope, |score(x + h sign(gradient)) - score(x)| / h at h = 1/255; for images of one or
        three channels and at least 16x16, ssim, psnr and haarpsi of the final against the clean input.
    """
    found: dict[str, Tensor] = {}
    try:
        noise = streams.fork("slope")
        out = victim.loss_and_grad(x, y, LOSSES["score"], Native(), noise=noise)
        moved = (x + SLOPE_STEP * out.grad.sign()).clamp(*victim.spec.bounds)
        with torch.no_grad():
            there = victim.logits(moved, noise=streams.fork("slope")).squeeze(1)
        found["gradient_l1"] = out.grad.flatten(1).double().abs().sum(dim=1)
        found["slope"] = (there.double() - out.loss.double()).abs() / SLOPE_STEP
    except ContractError:
        pass  # a victim without a gradient has no slope; black-box attacks may still be run on it
    if x.dim() == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) >= 16:
        for name, metric in (("ssim", ssim), ("psnr", psnr), ("haarpsi", haarpsi)):
            found[name] = metric(x.double(), x_adv.double())
    return found


PROBED, PROBE_RADIUS = 16, 1e-3
"""Samples of a shard whose gradient is probed, and how far away (share of the domain)."""

SPARSE = 0.01
"""Share of non-zero entries below which a layer's gradient is as good as none (methods: > 99 % zero)."""


def probe_gradient(victim: ModuleVictim, x: Tensor, y: Tensor, streams: RowStreams) -> dict[str, int]:
    """Measure the victim's own gradient at clean samples: does it last, and does it pass every layer?

    Cost: 2 forwards + 2 backwards on at most `PROBED` samples, not charged to the attack.
    Returns: probed (samples whose gradients here and a thousandth of the domain away are finite and not
        zero), and cosine_milli, the sum of the cosines between the two in thousandths; layer_probed
        (samples), and for every spiking layer zero_layer:NAME and sparse_layer:NAME, the samples for which
        the gradient with respect to the layer's input is zero everywhere, or but for a hundredth of its
        entries.
    """
    low, high = victim.spec.bounds
    x, y = x[:PROBED], y[:PROBED]
    rows = torch.arange(len(x), device=x.device)
    step = (streams.uniform(x.shape[1:], rows=rows, dtype=x.dtype) * 2 - 1) * PROBE_RADIUS * (high - low)
    moved = (x + step).clamp(low, high)

    def gradient(point: Tensor, part: slice) -> Tensor:
        noise = streams.fork("noise", rows=rows[part]) if victim.spec.stochastic else None
        out = victim.loss_and_grad(point[part], y[part], LOSSES["margin"], Native(), noise=noise)
        return out.grad.flatten(1)

    here, there, shares = [], [], []
    try:
        for part in victim.passes(len(x), gradient=True):
            with TURN, watched(victim.neurons, len(x[part])) as seen:  # no pass of another thread is counted
                here.append(gradient(x, part))
            shares.append(seen)
            there.append(gradient(moved, part))
    except ContractError:
        return {"probed": 0, "cosine_milli": 0}  # no gradient of its own; an estimator may still give one
    return _agreement(torch.cat(here), torch.cat(there)) | _layers(shares, len(x))


def _agreement(here: Tensor, there: Tensor) -> dict[str, int]:
    finite = torch.isfinite(here).all(dim=1) & torch.isfinite(there).all(dim=1)
    alive = finite & (here != 0).any(dim=1) & (there != 0).any(dim=1)
    agreement = torch.nn.functional.cosine_similarity(here, there, dim=1)
    return {"probed": int(alive.sum()), "cosine_milli": int((agreement[alive] * 1000).round().sum())}


def _layers(shares: Sequence[Mapping[str, Tensor]], n: int) -> dict[str, int]:
    """Count the samples whose gradient does not reach a layer, from the shares of each pass."""
    found = {"layer_probed": n} if any(shares) else {}
    for name in dict.fromkeys(name for seen in shares for name in seen):
        share = torch.cat([seen[name] for seen in shares if name in seen])
        found[f"zero_layer:{name}"] = int((share == 0).sum())
        found[f"sparse_layer:{name}"] = int((share < SPARSE).sum())
    return found


@contextmanager
def watched(neurons: Sequence[Neuron], n: int) -> Iterator[dict[str, Tensor]]:
    """Watch the gradients that reach the inputs of spiking layers during the backward passes of the block.

    Args:
        neurons: the layers; one whose input has no batch axis of length n where its step mode says, or none
            that carries a gradient, is left out.
        n: samples of the batch.

    Yields: a mapping, complete after the block, from a layer's name to the share of non-zero entries of
        its gradient over all steps, a sample each: [n] float64.
    """
    entries: dict[str, int] = {}
    alive: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}

    def hook(neuron: Neuron) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        axis = 1 if neuron.is_multi_step else 0

        def before(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0] if inputs else None
            if not isinstance(x, Tensor) or not x.requires_grad or x.dim() <= axis or x.shape[axis] != n:
                return
            entries[neuron.name] = entries.get(neuron.name, 0) + x.numel() // n
            alive.setdefault(neuron.name, torch.zeros(n, dtype=torch.int64, device=x.device))
            x.register_hook(lambda grad: count(grad))

        def count(grad: Tensor) -> None:
            alive[neuron.name] += (grad != 0).movedim(axis, 0).flatten(1).sum(dim=1)

        return before

    handles = [neuron.module.register_forward_pre_hook(hook(neuron)) for neuron in neurons]
    try:
        yield shares
    finally:
        for handle in handles:
            handle.remove()
    shares |= {name: count.double() / entries[name] for name, count in alive.items()}


def spike_extras(x0: Tensor, x: Tensor, *, counts: bool = False) -> dict[str, Tensor]:
    """Count what became of the spikes of binary frames, or of the events of counts: [N] float64 each.

    Returns: spikes (of the clean input), added and removed (spikes or events that x has and x0 has not, and
        the other way round; a moved one is one of each).
    """
    before, after = (x.flatten(1).double() if counts else (x != 0).flatten(1).double() for x in (x0, x))
    return {
        "spikes": before.sum(dim=1),
        "added": (after - before).clamp(min=0).sum(dim=1),
        "removed": (before - after).clamp(min=0).sum(dim=1),
    }


def event_extras(before: EventLists, after: Mapping[int, Recording], x: Tensor) -> dict[str, Tensor]:
    """Count what became of the events of recordings: [N] float64 each.

    Args:
        before: the raw events of the samples.
        after: sample -> the list that an attack says its frames x come from.
        x: final frames [N, T, 2, H, W].
    Returns: events_added and events_removed, and events_turned, those that changed their polarity only
        (a turned event is in neither of the others). NaN where there is no list, or x are not its frames.
    """
    names = ("events_added", "events_removed", "events_turned")
    found = {name: x.new_full((len(x),), torch.nan, dtype=torch.float64) for name in names}
    for row, final in after.items():
        binned = before.frames(final, steps=x.shape[1], size=(x.shape[3], x.shape[4]))
        if not torch.equal(torch.from_numpy(binned).to(x.device), x[row] != 0):
            continue
        own, new = _counted(before.recordings[row]), _counted(final)
        added, removed = new - own, own - new
        turned = sum(min(k, removed[(*place, 1 - p)]) for (*place, p), k in added.items())
        counts = (added.total() - turned, removed.total() - turned, turned)
        for name, number in zip(names, counts, strict=True):
            found[name][row] = number
    return found


def _counted(events: Recording) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(events[name].tolist() for name in "tyxp"), strict=True))
