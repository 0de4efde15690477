"""Victims made from torch modules, and the checks that a victim must pass before it is attacked."""

from __future__ import annotations

import copy as copying
import dataclasses
import hashlib
import math
import threading
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ContractError
from robustspike.bench.errors import VictimFailed
from robustspike.bench.numbers.losses import Loss
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.snn.estimators import LossGrad
from robustspike.bench.snn.estimators import Memory
from robustspike.bench.snn.fast_lif import in_place
from robustspike.bench.snn.fast_lif import plain_nodes
from robustspike.bench.snn.flips import FlipEngine
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import resettable
from robustspike.bench.victim.look import LOOK_ROWS
from robustspike.bench.victim.look import find_spikes
from robustspike.bench.victim.packing import packed
from robustspike.bench.victim.passes import NEVER_CUT
from robustspike.bench.victim.passes import PASS_BYTES
from robustspike.bench.victim.passes import peak_bytes
from robustspike.bench.victim.passes import rows_of
from robustspike.bench.victim.passes import whole_rows

FLIP_CHUNK = 64
"""Inputs per forward when single flips are answered; measured on small nets on a CPU (64 beats 256)."""

TURN = threading.RLock()
"""Held during every pass: networks keep state and estimators are installed in them, so that threads take
turns. One for all victims, because victims may share networks (a joint one and its members do)."""


def digest_tensors(named: Iterator[tuple[str, Tensor]]) -> str:
    """Return the sha256 of named tensors: names, dtypes, shapes and bytes, in the order given."""
    total = hashlib.sha256()
    for name, tensor in named:
        data = tensor.detach().cpu().contiguous()
        total.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        total.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


class ModuleVictim:
    """A victim around an `nn.Module` that maps a pixel batch [N, *shape] to logits [N, classes].

    Normalisation, encoding, repetition over time and decoding belong inside the module. State is
    cleared before and after every call (each submodule with a `reset()`). Modules that draw noise
    declare `draws_noise = True` and read the `RowStreams` of the present call from `self.noise`.

    Threads take turns: a pass in one waits for that in another. A batch that is too large for one pass is
    cut into passes of `rows_at_once` samples; what comes back is that of one pass, up to rounding.

    Args:
        module: the network itself, not a copy (`wrap` makes one): it is put into evaluation mode and its
            parameters are frozen here, and neither is switched by the harness again.
        spec: what it is; `weights` is filled in.

    Raises: ContractError: its tensors were made under torch.inference_mode.
    """

    members: tuple[ModuleVictim, ...] = ()
    """The victims that a joint victim is made of (`bench.joint`); empty for a single one."""

    def __init__(self, module: nn.Module, spec: VictimSpec) -> None:
        if any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers())):
            raise ContractError(
                f"victim '{spec.name}': its parameters were made under torch.inference_mode, so nothing is "
                "differentiable through them. Build or load the network outside of it."
            )
        self.module = module.eval()
        weights = digest_tensors(iter(sorted(module.state_dict().items())))
        self.spec = dataclasses.replace(spec, weights=weights)
        self._noisy = [m for m in module.modules() if getattr(m, "draws_noise", False)]
        for parameter in module.parameters():
            parameter.requires_grad_(False)

        self.refusals: dict[GradientEstimator, str | None] = {}  # kept by `checks.refusal`
        self._plain = plain_nodes(self.module)
        self._resettable: list[nn.Module] | None = None
        self.compiled: ModuleVictim | None = None  # kept by `compiling.compiled`
        self._clear()

    @cached_property
    def neurons(self) -> tuple[Neuron, ...]:
        """The layers that make spikes: known by class, or found by their spike function (looked for once)."""
        if self.spec.black_box:
            return ()  # nothing could be exchanged in it
        with TURN, torch.inference_mode(False):
            at_once = self.passes(LOOK_ROWS, gradient=True)[0].stop
            with self.bounded():
                return find_spikes(
                    self.module, self._answer_freely, self._made_up(), steps=self.spec.steps, at_once=at_once
                )

    def _made_up(self) -> Tensor:
        """Return inputs for a look at the network: any values of the domain, none twice."""
        low, high = self.spec.bounds
        u = RowStreams.derive(range(LOOK_ROWS), "look").uniform(self.spec.shape)
        return (low + (high - low) * u * (4 if self.spec.domain is Domain.EVENTS else 1)).to(self.device)

    def _answer_freely(self, x: Tensor) -> Tensor:
        """Answer any number of inputs, with noise of their own where the victim draws some."""
        streams = RowStreams.derive(range(len(x)), "look", "noise", device=x.device)
        return self._pass(x, streams if self.spec.stochastic else None)

    @cached_property
    def sample_bytes(self) -> dict[bool, int]:
        """Bytes of tensors in a pass of one sample, by whether a gradient is taken; 0 where it cannot answer.

        Beyond `PASS_BYTES` nothing is counted any more: one sample is a pass then, however large.
        Counted on a made-up input, with the neurons' own steps: the same on every device.
        Cost: one forward and one gradient of one sample, once.
        """
        known = (*self.module.parameters(), *self.module.buffers())

        def forward() -> None:
            with torch.no_grad():
                self._answer_freely(x)

        def gradient() -> None:
            with torch.enable_grad():
                inputs = x.clone().requires_grad_(True)
                out = self._answer_freely(inputs).sum()
                if out.requires_grad:
                    torch.autograd.grad(out, inputs, allow_unused=True)

        with TURN, torch.inference_mode(False):
            x, plain, self._plain = self._made_up()[:1], self._plain, []
            try:
                return {
                    False: peak_bytes(forward, known, most=PASS_BYTES),
                    True: peak_bytes(gradient, known, most=PASS_BYTES),
                }
            except Exception:  # noqa: BLE001  (a network may refuse made-up inputs: then nothing is cut)
                return {False: 0, True: 0}
            finally:
                self._plain = plain

    def rows_at_once(self, *, gradient: bool) -> int:
        """Return how many samples make one pass: by what one of them takes, never by the machine."""
        return rows_of(self.sample_bytes[gradient])

    def passes(self, n: int, *, gradient: bool) -> list[slice]:
        """Return how a batch of n samples is cut into passes."""
        size = n if self._fits(n, gradient=gradient) else self.rows_at_once(gradient=gradient)
        return [slice(start, min(start + size, n)) for start in range(0, n, max(1, size))]

    def cut(self, shard: int) -> dict[str, int]:
        """Return what a record keeps where a shard is more than one pass: samples a pass; else nothing."""
        if self._fits(shard, gradient=True) and self._fits(shard, gradient=False):
            return {}
        return {"gradient": self.rows_at_once(gradient=True), "forward": self.rows_at_once(gradient=False)}

    def is_small(self, n: int) -> bool:
        """Say whether n samples are so small that nothing need be measured."""
        spec = self.spec
        steps = max(1, spec.steps) if spec.domain is Domain.STATIC else 1
        return n * steps * 4 * math.prod(spec.shape) <= NEVER_CUT

    def _fits(self, n: int, *, gradient: bool) -> bool:
        """Say whether n samples are one pass."""
        return self.is_small(n) or n <= self.rows_at_once(gradient=gradient)

    def bounded(self) -> AbstractContextManager[object]:
        """Return a block for passes that record a gradient: with the graph kept small where one sample's pass
        is larger than a pass may be. No bit of any number changes."""
        if self.is_small(1) or self.sample_bytes[True] <= PASS_BYTES:
            return nullcontext()
        return packed(PASS_BYTES // 4, [*self.module.parameters(), *self.module.buffers()])

    @property
    def device(self) -> torch.device:
        """Where its parameters live (the CPU for a module without any)."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            return tensor.device
        return torch.device("cpu")

    @property
    def _is_double(self) -> bool:
        """Whether the network computes in double precision, by its first floating-point parameter."""
        kinds = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return next(kinds, None) == torch.float64

    def to(self, device: torch.device | str) -> ModuleVictim:
        """Move the module to a device and return the victim."""
        self.module.to(device)
        self.refusals.clear()
        return self

    def logits(self, x: Tensor, *, noise: RowStreams | None = None) -> Tensor:
        """Answer a batch.

        Shape: x [N, *spec.shape] in spec.bounds; returns [N, classes]. A network of float64 parameters is
            handed float64 inputs. A batch that is too large for one pass is cut where no graph is recorded.
        Raises: ContractError: wrong shapes, or a stochastic victim without noise streams.
            VictimFailed: the network raised an exception of its own.
        """
        recorded = torch.is_grad_enabled() and x.requires_grad
        if recorded or self._fits(len(x), gradient=False):
            return self._pass(x, noise)
        answers = []
        for part in self.passes(len(x), gradient=False):
            with taken(noise, torch.arange(len(x), device=x.device)[part]) as streams:
                answers.append(self._pass(x[part], streams))
        return torch.cat(answers)

    def _pass(self, x: Tensor, noise: RowStreams | None) -> Tensor:
        """Answer a batch in one pass."""
        if tuple(x.shape[1:]) != self.spec.shape:
            raise ContractError(
                f"victim '{self.spec.name}': expected inputs [N, {', '.join(map(str, self.spec.shape))}], "
                f"got {list(x.shape)}. Reshape the data, or fix `shape` in the victim's spec."
            )
        if self.spec.stochastic and noise is None:
            raise ContractError(
                f"victim '{self.spec.name}' is stochastic: hand it noise=RowStreams for every call."
            )
        with TURN:
            out = self._answered(x.double() if self._is_double else x, noise)
        if not isinstance(out, Tensor):
            raise ContractError(
                f"victim '{self.spec.name}': expected logits [{len(x)}, {self.spec.classes}], got a "
                f"{type(out).__name__}. Return one tensor from forward(), or use adapt(..., readout=...)."
            )
        if out.shape != (len(x), self.spec.classes):
            raise ContractError(
                f"victim '{self.spec.name}': expected logits [{len(x)}, {self.spec.classes}], got "
                f"{list(out.shape)}. Decode over time inside the module, or fix `classes` in the spec."
            )
        return out

    def _answered(self, x: Tensor, noise: RowStreams | None) -> Any:
        """Return whatever the network answers, from cleared state and with the noise of this call."""
        for module in self._noisy:
            module.noise = noise  # type: ignore[assignment]
        first = self._resettable is None
        self._clear()
        try:
            return self._network(x)
        except (BenchError, MemoryError):
            raise
        except Exception as error:
            raise VictimFailed(
                f"victim '{self.spec.name}': its forward pass raised {type(error).__name__}: {error}"
            ) from error
        finally:
            if first:  # a network may complete itself at its first pass
                self._resettable = resettable(self.module)
            self._clear()
            for module in self._noisy:
                module.noise = None  # type: ignore[assignment]

    def _network(self, x: Tensor) -> Any:
        """Return whatever the network answers as it is."""
        with in_place(self._plain):
            return self.module(x)

    def _clear(self) -> None:
        """Clear the network's state."""
        for child in resettable(self.module) if self._resettable is None else self._resettable:
            child.reset()  # type: ignore[operator]

    def flipped(self, x: Tensor, owner: Tensor, index: Tensor, value: Tensor | None = None) -> Tensor:
        """Return x[owner] with element `index` (of the flattened input) set to `value`, or mirrored."""
        low, high = self.spec.bounds
        out = x[owner]
        flat = out.view(len(owner), -1)
        at = torch.arange(len(owner), device=x.device)
        flat[at, index] = low + high - flat[at, index] if value is None else value
        return out

    def flip_logits(
        self,
        x: Tensor,
        owner: Tensor,
        index: Tensor,
        value: Tensor | None = None,
        *,
        noise: RowStreams | None = None,
    ) -> Tensor:
        """Answer single flips of a batch: the logits of `flipped(x, owner, index, value)`, [q, classes].

        Where the module declares a body that patches can pass (see `FlipEngine`), only what a flip
        changes is computed. Otherwise every flip is a forward pass, in chunks of fixed size; noise has
        one stream per flip.
        """
        engine = None if self.spec.stochastic else FlipEngine.of(self.module, self.spec.shape)
        if engine is not None and engine.pays(self.spec.shape, inputs=len(x), flips=len(owner)):
            here = x.flatten(1)[owner, index]
            there = sum(self.spec.bounds) - here if value is None else value
            return engine.answer(x, owner, index, there - here)
        parts = [x.new_empty(0, self.spec.classes)]
        for start in range(0, len(owner), FLIP_CHUNK):
            part = slice(start, start + FLIP_CHUNK)
            rows = torch.arange(len(owner), device=x.device)[part]
            streams = None if noise is None else noise.fork("flips", rows=rows)
            chosen = None if value is None else value[part]
            parts.append(self.logits(self.flipped(x, owner[part], index[part], chosen), noise=streams))
        return torch.cat(parts)

    def loss_and_grad(
        self,
        x: Tensor,
        y: Tensor,
        loss: Loss,
        estimator: GradientEstimator,
        *,
        memories: list[Memory] | None = None,
        noise: RowStreams | None = None,
    ) -> LossGrad:
        """Compute the per-sample loss and its input gradient under an estimator.

        Raises: ContractError: there is no gradient, or the victim is a black box.
        """
        if self.spec.black_box:
            raise ContractError(
                f"victim '{self.spec.name}': it is a black box, its gradients are refused. Attack it through "
                "its scores."
            )
        everyone = torch.arange(len(x), device=x.device)
        if memories is None:
            memories = [Memory(rows=everyone, n=len(x)) for _ in self.neurons]
        with TURN, torch.inference_mode(False):
            x = x.clone() if x.is_inference() else x
            if estimator.mixes_samples or self._fits(len(x), gradient=True):
                return self._gradient(x, lambda logits: loss(logits, y), estimator, memories, noise)
            rows = memories[0].rows if memories else everyone
            out: LossGrad | None = None
            for part in whole_rows(rows, self.rows_at_once(gradient=True)):
                with taken(noise, part) as streams:
                    found = self._gradient(
                        x[part],
                        shown_whole(loss, y, part),
                        estimator,
                        [dataclasses.replace(memory, rows=memory.rows[part]) for memory in memories],
                        streams,
                    )
                if out is None:
                    out = LossGrad(*(piece.new_zeros(len(x), *piece.shape[1:]) for piece in found))
                for whole, piece in zip(out, found, strict=True):
                    whole[part] = piece
            assert out is not None
            return out

    def _gradient(
        self,
        x: Tensor,
        loss: Callable[[Tensor], Tensor],
        estimator: GradientEstimator,
        memories: list[Memory],
        noise: RowStreams | None,
    ) -> LossGrad:
        """Compute losses and gradients of a batch in one pass."""
        neurons = self.neurons
        with self.bounded():
            return estimator.loss_and_grad(
                self.module,
                lambda inputs: self.logits(inputs, noise=noise),
                x,
                loss,
                neurons=neurons,
                memories=memories,
            )


def shown_whole(loss: Loss, y: Tensor, part: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the loss of some rows of a batch: a loss may know things of each row, so it sees all of them."""

    def of_part(logits: Tensor) -> Tensor:
        everyone = logits.new_zeros(len(y), logits.shape[1]).index_copy(0, part, logits)
        return loss(everyone, y)[part]

    return of_part


@contextmanager
def taken(noise: RowStreams | None, rows: Tensor) -> Iterator[RowStreams | None]:
    """Lend the streams of some rows for the length of the block; they go on from where it leaves them."""
    if noise is None:
        yield None
        return
    part = noise.part(rows)
    yield part
    noise.advance(rows, part)


class Mirrored(nn.Module):
    """A quality model turned round: total - score."""

    def __init__(self, inner: nn.Module, total: float) -> None:
        super().__init__()
        self.inner = inner
        self.total = total

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.total - self.inner(x)
        return out


def private_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy of a module, that of a forward pass in training included.

    What such a pass leaves in a module (a membrane potential, a monitor's list) are tensors of a graph, which
    Python's own deep copy refuses; here they are copied without their graph.

    Raises: ContractError: something in the module cannot be copied.
    """
    done: dict[int, Any] = {}
    seen: set[int] = set()

    def note(value: Any) -> None:
        if isinstance(value, Tensor):
            if value.grad_fn is not None:
                done[id(value)] = value.detach().clone()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            for item in value.values() if isinstance(value, dict) else value:
                note(item)

    with torch.inference_mode(False):
        for child in module.modules():
            note(child.__dict__)
        try:
            return copying.deepcopy(module, done)
        except Exception as error:  # whatever a foreign class raises when it is copied
            raise ContractError(
                f"wrap: a {type(module).__name__} cannot be copied ({type(error).__name__}: {error}). Pass "
                "copy=False, and the module itself is frozen and put into evaluation mode."
            ) from error


def wrap(
    module: nn.Module,
    *,
    name: str,
    shape: tuple[int, ...],
    classes: int,
    steps: int = 0,
    domain: Domain = Domain.STATIC,
    bounds: tuple[float, float] = (0.0, 1.0),
    stochastic: bool = False,
    task: Task = Task.CLASSIFY,
    score_range: tuple[float, float] | None = None,
    copy: bool = True,
) -> ModuleVictim:
    """Make a victim of one's own module: see `VictimSpec` for the arguments.

    The victim is a copy, so that a training loop may go on with the module, and the numbers stay those of
    the weights at this moment. With copy=False it is the module itself, from now on in evaluation mode and
    with frozen parameters.

    The module maps raw inputs [N, *shape] in bounds to logits [N, classes]. A quality model maps them to
    one score [N, 1] and declares score_range=(worst, best); where worst is the larger number, the victim
    answers worst + best - score, so that larger is better everywhere.
    """
    if not isinstance(module, nn.Module):
        raise ContractError(
            f"wrap: expected a torch.nn.Module, got {type(module).__name__}. Put the function into a module."
        )
    if copy:
        module = private_copy(module)
    if task is Task.QUALITY and score_range is not None and score_range[0] > score_range[1]:
        module, score_range = Mirrored(module, sum(score_range)), (score_range[1], score_range[0])
    spec = VictimSpec(
        name=name,
        shape=shape,
        classes=classes,
        steps=steps,
        domain=domain,
        bounds=bounds,
        stochastic=stochastic,
        task=task,
        score_range=score_range,
    )
    return ModuleVictim(module, spec)
