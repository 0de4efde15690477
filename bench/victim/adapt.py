"""Victims from networks that were not written for the harness: SpikingJelly, snnTorch, plain torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextlib import nullcontext
from typing import Any
from typing import Literal
from typing import get_args

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.snn.layers import chain
from robustspike.bench.snn.neurons import State
from robustspike.bench.victim.checks import check_victim
from robustspike.bench.victim.draws import DrawsFrom
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.module import private_copy
from robustspike.bench.victim.module import wrap

Time = Literal["inside", "repeat", "loop", "time-first"]


IN_TRAINING = "answers with its neurons in training mode, where alone they have a gradient"
"""What is noted of a victim whose neurons are left in training mode."""


class AdaptedNet(nn.Module):
    """A foreign network as a pure function from pixels to logits; see `adapt` for the arguments."""

    noise: RowStreams | None = None

    def __init__(
        self,
        network: nn.Module,
        *,
        steps: int,
        time: Time,
        readout: Callable[[Any], Tensor] | None,
        clear: Callable[[nn.Module], Any] | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        has_time: bool,
        draws_noise: bool,
        training_neurons: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.time = time
        self.readout = readout
        self.clear = clear
        self.mean = mean
        self.std = std
        self.has_time = has_time
        self.draws_noise = draws_noise
        self.training_neurons = training_neurons

    def train(self, mode: bool = True) -> AdaptedNet:
        """Switch the mode; in evaluation mode neurons stay in training mode where they were asked to."""
        super().train(mode)
        if not mode and self.training_neurons:
            quiet = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
            for child in self.network.modules():
                child.training = not isinstance(child, quiet)
        return self

    @property
    def time_mean_body(self) -> nn.Module | None:
        """The layers of the network, where they are a chain whose mean over time is the answer."""
        plain = self.time in ("time-first", "inside") and self.readout is None and self.clear is None
        if not plain or self.mean or self.draws_noise or self.training_neurons:
            return None
        if type(self.network) is nn.Sequential and self.time == "time-first":
            return self.network
        return chain(self.network, time_first=self.time == "time-first")

    def forward(self, x: Tensor) -> Tensor:
        if self.mean:
            shape = (-1, 1, 1)
            x = (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)
        self._clear()
        state = State(self.network)
        try:
            with self._own_draws(tuple(x.shape[1:])):
                return self._decoded(self._run(x), len(x))
        finally:
            state.restore()

    def _clear(self) -> None:
        if self.clear is not None:
            self.clear(self.network)
            return
        for child in self.network.modules():
            names = ("reset_mem", "reset_states", "reset")
            method = next(filter(callable, (getattr(child, name, None) for name in names)), None)
            if method is not None:
                method()

    def _own_draws(self, shape: tuple[int, ...]) -> AbstractContextManager[Any]:
        """Let what the network draws at random come from the streams of the pass, where it has any."""
        if not self.draws_noise or self.noise is None:
            return nullcontext()
        return DrawsFrom(self.noise, shape=shape, steps=self.steps)

    def _run(self, x: Tensor) -> Any:
        """Call the network on copies: what it changes in its input is not the caller's."""
        if self.time == "repeat":
            return self.network(x.unsqueeze(0).repeat(self.steps, *[1] * x.dim()))
        if self.time == "time-first":
            return self.network(x.transpose(0, 1).clone())
        if self.time == "loop":
            steps = x.unbind(1) if self.has_time else [x] * self.steps
            outs = [self.network(step.clone()) for step in steps]
            return torch.stack([out[0] if isinstance(out, tuple) else out for out in outs])
        return self.network(x.clone())

    def _decoded(self, out: Any, n: int) -> Tensor:
        if self.readout is not None:
            return self.readout(out)
        if isinstance(out, tuple | list) and out and isinstance(out[0], Tensor):
            out = out[0]
        if isinstance(out, Tensor) and out.dim() == 3 and out.shape[1] == n:
            return out.mean(dim=0)
        if isinstance(out, Tensor) and out.dim() == 2 and len(out) == n:
            return out
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ContractError(
            f"adapt: expected logits [{n}, classes], or outputs of every step [T, {n}, classes], possibly "
            f"first in a tuple; got {shape}. Pass readout=..., a function from the output to logits."
        )


class _OwnSurrogate(nn.Module):
    """The firing rule an snnTorch neuron came with."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, u: Tensor) -> Tensor:
        spikes: Tensor = self.function(u).to(u.dtype)
        return spikes


def _adopt_snntorch(neuron: Any) -> None:
    """Let estimators find an snnTorch neuron and replace its firing rule.

    snnTorch fires strictly above the threshold, rules at or above it: they are handed the next smaller
    number, which makes the two agree in every bit. The neuron's own reset keeps its own rule.
    """
    neuron.surrogate_function = _OwnSurrogate(neuron.spike_grad)
    threshold = neuron.threshold
    neuron.v_threshold = float(threshold) if threshold.numel() == 1 else threshold.detach()
    beta = getattr(neuron, "beta", None)
    if isinstance(beta, Tensor) and beta.numel() == 1:
        leak = min(max(float(beta), 0.0), 1.0)
        neuron.tau = math.inf if leak == 1.0 else 1 / (1 - leak)

    def fire(mem: Tensor) -> Tensor:
        u = mem - neuron.threshold
        rule = neuron.surrogate_function
        if not isinstance(rule, _OwnSurrogate):
            u = (u - u.detach()) + torch.nextafter(u.detach(), torch.full_like(u, -math.inf))
        spikes: Tensor = rule(u) * neuron.graded_spikes_factor
        return spikes

    neuron.__dict__["fire"] = fire


def _is_snntorch(module: nn.Module) -> bool:
    names = ("spike_grad", "threshold", "fire", "mem_reset", "graded_spikes_factor")
    return all(hasattr(module, name) for name in names) and not hasattr(module, "surrogate_function")


def adapt(
    network: nn.Module,
    *,
    name: str,
    shape: tuple[int, ...],
    classes: int,
    steps: int = 0,
    time: Time | Literal["auto"] = "inside",
    readout: Callable[[Any], Tensor] | None = None,
    clear: Callable[[nn.Module], Any] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    domain: Domain = Domain.STATIC,
    bounds: tuple[float, float] = (0.0, 1.0),
    stochastic: bool = False,
    task: Task = Task.CLASSIFY,
    score_range: tuple[float, float] | None = None,
    training_neurons: bool = False,
    copy: bool = True,
) -> ModuleVictim:
    """Make a checked victim of a trained network that follows its own conventions: the one door for all.

    State is found, not declared: before a call every submodule's `reset()`, `reset_mem()` or `reset_states()`
    is called; after it, every attribute and buffer is put back as it was. The layers that make spikes are
    `victim.neurons`: SpikingJelly's and snnTorch's by class, everybody else's by their spike function.

    Args:
        network: the network. A copy is put into evaluation mode and frozen, and SpikingJelly's step mode is
            set in it as `time` asks.
        name: name for tables.
        shape: one input in `bounds` without the batch axis; events with time first, [T, C, H, W].
        classes: number of logits.
        steps: time steps T; 0 for a network without time. Of events it is their own T.
        time: "inside": the network takes [N, *shape] and handles time itself. "repeat": an image is given T
            times, as [T, N, *shape] (SpikingJelly's multi-step mode). "loop": the network is called T times,
            with [N, *shape] or with one step of the events (single-step mode). "time-first": events go in as
            [T, N, C, H, W]. "auto": "inside", or what fits SpikingJelly's nodes where there are any.
        readout: output -> logits [N, K], or scores [N, 1]. By default a tuple's first element; outputs
            [T, N, K] are averaged over T.
        clear: called with the network before every call, in place of the resets that were found.
        mean, std: normalisation per channel that the network was trained with; it is applied here,
            so that budgets stay in pixels.
        domain: kind of inputs.
        bounds: legal range of every input element.
        stochastic: whether the network draws numbers when it answers (a Poisson code). Its draws by
            torch.rand, rand_like, randn, randn_like and bernoulli then come from a stream for each sample.
        task, score_range: as in `wrap`.
        training_neurons: leave everything but normalisation and dropout in training mode, for neurons that
            have a gradient only there (as PDSG-SDA does); it is noted in the record.
        copy: take a copy of the network; else the network itself is changed as described.

    Raises:
        ConfigError: parameters that do not fit together.
        ContractError: the network is no pure function, has no gradient, or mixes samples.
    """
    module, spec = adapted(
        private_copy(network) if copy else network,
        name=name,
        shape=shape,
        classes=classes,
        steps=steps,
        time=time,
        readout=readout,
        clear=clear,
        mean=mean,
        std=std,
        domain=domain,
        bounds=bounds,
        stochastic=stochastic,
        training_neurons=training_neurons,
    )
    victim = wrap(module, **spec, task=task, score_range=score_range, copy=False)
    if training_neurons:
        victim.spec = dataclasses.replace(victim.spec, notes=(*victim.spec.notes, IN_TRAINING))
    try:
        check_victim(victim)
    except ContractError as error:
        raise _with_remedy(error, victim) from error
    return victim


def adapted(
    network: nn.Module,
    *,
    name: str,
    shape: tuple[int, ...],
    classes: int,
    steps: int,
    time: str,
    readout: Callable[[Any], Tensor] | None = None,
    clear: Callable[[nn.Module], Any] | None = None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    domain: Domain,
    bounds: tuple[float, float],
    stochastic: bool,
    training_neurons: bool,
) -> tuple[AdaptedNet, dict[str, Any]]:
    """Return a network, changed as `adapt` says, as a module that `wrap` takes, and what to tell it."""
    has_time = domain is not Domain.STATIC
    steps = shape[0] if has_time and not steps else steps
    if time == "auto":
        time = _fitting_time(network, steps=steps, has_time=has_time)
    if time not in get_args(Time) or (time in ("repeat", "loop") and steps < 1):
        raise ConfigError(
            f"adapt '{name}': time must be {', '.join(map(repr, get_args(Time)))} or 'auto', with steps of 1 "
            f"or more for 'repeat' and 'loop'; got '{time}' and {steps}."
        )
    if (time == "repeat") is has_time if time in ("repeat", "time-first") else False:
        raise ConfigError(
            f"adapt '{name}': time='{time}' is for {'images' if time == 'repeat' else 'events'}; this is "
            f"the domain '{domain}'. Choose {'time-first' if has_time else 'repeat'}, loop or inside."
        )
    if len(mean) != len(std) or any(value <= 0 for value in std):
        raise ConfigError(f"adapt '{name}': mean and std need one value per channel, std above 0.")
    if mean and len(mean) not in (1, shape[-3] if len(shape) >= 3 else 1):
        raise ConfigError(
            f"adapt '{name}': mean and std have {len(mean)} values, but inputs {list(shape)} have "
            f"{shape[-3] if len(shape) >= 3 else 1} channels. Give one value per channel."
        )
    for child in network.modules():
        if _is_snntorch(child):
            _adopt_snntorch(child)
    _set_step_mode(network, "s" if time == "loop" else "m" if time in ("repeat", "time-first") else None)
    module = AdaptedNet(
        network,
        steps=steps,
        time=time,  # type: ignore[arg-type]
        readout=readout,
        clear=clear,
        mean=mean,
        std=std,
        has_time=has_time,
        draws_noise=stochastic,
        training_neurons=training_neurons,
    )
    spec = {
        "name": name,
        "shape": shape,
        "classes": classes,
        "steps": steps,
        "domain": domain,
        "bounds": bounds,
        "stochastic": stochastic,
    }
    return module, spec


def outputs(network: nn.Module, *, shape: tuple[int, ...], domain: Domain, **settings: Any) -> int:
    """Return the number of logits that a network answers, by asking it.

    Args:
        network: left as it is but for what a copy would share with it: nothing.
        shape, domain: of the inputs; the settings are those of `adapted`.

    Raises: ContractError: it cannot answer such inputs.
    """
    module, _ = adapted(
        private_copy(network), name="network", shape=shape, classes=2, domain=domain, **settings
    )
    module.eval()
    x = RowStreams.derive(range(2), "outputs").uniform(shape)
    module.noise = RowStreams.derive(range(2), "outputs", "noise")
    try:
        with torch.no_grad():
            return int(module((x > 0.9).to(x) if domain is not Domain.STATIC else x).shape[1])
    except BenchError:
        raise
    except Exception as error:
        hint = " Or it takes its time otherwise: see time and steps." if domain is Domain.STATIC else ""
        raise ContractError(
            f"the network cannot answer inputs {list(shape)}: {type(error).__name__}: {error}. It was made "
            f"for another shape, or wants other arguments.{hint}"
        ) from error


def _fitting_time(network: nn.Module, *, steps: int, has_time: bool) -> Time:
    """Return how a network takes time, as its SpikingJelly modules show; "inside" without any."""
    modes = [_step_modes(child) for child in network.modules() if hasattr(child, "step_mode")]
    if not modes or (not has_time and steps < 2):
        return "inside"
    if all("m" in known for known in modes):
        return "time-first" if has_time else "repeat"
    return "loop" if all("s" in known for known in modes) else "inside"


def _step_modes(module: Any) -> tuple[str, ...]:
    """Return the step modes that a module says it has; one that does not say stays in its own."""
    known = getattr(module, "supported_step_mode", None)
    modes: tuple[str, ...] = tuple(known()) if callable(known) else (module.step_mode,)
    return modes


def _set_step_mode(network: nn.Module, mode: str | None) -> None:
    """Put SpikingJelly's modules into a step mode, those that have it; functions as their library does."""
    if mode is None:
        return
    for child in network.modules():
        if hasattr(child, "step_mode") and mode in _step_modes(child):
            child.step_mode = mode  # type: ignore[assignment]


def _with_remedy(error: ContractError, victim: ModuleVictim) -> ContractError:
    """Return a failed check with what would mend it, where trying shows that it does."""
    if "gradient" in str(error):
        assert isinstance(victim.module, AdaptedNet)
        try:
            victim.module.training_neurons = True
            victim.module.eval()
            check_victim(victim)
            return ContractError(
                f"{error} In training mode its neurons have one: pass training_neurons=True "
                "(--training-neurons), which leaves normalisation and dropout in evaluation mode."
            )
        except ContractError:
            pass
        finally:
            victim.module.training_neurons = False
            victim.module.eval()
    if "two calls" in str(error) and not victim.spec.stochastic:
        return ContractError(
            f"{error} If it draws random numbers (a Poisson code), pass stochastic=True (--stochastic): its "
            "draws then come from streams of ours."
        )
    return error
