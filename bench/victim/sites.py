"""Spikes taken where they are made: at step functions with a hand-made derivative, in whatever class.

A surrogate-gradient network makes its spikes in a subclass of `torch.autograd.Function` whose output is a
step of one argument. Each place where one is called is a `Site`. For the length of a pass an estimator may
give the derivative of a site; the forward is the network's own, bit for bit. `bench.victim.look` finds them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.errors import ContractError
from robustspike.bench.snn.neurons import DeferredRule
from robustspike.bench.snn.neurons import FunctionRule
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import SequenceRule
from robustspike.bench.snn.neurons import SpikeRule
from robustspike.bench.snn.steps import Step

Layout = Literal["step", "time-first", "batch-first", "merged time-first", "merged batch-first", "flat"]
"""Where time is in one call: nowhere (one step, [N, ...]), [T, N, ...], [N, T, ...], [T N, ...], [N T, ...],
or [T, N F] with the features in one axis with the batch."""

_HERE = __name__.rpartition(".")[0]
_LOCK = threading.RLock()
_Base: Any = torch.autograd.function._SingleLevelFunction

Handler = Callable[[type, Callable[..., Any], tuple[Any, ...]], Any]
"""Answers a call of a Function: (its class, its own apply, the arguments) -> output."""


@contextmanager
def intercepted(handler: Handler) -> Iterator[None]:
    """Let a handler answer every Function that this thread calls.

    The replacement is process-wide for its length, so passes of other threads that need one wait. It is
    put below `Function.apply`, to which networks keep references (`self.act = Step.apply`).
    """
    with _LOCK:
        thread, before = threading.get_ident(), _Base.__dict__.get("apply")

        def apply(cls: Any, *args: Any) -> Any:
            own = super(_Base, cls).apply if before is None else before.__get__(None, cls)
            return (
                own(*args)
                if cls is _Exchanged or threading.get_ident() != thread
                else handler(cls, own, args)
            )

        _Base.apply = classmethod(apply)
        try:
            yield
        finally:
            if before is None:
                del _Base.apply
            else:
                _Base.apply = before


@contextmanager
def running(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[list[str]]:
    """Yield the names of those of the modules whose forward is running, outermost first."""
    stack: list[str] = []
    with ExitStack() as handles:
        for name, module in modules:

            def enter(_module: nn.Module, _inputs: Any, name: str = name) -> None:
                stack.append(name)

            def leave(*_: Any) -> None:
                stack.pop()

            for handle in (
                module.register_forward_pre_hook(enter, prepend=True),
                module.register_forward_hook(leave, always_call=True),
            ):
                handles.callback(handle.remove)
        yield stack


@dataclass(frozen=True)
class Place:
    """Where in a network a Function is called: the modules around it, the Function, the lines of code."""

    modules: tuple[str, ...]
    function: type
    code: tuple[int, ...]

    @classmethod
    def here(cls, stack: Sequence[str], function: type) -> Place:
        """Return the place of the call that is being handled: the code up to the call of the module."""
        code: list[int] = []
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code is not _run_own.__code__ and len(code) < 128:
            where = frame.f_globals.get("__name__", "")
            if where == nn.Module.__module__:
                break
            if not where.startswith(_HERE):
                code += (id(frame.f_code), frame.f_lasti)
            frame = frame.f_back
        return cls(tuple(stack), function, tuple(code))


def as_time_first(x: Tensor, layout: Layout, n: int) -> Tensor:
    """Return [T, N, ...] of a tensor in one of the layouts with time; n is the batch."""
    if layout == "batch-first":
        return x.transpose(0, 1)
    if layout == "flat":
        return x.unflatten(1, (n, -1))
    if layout == "merged time-first":
        return x.unflatten(0, (-1, n))
    return x.unflatten(0, (n, -1)).transpose(0, 1) if layout == "merged batch-first" else x


def from_time_first(x: Tensor, layout: Layout) -> Tensor:
    """Return a tensor [T, N, ...] in one of the layouts with time."""
    if layout in ("batch-first", "merged batch-first"):
        x = x.transpose(0, 1)
    if layout == "flat":
        return x.flatten(1, 2)
    return x.flatten(0, 1) if layout.startswith("merged") else x


def sizes(x: Tensor, layout: Layout) -> tuple[int, ...]:
    """Return the shape of a tensor without the axis that the batch is in."""
    return (x.shape[0], *x.shape[2:]) if layout in ("time-first", "flat") else tuple(x.shape[1:])


@dataclass(frozen=True)
class Whole:
    """What is known of a module that turns whole sequences of currents into a site's spikes.

    Args:
        layout: where time is in its input.
        barrier: distance from rest to threshold: how far it is from firing without a current.
        gain: how much a step's current adds to its potential.
    """

    layout: Layout
    barrier: float
    gain: float


@dataclass(frozen=True)
class Site(Neuron):
    """A place where a network makes spikes by a Function; `module` is the innermost one around the call.

    Args:
        book: all sites of the network.
        place: where it is.
        step: over what, and where, the Function steps.
        layout: where time is in one call.
        sizes: shape of the potential without the axis of the batch.
        turn: which call in turn it is, at a place that makes the spikes of several layers.
        whole: what is known of the module where it handles whole sequences, else None.
        why_not: why it is None.
    """

    book: Book = field(repr=False, compare=False, kw_only=True)
    place: Place = field(repr=False, kw_only=True)
    step: Step = field(repr=False, compare=False, kw_only=True)
    layout: Layout = field(default="step", kw_only=True)
    sizes: tuple[int, ...] = field(default=(), kw_only=True)
    turn: int = field(default=0, kw_only=True)
    whole: Whole | None = field(default=None, repr=False, compare=False, kw_only=True)
    why_not: str = field(default="", repr=False, compare=False, kw_only=True)

    @property
    def barrier(self) -> float:
        """Distance from rest to threshold."""
        return self._whole().barrier

    @property
    def gain(self) -> float:
        """Factor that multiplies the input current."""
        return self._whole().gain

    @property
    def threshold(self) -> float:
        """Not known: what is seen of a site is the distance to it."""
        raise ContractError(f"spike site '{self.name}': {self.no_dynamics}.")

    @property
    def leak(self) -> float:
        """Not known."""
        raise ContractError(f"spike site '{self.name}': {self.no_dynamics}.")

    rest = leak

    @property
    def is_multi_step(self) -> bool:
        """Whether one call of the module processes a whole sequence, in a way that rules can follow."""
        return self.whole is not None

    @property
    def no_dynamics(self) -> str | None:
        """Why rules that need a neuron's equations do not apply."""
        return f"neuron '{self.name}' was found by its spike function, which shows neither leak nor rates"

    @property
    def no_sequence(self) -> str | None:
        """Why rules for whole sequences do not apply, or None where they do."""
        return None if self.whole is not None else f"neuron '{self.name}' {self.why_not}"

    @property
    def no_resetting(self) -> str | None:
        """Why the gradient through the reset cannot be switched."""
        return f"neuron '{self.name}' was found by its spike function, where a reset looks like an output"

    def _whole(self) -> Whole:
        if self.whole is None:
            raise ContractError(f"spike site '{self.name}': {self.no_sequence}. Choose another estimator.")
        return self.whole

    @contextmanager
    def spiking_by(self, rule: nn.Module) -> Iterator[None]:
        """Let a rule give the derivative of the spikes for the length of the block."""
        with self.book.open(), self.book.ruled(self, rule):
            yield

    @contextmanager
    def resetting(self, detach: bool) -> Iterator[None]:
        """Refuse: at a site the two uses of a spike look alike."""
        del detach
        raise ContractError(f"spike site '{self.name}': {self.no_resetting}. Leave detach_reset unset.")
        yield

    @contextmanager
    def sequence_by(self, rule: SequenceRule) -> Iterator[None]:
        """Hand whole sequences [T, N, ...] to a layer rule for the length of the block."""
        own, layout = self.module.forward, self._whole().layout

        def forward(x: Tensor) -> Tensor:
            n = self.book.batch

            def steps(x_seq: Tensor) -> Tensor:
                return as_time_first(_run_own(own, from_time_first(x_seq, layout)), layout, n)

            return from_time_first(rule(steps, as_time_first(x, layout, n)), layout)

        with self.book.open():
            self.module.__dict__["forward"] = forward
            try:
                yield
            finally:
                del self.module.__dict__["forward"]


def _run_own(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a module's own forward; where `Place.here` meets this, it is in the module's own code."""
    return forward(x)


class Book:
    """The sites of one network, and the rules that stand for their derivatives during a pass.

    Args:
        module: the network; its first input is the batch.
        hosts: names of the modules in or below which any Function is called.
    """

    def __init__(self, module: nn.Module, hosts: Iterable[str] = ()) -> None:
        self.module = module
        self.hosts = tuple(hosts)
        self.batch = 0
        self._sites: dict[Place, list[Site]] = {}
        self._rules: list[tuple[Site, nn.Module]] = []
        self._opened = 0
        self._stack: list[str] = []
        self._series: dict[Site, _Series] = {}
        self._turn: dict[tuple[Place, tuple[int, ...]], int] = {}
        self._listener: Callable[[str, Tensor], None] | None = None

    @contextmanager
    def listening(self, listener: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Hand the spikes of every site, [T, N, ...] by its name, to a listener during the block."""
        self._listener = listener
        try:
            with self.open():
                yield
        finally:
            self._listener = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites, in the order in which they were first called."""
        return tuple(sorted((s for at in self._sites.values() for s in at), key=lambda site: site.index))

    @sites.setter
    def sites(self, found: Iterable[Site]) -> None:
        self._sites = {}
        for site in found:
            self._sites.setdefault(site.place, []).append(site)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Follow the network's passes, and answer its Functions, inside the block; may be nested."""
        if self._opened:
            yield
            return
        named = dict(self.module.named_modules())
        with ExitStack() as stack:
            stack.enter_context(intercepted(self._answer))
            self._stack = stack.enter_context(running((name, named[name]) for name in self.hosts))
            handle = self.module.register_forward_pre_hook(self._begin, prepend=True)
            stack.callback(handle.remove)
            self._opened += 1
            try:
                yield
            finally:
                self._opened -= 1
                self._series, self._turn = {}, {}

    def _begin(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.batch = len(inputs[0])
        self._series, self._turn = {}, {}

    @contextmanager
    def ruled(self, site: Site, rule: nn.Module) -> Iterator[None]:
        """Let a rule answer for a site inside the block."""
        self._rules.append((site, rule))
        try:
            yield
        finally:
            self._rules.remove((site, rule))

    def _answer(self, function: type, own: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        place = Place.here(self._stack, function)
        sites = [s for s in self._sites.get(place, ()) if sizes(args[s.step.argument], s.layout) == s.sizes]
        if not sites:
            return own(*args)
        site = sites[0]
        u = args[site.step.argument]
        recording = torch.is_grad_enabled() and u.requires_grad
        if (recording or self._listener is not None) and len(sites) > 1:
            turn = self._turn.get((place, site.sizes), 0)
            self._turn[place, site.sizes] = turn + 1
            site = sites[turn % len(sites)]
        if self._listener is not None:
            out = own(*args)
            steps = out.detach()
            steps = steps[None] if site.layout == "step" else as_time_first(steps, site.layout, self.batch)
            self._listener(site.name, steps)
            return out
        rule = next((rule for other, rule in reversed(self._rules) if other is site), None)
        if not isinstance(rule, SpikeRule):
            return own(*args)
        if not recording:
            if type(rule).forward not in (SpikeRule.forward, DeferredRule.forward):
                self._show(rule, site, site.step.distance(args))
            return own(*args)
        with torch.no_grad():
            out = own(*args)
        series = self._series.get(site)
        if series is None or series.rule is not rule:
            series = self._series[site] = _Series(rule, site, self.batch)
        return _Exchanged.apply(u, out, series.add(site.step.distance(args)))  # type: ignore[no-untyped-call]

    def _show(self, rule: SpikeRule, site: Site, u: Tensor) -> None:
        """Show potentials, a step at a time, to a rule that only watches them."""
        for step in [u] if site.layout == "step" else as_time_first(u, site.layout, self.batch):
            rule(step)


class _Exchanged(torch.autograd.Function):
    """A site's own output, with the slope that an estimator gives."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, out: Tensor, slope: Callable[[], Tensor]) -> Tensor:
        del u
        ctx.slope = slope
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.slope(), None, None


class _Series:
    """The distances of one site's calls in one pass, and the slopes that a rule gives them."""

    def __init__(self, rule: SpikeRule, site: Site, n: int) -> None:
        self.rule, self.site, self.n = rule, site, n
        self.calls: list[Tensor] = []
        self.slopes: Sequence[Tensor] | None = None

    def add(self, u: Tensor) -> Callable[[], Tensor]:
        """Take in the next call's distances; return a function for its slopes, to be called later."""
        index = len(self.calls)
        self.calls.append(u)
        self.slopes = None

        def slope() -> Tensor:
            if self.slopes is None:
                with torch.no_grad():
                    self.slopes = self._slopes()
            height = self.site.step.height
            return self.slopes[index] if height == 1 else self.slopes[index] * height

        return slope

    def _slopes(self) -> Sequence[Tensor]:
        layout = self.site.layout
        if type(self.rule) is FunctionRule:
            return [self.rule.function(u) for u in self.calls]
        if layout == "step":
            return list(self._along(torch.stack(self.calls)))
        sequences = (as_time_first(u, layout, self.n) for u in self.calls)
        return [from_time_first(self._along(u), layout) for u in sequences]

    def _along(self, u: Tensor) -> Tensor:
        """Return the slopes of potentials [T, N, ...]."""
        if isinstance(self.rule, DeferredRule):
            return self.rule.slopes(u)
        return torch.stack([self.rule.slope(step) for step in u])
