"""SpikingJelly's plain LIF, PLIF and IF nodes without a new tensor for every operation.

A node that runs T steps out of a dozen small operations each spends most of its time on memory. Here
the same arithmetic, in the same order, is done in place on pieces that stay in a cache: the spikes are the
node's own bit for bit, and the gradient is that of the unrolled steps (bit for bit too where the reset
is detached). Everything else, and every node on an accelerator, is left to the node itself.

Where the machine has a C compiler, all steps of a float32 layer are one call of compiled code (`fused`), with
the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.snn import fused
from robustspike.bench.snn.neurons import DeferredRule
from robustspike.bench.snn.neurons import FunctionRule
from robustspike.bench.snn.neurons import SpikeRule
from robustspike.bench.snn.neurons import find_neurons

_PIECE = 1 << 16
"""Neurons that take a step together: 256 kB a tensor in float32."""


def is_plain(node: Any) -> bool:
    """Say whether this module can run a node: SpikingJelly's own LIF, PLIF or IF, multi-step, not recording.

    Its threshold and reset are one number each: what has one a channel is left to its own code.
    """
    kind = type(node)
    return (
        kind.__name__ in ("LIFNode", "IFNode", "ParametricLIFNode")
        and kind.__module__.startswith("spikingjelly.")
        and getattr(node, "step_mode", "s") == "m"
        and getattr(node, "backend", "torch") == "torch"
        and getattr(node, "_neuron_precision", None) is None
        and isinstance(node.v_threshold, float)
        and (not hasattr(node, "w") or node.w.dim() == 0)
        and (node.v_reset is None or isinstance(node.v_reset, float))
    )


def plain_nodes(module: nn.Module) -> list[nn.Module]:
    """Return the spiking layers of a network that this module can run."""
    return [neuron.module for neuron in find_neurons(module) if is_plain(neuron.module)]


@contextmanager
def in_place(nodes: Sequence[nn.Module]) -> Iterator[None]:
    """Run plain nodes by this module for the length of the block, where nothing else replaces them."""
    taken = [node for node in nodes if "forward" not in node.__dict__]
    for node in taken:
        node.__dict__["forward"] = partial(_forward, node)
    try:
        yield
    finally:
        for node in taken:
            del node.__dict__["forward"]


def run(node: Any, current: Tensor, before: Tensor | None, *, out: Tensor) -> Tensor:
    """Write a node's spikes [T, N, ...] on currents of that shape into `out`, which may be the currents.

    Args:
        before: potential before the first step [N, ...], overwritten; None for that of a node just reset.
    Returns: the potential after the last step.
    """
    v = torch.full_like(current[0], node.v) if before is None else before
    if fused.serves(current, v, out):
        fused.forward(_layer(node), current, v, charged=None, spikes=out)
        return v
    for part in _pieces(current):
        for x, spikes in zip(current[:, part], out[:, part], strict=True):
            _charge(node, x, v[part], out=spikes)
            _fire(node, spikes, v[part], spikes)
    return v


def traced(node: Any, current: Tensor) -> tuple[Tensor, Tensor]:
    """Return a node's spikes and the potentials after every step, both [T, N, ...]."""
    spikes, after = torch.empty_like(current), torch.empty_like(current)
    for part in _pieces(current):
        v = torch.full_like(current[0, part], node.v)
        for x, s, kept in zip(current[:, part], spikes[:, part], after[:, part], strict=True):
            _charge(node, x, v, out=s)
            _fire(node, s, v, s)
            kept.copy_(v)
    return spikes, after


def _pieces(current: Tensor) -> list[slice]:
    """Cut the samples of [T, N, ...] into pieces that stay in a cache."""
    n = current.shape[1]
    size = max(1, _PIECE // max(1, current[0, :1].numel()))
    return [slice(start, start + size) for start in range(0, n, size)]


def _charge(node: Any, x: Tensor, v: Tensor, *, out: Tensor) -> None:
    """Write the potential after a current into `out` (which may be x); v may be overwritten."""
    tau, share = getattr(node, "tau", None), _share(node)
    if tau is None and not share:
        torch.add(v, x, out=out)
        return
    rest = node.v_reset or 0.0
    excess = v - rest if rest else v
    if node.decay_input:
        moved = torch.sub(x, excess, out=out)
        (moved.div_(tau) if tau else moved.mul_(share)).add_(v)
    else:
        torch.add(v.sub_(excess / tau if tau else excess * share), x, out=out)


def _share(node: Any) -> float:
    """Return what leaks of a PLIF node's potential in a step; 0 for other nodes."""
    weight = getattr(node, "w", None)
    return 0.0 if weight is None else float(weight.detach().sigmoid())


def _fire(node: Any, h: Tensor, v: Tensor, spikes: Tensor) -> None:
    """Turn the charged potential into spikes (`spikes` may be h), and v into the potential after the reset.

    Spikes are 0 or 1, so that h - s h + s v_reset is exactly (1 - s) h + s v_reset.
    """
    torch.ge(h, node.v_threshold, out=v)
    if node.v_reset is None:
        fires = v.clone()
        torch.add(h, fires, alpha=-node.v_threshold, out=v)
        spikes.copy_(fires)
        return
    if node.v_reset:
        fires = v.clone()
        torch.addcmul(h, fires, h, value=-1, out=v).add_(fires, alpha=node.v_reset)
        spikes.copy_(fires)
        return
    torch.addcmul(h, v, h, value=-1, out=v)
    torch.ge(h, node.v_threshold, out=spikes)


def _layer(node: Any, *, own: bool = False) -> fused.Layer:
    """Return the equations of a plain node for the compiled steps."""
    return fused.Layer(
        tau=getattr(node, "tau", None),
        threshold=node.v_threshold,
        v_reset=node.v_reset,
        decay_input=getattr(node, "decay_input", False),
        detach_reset=node.detach_reset,
        own=own,
        share=_share(node),
    )


def _forward(node: Any, current: Tensor) -> Tensor:
    """Stand in for the forward of a plain node: in place where that gives the same, else its own."""
    rule = node.surrogate_function
    recording = torch.is_grad_enabled() and current.requires_grad
    fits = (
        is_plain(node)
        and not node.store_v_seq
        and isinstance(node.v, float)
        and current.device.type == "cpu"
        and current.dtype in (torch.float32, torch.float64)
        and current.dim() > 1
        and current.numel() > 0
    )
    if hasattr(
        node, "w"
    ):  # learned, or summed in another order at a reset that is not detached: its own code
        fits = fits and node.w.dtype == torch.float32 and not (recording and _learns_or_resets(node))
    slopes = _slopes(rule, node.detach_reset, current) if recording and fits else None
    if not fits or (slopes is None if recording else not _is_heaviside(rule)):
        spikes: Tensor = type(node).forward(node, current)
        return spikes
    if slopes is not None:
        spikes, node.v = _Sequence.apply(current, node, slopes)  # type: ignore[no-untyped-call]
        return spikes
    spikes = torch.empty_like(current)
    node.v = run(node, current, None, out=spikes)
    return spikes


def _learns_or_resets(node: Any) -> bool:
    return node.w.requires_grad or not node.detach_reset


def _is_heaviside(rule: Any) -> bool:
    """Say whether a firing rule does nothing but compare, when no gradient is recorded."""
    if isinstance(rule, SpikeRule):
        return type(rule).forward in (SpikeRule.forward, DeferredRule.forward)
    return _is_library_rule(rule)


def _is_library_rule(rule: Any) -> bool:
    """Say whether a rule is one of SpikingJelly's own surrogates, unwatched, and makes spikes."""
    ours = type(rule).__module__ == "spikingjelly.activation_based.surrogate"
    return ours and getattr(rule, "spiking", False) is True and not rule._forward_hooks


@dataclass(frozen=True)
class _Slopes:
    """The slopes of a rule.

    Args:
        of: u = h - v_threshold -> slopes.
        own: whether they are those of SpikingJelly's surrogate, which a node takes a step at a time.
        atan: (a, b) where they are b / (1 + (a u)^2), computed in that order.
    """

    of: Callable[[Tensor], Tensor]
    own: bool = False
    atan: tuple[float, float] | None = None

    def at(self, u: Tensor) -> Tensor:
        """Return the slopes of all steps [T, N, ...].

        An exponential at the end of a tensor may be rounded otherwise than in its middle, so a surrogate of
        SpikingJelly is handed what the node hands it.
        """
        return torch.stack([self.of(step) for step in u]) if self.own else self.of(u)


def _slopes(rule: Any, detached: bool, current: Tensor) -> _Slopes | None:
    """Return the slopes of a rule if they are known and their gradient would be the node's own.

    Args:
        detached: whether the gradient is cut at the reset.
    """
    if type(rule).forward is DeferredRule.forward:
        return _Slopes(rule.slopes)
    if type(rule) is FunctionRule:
        return _Slopes(rule.function)
    if not _is_library_rule(rule):
        return None
    if current.dtype == torch.float32:
        return _library_slopes(rule) if _agrees() else None
    if detached and type(rule).__name__ == "ATan":
        return _Slopes(partial(_atan_slopes, rule.alpha))
    return None


def _library_slopes(rule: Any) -> _Slopes | None:
    """Return the slopes of one of SpikingJelly's surrogates, where its nodes have a closed form for them."""
    try:
        from spikingjelly._ops.surrogate import _surrogate_gradient
        from spikingjelly._ops.surrogate import _surrogate_spec
    except ImportError:  # names that its next version may change
        return None
    form = _surrogate_spec(rule)
    if form is None:
        return None
    number, alpha = form
    atan = (math.pi / 2 * alpha, alpha / 2) if type(rule).__name__ == "ATan" else None
    return _Slopes(lambda u: _surrogate_gradient(u, alpha, number), own=True, atan=atan)


@cache
def _agrees() -> bool:
    """Say whether the gradient is that of the installed SpikingJelly's nodes bit for bit, by trying."""
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based import surrogate

    current = (
        torch.linspace(-1.0, 2.5, 3 * 2 * 17).view(3, 2, 17)[:, :, torch.arange(17) * 5 % 17].contiguous()
    )
    shared = {"detach_reset": False, "step_mode": "m"}
    nodes = [
        neuron.LIFNode(tau=3.0, surrogate_function=surrogate.ATan(), v_reset=-0.25, **shared),
        neuron.LIFNode(
            tau=3.0, surrogate_function=surrogate.Sigmoid(), decay_input=False, v_reset=None, **shared
        ),
        neuron.IFNode(surrogate_function=surrogate.ATan(), **shared),
        *_frozen_plif(surrogate.Sigmoid()),
    ]
    for node in nodes:
        slopes = _library_slopes(node.surrogate_function)
        if slopes is None:
            return False
        with torch.enable_grad():
            leaf, other = current.clone().requires_grad_(True), current.clone().requires_grad_(True)
            results = _Sequence.apply(leaf, node, slopes)[0], node(other)  # type: ignore[no-untyped-call]
            grads = [
                torch.autograd.grad((out * current).sum(), of)[0]
                for out, of in zip(results, (leaf, other), strict=True)
            ]
        if not (torch.equal(*results) and torch.equal(*grads)):
            return False
    return True


def _frozen_plif(rule: Any) -> list[Any]:
    from spikingjelly.activation_based import neuron

    nodes = [
        neuron.ParametricLIFNode(
            3.0, decay, v_reset=reset, surrogate_function=rule, detach_reset=True, step_mode="m"
        )
        for decay, reset in ((True, -0.25), (False, None))
    ]
    return [node.requires_grad_(False) for node in nodes]


def _atan_slopes(alpha: float, u: Tensor) -> Tensor:
    """Return SpikingJelly's ATan slopes, by its own arithmetic in its own order."""
    scaled = math.pi * (alpha / 2) * u
    return scaled.mul_(scaled).add_(1).reciprocal_().mul_(alpha / 2)


class _Sequence(torch.autograd.Function):
    """A node's steps as one function of its currents: the spikes, and the potential after the last step."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, node: Any, slopes: _Slopes) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.slopes, ctx.layer = slopes, _layer(node, own=slopes.own)
        charged, spikes = torch.empty_like(current), torch.empty_like(current)
        v = torch.full_like(current[0], node.v)
        if fused.serves(current):
            fused.forward(ctx.layer, current, v, charged=charged, spikes=spikes)
        else:
            for part in _pieces(current):
                for x, h, s in zip(current[:, part], charged[:, part], spikes[:, part], strict=True):
                    _charge(node, x, v[part], out=h)
                    _fire(node, h, v[part], s)
        ctx.save_for_backward(charged, spikes)
        return spikes, v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, after: Tensor | None) -> tuple[Tensor, None, None]:
        charged, spikes = ctx.saved_tensors
        layer, slopes = ctx.layer, ctx.slopes
        grad = torch.zeros_like(charged) if grad is None else grad
        out = torch.empty_like(charged)
        if fused.serves(charged):
            known = slopes.atan or slopes.at(charged - layer.threshold).contiguous()
            after = None if after is None else after.contiguous()
            fused.backward(layer, grad.contiguous(), charged, known, after, out=out)
            return out, None, None
        steep = slopes.at(charged - layer.threshold)
        for part in _pieces(charged):
            carried = (
                None if after is None else after[part].clone()
            )  # gradient of the potential after the step
            for t in reversed(range(len(charged))):
                dh, s = out[t, part], spikes[t, part]
                if carried is None:
                    torch.mul(grad[t, part], steep[t, part], out=dh)
                else:
                    fires = grad[t, part]
                    if not layer.detach_reset:
                        fires = _through_reset(layer, fires, carried, charged[t, part])
                    torch.mul(fires, steep[t, part], out=dh)
                    dh.add_(carried if layer.v_reset is None else carried.addcmul_(carried, s, value=-1))
                if layer.tau is None and not layer.share:
                    carried = dh.clone()
                    continue
                leaked = dh * layer.share if layer.share else dh / layer.tau
                carried = dh - leaked
                if layer.decay_input:
                    dh.copy_(leaked)
        return out, None, None


def _through_reset(layer: fused.Layer, fires: Tensor, carried: Tensor, h: Tensor) -> Tensor:
    """Return the gradient of the spikes with what a reset hands on to them."""
    if layer.v_reset is None:
        return fires + carried * -layer.threshold
    if layer.own:
        return (fires - carried * h).add_(carried * layer.v_reset)
    return fires + carried * (layer.v_reset - h)
