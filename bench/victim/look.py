"""Finding where a network makes its spikes: watch it answer a few inputs, before anything is measured.

Neurons that are known by class keep their own door, and it is tried here. What else steps in a Function is
a site (`bench.victim.sites`). Spikes that neither serves show as tensors of two or three values between
modules: with them every estimator but the network's own gradient is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.errors import BenchError
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import SpikeRule
from robustspike.bench.snn.neurons import State
from robustspike.bench.snn.neurons import find_neurons
from robustspike.bench.snn.neurons import replace_gradient
from robustspike.bench.snn.neurons import reset
from robustspike.bench.snn.steps import Step
from robustspike.bench.snn.steps import find_step
from robustspike.bench.victim.sites import Book
from robustspike.bench.victim.sites import Layout
from robustspike.bench.victim.sites import Place
from robustspike.bench.victim.sites import Site
from robustspike.bench.victim.sites import Whole
from robustspike.bench.victim.sites import as_time_first
from robustspike.bench.victim.sites import intercepted
from robustspike.bench.victim.sites import running
from robustspike.bench.victim.sites import sizes

LOOK_ROWS = 2
"""Inputs of a look; a second pass on one fewer shows which axis the batch is."""

FEW_VALUES = 3
"""A tensor of so few values, many times each, is taken for spikes."""

_PUSH = 2.0**-6
"""Current that is put on one sample to see whose potential it moves."""

_INLINE = "is written out in a forward with others"

Call = Callable[[Tensor], Tensor]


@dataclass
class _Seen:
    """The calls of a step at one place and in one shape."""

    step: Step
    u: list[Tensor] = field(default_factory=list)
    out: list[Tensor] = field(default_factory=list)


def find_spikes(
    module: nn.Module, call: Call, x: Tensor, *, steps: int, at_once: int = LOOK_ROWS
) -> tuple[Neuron, ...]:
    """List the spiking layers of a network: neurons known by class, sites, and what nothing serves.

    Args:
        module: the network, in evaluation mode.
        call: its forward pass, x -> logits, with state and noise taken care of.
        x: inputs [LOOK_ROWS, ...] without values that repeat.
        steps: declared time steps T; 0 where not known.
        at_once: how many of the inputs a pass with a gradient should have where it need not have all.

    Returns: the layers; one that no estimator can serve says why in `refusal`.
    Cost: 4 forwards of one or two inputs; a few more where sites are found, or a known neuron is not served.
    """
    known = _tried(module, call, x[:1])
    first, hosts = _watch(module, call, x[:at_once], known)
    if first and at_once < len(x):
        first, hosts = _watch(module, call, x, known)
    second = _watch(module, call, x[:-1], known)[0] if first else {}
    book = Book(module, hosts)
    named = dict(module.named_modules())
    found: list[Site] = []
    for place, seen in first.items():
        for one, two in zip(seen, second.get(place, ()), strict=False):
            layout = _layout(one.u[0], two.u[0], (len(x), len(x) - 1))
            if layout is None:
                continue
            count = len(one.u)
            several = layout == "step" and 0 < steps < count and count % steps == 0
            for turn in range(count // steps if several else 1):
                base = place.modules[-1] or "network"
                number = sum(site.name.partition("#")[0] == base for site in found)
                found.append(
                    Site(
                        name=f"{base}#{number + 1}" if number else base,
                        index=len(known) + len(found),
                        module=named[place.modules[-1]],
                        book=book,
                        place=place,
                        step=one.step,
                        layout=layout,
                        sizes=sizes(one.u[0], layout),
                        turn=turn,
                    )
                )
    book.sites = found
    hosts_of = _Hosts(book, call, x)
    book.sites = sites = [hosts_of.with_sequence(site) for site in found]
    unserved = _unserved(book, call, x[:at_once], known)
    return (*known, *sites, *unserved)


@dataclass
class _Count:
    """How often a rule was asked, in how many steps; no state of the network (that is put back)."""

    asked: int = 0
    steps: int = 0


class _Counted(SpikeRule):
    """A rule that is only tried: it fires as neurons do and counts."""

    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.is_multi_step = neuron.is_multi_step
        self.count = _Count()

    def enter(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.count.steps += len(inputs[0]) if self.is_multi_step else 1

    def forward(self, u: Tensor) -> Tensor:
        self.count.asked += 1
        return super().forward(u)

    def slope(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


def _tried(module: nn.Module, call: Call, x: Tensor) -> tuple[Neuron, ...]:
    """Return the neurons known by class; one whose spike function cannot be exchanged says so."""
    known = find_neurons(module)
    if not known:
        return ()
    with torch.no_grad():
        expected = call(x)

    def misfit(neurons: Sequence[Neuron]) -> str | None:
        rules = [_Counted(neuron) for neuron in neurons]
        try:
            with torch.no_grad(), ExitStack() as stack:
                for neuron, rule in zip(neurons, rules, strict=True):
                    stack.enter_context(neuron.spiking_by(rule))
                    stack.callback(neuron.module.register_forward_pre_hook(rule.enter).remove)
                answer = call(x)
        except (BenchError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            return f"takes no other spike function: {str(error).splitlines()[0]}"
        if not torch.equal(answer, expected):
            return "fires otherwise than at a threshold, so its spike function cannot be exchanged"
        if not all(rule.count.asked for rule in rules):
            return "does not ask its spike function in evaluation mode"
        if any(rule.count.asked != rule.count.steps for rule in rules):
            return "asks its spike function more than once a step, so a step has no potential of its own"
        return None

    if misfit(known) is None:
        return known
    return tuple(dataclasses.replace(neuron, refusal=misfit([neuron])) for neuron in known)


def _watch(
    module: nn.Module, call: Call, x: Tensor, known: Sequence[Neuron]
) -> tuple[dict[Place, list[_Seen]], tuple[str, ...]]:
    """Watch a pass that records a gradient: the steps by place, and every module that calls Functions."""
    inside = {neuron.name for neuron in known}
    found: dict[Place, list[_Seen]] = {}
    hosts: dict[str, None] = {}
    refused: set[tuple[Place, torch.Size]] = set()
    asking = False

    def handler(function: type, own: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        nonlocal asking
        recorded = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        out = own(*args)
        if asking or not isinstance(out, Tensor) or inside.intersection(stack):
            return out
        hosts.update(dict.fromkeys(stack))
        place = Place.here(stack, function)
        if not recorded or (place, out.shape) in refused:
            return out
        seen = next((s for s in found.get(place, ()) if s.out[0].shape == out.shape), None)
        if seen is None:
            asking = True
            try:
                step = find_step(own, args, out)
            finally:
                asking = False
            if step is None:
                refused.add((place, out.shape))
                return out
            seen = _Seen(step)
            found.setdefault(place, []).append(seen)
        seen.u.append(args[seen.step.argument].detach().clone())
        seen.out.append(out.detach().clone())
        return out

    with torch.enable_grad(), running(module.named_modules()) as stack, intercepted(handler):
        call(x.detach().clone().requires_grad_(True))
    return found, tuple(hosts)


def _layout(one: Tensor, two: Tensor, rows: tuple[int, int]) -> Layout | None:
    """Say where batch and time are in a call, from the same call on fewer rows; None where nothing fits."""
    if one.dim() != two.dim() or not one.dim():
        return None
    changed = [axis for axis in range(one.dim()) if one.shape[axis] != two.shape[axis]]
    if changed == [1] and (one.shape[1], two.shape[1]) == rows:
        return "time-first"
    if changed == [1] and one.dim() == 2 and one.shape[1] * rows[1] == two.shape[1] * rows[0]:
        return "flat"
    if changed != [0]:
        return None
    if (one.shape[0], two.shape[0]) == rows:
        return "step"
    if one.shape[0] * rows[1] != two.shape[0] * rows[0]:
        return None
    layouts: tuple[Layout, ...] = ("merged time-first", "merged batch-first")
    for layout in layouts:
        a, b = as_time_first(one, layout, rows[0]), as_time_first(two, layout, rows[1])
        if torch.allclose(a[:, : rows[1]], b, atol=1e-4):
            return layout
    return None


class _Hosts:
    """What the modules around sites do with sequences, found by calling them alone on currents of our own."""

    def __init__(self, book: Book, call: Call, x: Tensor) -> None:
        self.book, self.n = book, len(x)
        self.named = dict(book.module.named_modules())
        self.calls: dict[str, list[tuple[tuple[Any, ...], Any]]] = {}

        def hook(name: str) -> Callable[..., None]:
            return lambda _module, inputs, out: self.calls.setdefault(name, []).append((inputs, out))

        around = {name for site in book.sites for name in site.place.modules if name}
        if not around:
            return
        with ExitStack() as stack, torch.no_grad():
            for name in around:
                stack.callback(self.named[name].register_forward_hook(hook(name)).remove)
            call(x)

    def with_sequence(self, site: Site) -> Site:
        """Return a site with the module that is its layer of neurons, or with the reason why none is."""
        reasons: list[str] = []
        for name in filter(None, reversed(site.place.modules)):
            found = self._whole(dataclasses.replace(site, name=name, module=self.named[name]))
            if isinstance(found, Whole):
                return dataclasses.replace(site, name=name, module=self.named[name], whole=found)
            reasons.append(found)
        return dataclasses.replace(site, why_not=next((why for why in reasons if why != _INLINE), _INLINE))

    def _whole(self, site: Site) -> Whole | str:
        calls = self.calls.get(site.name, [])
        if sum(site.name in other.place.modules for other in self.book.sites) > 1:
            return _INLINE
        if len(calls) != 1:
            return "processes one step a call, and the estimator needs whole sequences"
        inputs, out = calls[0]
        plain = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(out, Tensor)
        if not plain or inputs[0].shape != out.shape or out.dim() < 2:
            return "is in no module that turns a sequence of currents into one of spikes"
        quiet = torch.zeros_like(inputs[0])
        try:
            layout = self._layout(site, quiet)
            if layout is None:
                return "has its time where no layout is known"
            with torch.no_grad():
                rest = self._potentials(site, quiet)
            gains = [self._gain(site, quiet, layout, step) for step in range(min(2, len(rest)))]
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            return f"cannot be called alone ({type(error).__name__})"
        barrier = -float(rest.flatten()[0])
        if not barrier > 0 or not bool((rest == -barrier).all()):
            return "does not rest at one distance below its threshold"
        if not gains[0] > 0 or gains != gains[:1] * len(gains):
            return "has a potential that does not follow the step's own current alone"
        return Whole(layout, barrier, gains[0])

    def _gain(self, site: Site, quiet: Tensor, layout: Layout, step: int) -> float:
        """Return by how much the current of a step moves the potential of that step; 0 if others' do too."""
        current = quiet.clone().requires_grad_(True)
        with torch.enable_grad():
            u = self._potentials(site, current)
            unit = u[step].reshape(self.n, -1)[step % self.n, 0]
            (grad,) = torch.autograd.grad(unit, current, allow_unused=True)
        if grad is None:
            return 0.0
        moved = as_time_first(grad, layout, self.n)[step].reshape(self.n, -1)
        gain = float(moved[step % self.n, 0])
        moved[step % self.n, 0] = 0
        return 0.0 if bool(moved.any()) else gain

    def _potentials(self, site: Site, current: Tensor) -> Tensor:
        """Return a module's distances to the threshold [T, N, ...] on currents, from a cleared state."""
        steps: list[Tensor] = []

        def handler(function: type, own: Callable[..., Any], args: tuple[Any, ...]) -> Any:
            if Place.here([*outside, *stack], function) == site.place:
                steps.append(site.step.above(args))
            return own(*args)

        outside = site.place.modules[: site.place.modules.index(site.name)]
        within = set(site.module.modules())
        inner = [(name, module) for name, module in self.named.items() if module in within]
        kept = State(site.module)
        reset(site.module)
        try:
            with running(inner) as stack, intercepted(handler):
                site.module(current)
        finally:
            kept.restore()
        if site.layout != "step":
            return as_time_first(steps[0], site.layout, self.n)
        return torch.stack(steps)

    def _layout(self, site: Site, quiet: Tensor) -> Layout | None:
        """Return where time is in the input of a site's module."""
        if site.layout != "step":
            return site.layout
        if quiet.shape[1] == self.n and quiet.shape[2:] == site.sizes:
            return "time-first"
        if quiet.shape[0] == self.n and quiet.shape[2:] == site.sizes:
            return "batch-first"
        if quiet.shape[1:] != site.sizes or quiet.shape[0] % self.n:
            return None
        pushed = quiet.clone()
        pushed[1] = _PUSH  # time-first: the second sample's first step
        with torch.no_grad():
            moved = self._potentials(site, pushed)[0] - self._potentials(site, quiet)[0]
        return "merged time-first" if bool(moved[1].any()) else "merged batch-first"


def _unserved(book: Book, call: Call, x: Tensor, known: Sequence[Neuron]) -> tuple[Neuron, ...]:
    """Return the modules between which spikes pass that neither a neuron nor a site has made.

    Everything that is served is disturbed until it has many values; what still has few was made elsewhere.
    """
    scale = 1 + torch.rand(1, generator=torch.Generator().manual_seed(0)).item()

    def disturbed(out: Any) -> Any:
        if isinstance(out, Tensor) and out.is_floating_point():
            ramp = torch.linspace(1, 2, out.numel(), dtype=out.dtype, device=out.device)
            return out * ramp.view(out.shape) * scale
        return type(out)(map(disturbed, out)) if type(out) in (tuple, list) else out

    def handler(function: type, own: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        out = own(*args)
        given = function.__module__ == replace_gradient.__module__  # a derivative that was declared
        return disturbed(out) if given or Place.here(stack, function) in served else out

    served = {site.place for site in book.sites}
    names = {neuron.name for neuron in known}
    found: dict[str, nn.Module] = {}
    inner = tuple(f"{name}." for name in names)

    weighs = {name for name, module in book.module.named_modules() if module._parameters}
    codes: set[str] = set()
    weighed = False

    def takes(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            if any(map(_is_spikes, inputs)) and not name.startswith(inner) and name not in names:
                if not weighed or name in codes:  # the code of the input, which no neuron has made
                    codes.add(name)
                    return disturbed(inputs)
                found.setdefault(name or "network", module)
            return None

        return hook

    def gives(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, _inputs: Any, out: Any) -> Any:
            nonlocal weighed
            if name in names:
                return disturbed(out)
            if any(map(_is_spikes, out if isinstance(out, tuple | list) else (out,))):
                if not weighed or name in codes:
                    codes.add(name)
                    return disturbed(out)
                if not name.startswith(inner):
                    found.setdefault(name or "network", module)
            weighed = weighed or name in weighs
            return None

        return hook

    with ExitStack() as handles, torch.enable_grad():
        for name, module in book.module.named_modules():
            handles.callback(module.register_forward_pre_hook(takes(name)).remove)
            handles.callback(module.register_forward_hook(gives(name)).remove)
        stack = handles.enter_context(running(book.module.named_modules()))
        handles.enter_context(intercepted(handler))
        call(x.detach().clone().requires_grad_(True))
    reason = "takes in or gives out spikes that no spike function was found for"
    index = len(known) + len(book.sites)
    return tuple(Neuron(name, index, module, reason) for name, module in [*found.items()][:1])


def _is_spikes(x: Any) -> bool:
    """Say whether a tensor that depends on the input takes few values, each many times."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.grad_fn is None or x.numel() < 16:
        return False
    x = x.detach()
    width = x.max() - x.min()
    if not 0 < width.item() < math.inf:
        return False
    counts = torch.bincount(((x - x.min()) / width * 1024).round().long().flatten())
    counts = counts[counts > 0]
    return len(counts) <= FEW_VALUES and int(counts.min()) > 1
