"""Victims made from torch modules, and the checks that a victim must pass before it is attacked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.losses import Loss
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.estimators import GradientEstimator
from robustspike.bench.snn.estimators import LossGrad
from robustspike.bench.snn.estimators import Memory
from robustspike.bench.snn.fast_lif import in_place
from robustspike.bench.snn.fast_lif import plain_nodes
from robustspike.bench.snn.flips import FlipEngine
from robustspike.bench.snn.neurons import Neuron
from robustspike.bench.snn.neurons import find_neurons
from robustspike.bench.snn.neurons import reset

FLIP_CHUNK = 64
"""Inputs per forward when single flips are answered; measured on small nets on a CPU (64 beats 256)."""


def digest_tensors(named: Iterator[tuple[str, Tensor]]) -> str:
    """Return the sha256 of named tensors: names, dtypes, shapes and bytes, in the order given."""
    total = hashlib.sha256()
    for name, tensor in named:
        data = tensor.detach().cpu().contiguous()
        total.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        total.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


class ModuleVictim:
    """A victim around an `nn.Module` that maps a pixel batch [N, *shape] to logits [N, classes].

    Normalisation, encoding, repetition over time and decoding belong inside the module. State is
    cleared before and after every call (each submodule with a `reset()`). Modules that draw noise
    declare `draws_noise = True` and read the `RowStreams` of the present call from `self.noise`.

    Args:
        module: the network; put into evaluation mode here and never switched by the harness.
        spec: what it is; `weights` is filled in.
    """

    members: tuple[ModuleVictim, ...] = ()
    """The victims that a joint victim is made of (`bench.joint`); empty for a single one."""

    def __init__(self, module: nn.Module, spec: VictimSpec) -> None:
        self.module = module.eval()
        weights = digest_tensors(iter(sorted(module.state_dict().items())))
        self.spec = dataclasses.replace(spec, weights=weights)
        self.neurons: tuple[Neuron, ...] = find_neurons(module)
        self._noisy = [m for m in module.modules() if getattr(m, "draws_noise", False)]
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._plain = plain_nodes(self.module)
        reset(module)

    @property
    def device(self) -> torch.device:
        """Where its parameters live (the CPU for a module without any)."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            return tensor.device
        return torch.device("cpu")

    def to(self, device: torch.device | str) -> ModuleVictim:
        """Move the module to a device and return the victim."""
        self.module.to(device)
        return self

    def logits(self, x: Tensor, *, noise: RowStreams | None = None) -> Tensor:
        """Answer a batch.

        Shape: x [N, *spec.shape] in spec.bounds; returns [N, classes].
        Raises: ContractError: wrong shapes, or a stochastic victim without noise streams.
        """
        if tuple(x.shape[1:]) != self.spec.shape:
            raise ContractError(
                f"victim '{self.spec.name}': expected inputs [N, {', '.join(map(str, self.spec.shape))}], "
                f"got {list(x.shape)}. Reshape the data, or fix `shape` in the victim's spec."
            )
        if self.spec.stochastic and noise is None:
            raise ContractError(
                f"victim '{self.spec.name}' is stochastic: hand it noise=RowStreams for every call."
            )
        for module in self._noisy:
            module.noise = noise  # type: ignore[assignment]
        reset(self.module)
        try:
            with in_place(self._plain):
                out: Tensor = self.module(x)
        finally:
            reset(self.module)
            for module in self._noisy:
                module.noise = None  # type: ignore[assignment]
        if out.shape != (len(x), self.spec.classes):
            raise ContractError(
                f"victim '{self.spec.name}': expected logits [{len(x)}, {self.spec.classes}], got "
                f"{list(out.shape)}. Decode over time inside the module, or fix `classes` in the spec."
            )
        return out

    def flipped(self, x: Tensor, owner: Tensor, index: Tensor) -> Tensor:
        """Return x[owner] with element `index` (of the flattened input) mirrored in the bounds."""
        low, high = self.spec.bounds
        out = x[owner]
        flat = out.view(len(owner), -1)
        at = torch.arange(len(owner), device=x.device)
        flat[at, index] = low + high - flat[at, index]
        return out

    def flip_logits(
        self, x: Tensor, owner: Tensor, index: Tensor, *, noise: RowStreams | None = None
    ) -> Tensor:
        """Answer single flips of a batch: the logits of `flipped(x, owner, index)`, [q, classes].

        Where the module declares a body that patches can pass (see `FlipEngine`), only what a flip
        changes is computed. Otherwise every flip is a forward pass, in chunks of fixed size; noise has
        one stream per flip.
        """
        engine = None if self.spec.stochastic else FlipEngine.of(self.module, self.spec.shape)
        if engine is not None and len(owner) >= 2 * len(x):
            return engine.answer(x, owner, index, sum(self.spec.bounds))
        parts = [x.new_empty(0, self.spec.classes)]
        for start in range(0, len(owner), FLIP_CHUNK):
            part = slice(start, start + FLIP_CHUNK)
            rows = torch.arange(len(owner), device=x.device)[part]
            streams = None if noise is None else noise.fork("flips", rows=rows)
            parts.append(self.logits(self.flipped(x, owner[part], index[part]), noise=streams))
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
        """Compute the per-sample loss and its input gradient under an estimator."""
        if memories is None:
            rows = torch.arange(len(x), device=x.device)
            memories = [Memory(rows=rows, n=len(x)) for _ in self.neurons]
        return estimator.loss_and_grad(
            self.module,
            lambda inputs: self.logits(inputs, noise=noise),
            x,
            lambda logits: loss(logits, y),
            neurons=self.neurons,
            memories=memories,
        )


class Mirrored(nn.Module):
    """A quality model turned round: total - score."""

    def __init__(self, inner: nn.Module, total: float) -> None:
        super().__init__()
        self.inner = inner
        self.total = total

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.total - self.inner(x)
        return out


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
) -> ModuleVictim:
    """Make a victim of one's own module: see `VictimSpec` for the arguments.

    The module maps raw inputs [N, *shape] in bounds to logits [N, classes]. A quality model maps them to
    one score [N, 1] and declares score_range=(worst, best); where worst is the larger number, the victim
    answers worst + best - score, so that larger is better everywhere.
    """
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
