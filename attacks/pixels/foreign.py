"""Attacks of other libraries (torchattacks, foolbox, ART), run behind the oracle like any other."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import random
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.pixels.climbing import settle
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import BudgetExceeded
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import parse_call

Call = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""One run of a foreign attack: (model, x [n, ...], y [n], eps) -> x_adv."""


class _Solved(Exception):
    """Ends a foreign attack: the oracle knows an adversarial example, or nothing is left to spend."""


class _Query(torch.autograd.Function):
    """Logits from the oracle; their gradient is one more metered query, whatever loss follows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, oracle: Oracle, rows: Tensor, estimator: str) -> Tensor:
        ctx.oracle, ctx.rows, ctx.estimator = oracle, rows, estimator
        ctx.save_for_backward(x)
        return oracle.logits(x, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        weight = grads[0]
        out = ctx.oracle.loss_and_grad(
            x, ctx.rows, lambda logits, y: (logits * weight).sum(dim=1), estimator=ctx.estimator
        )
        return out.grad, None, None, None


class OracleModel(nn.Module):
    """What a foreign attack takes for the model: logits of one sample's candidates, from the oracle.

    Args:
        oracle: the oracle.
        row: the sample; every input of a batch is a candidate for it.
        estimator: registry name of the gradient estimator behind `backward()`.
    """

    def __init__(self, oracle: Oracle, row: int, estimator: str) -> None:
        super().__init__()
        self.oracle, self.row, self.estimator = oracle, row, estimator
        self.place = nn.Parameter(torch.zeros(1))  # libraries ask a parameter for the device

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.full((len(x),), self.row, dtype=torch.int64, device=x.device)
        if self.row not in self.oracle.active(forwards=len(x)):
            raise _Solved
        out: Tensor = _Query.apply(x, self.oracle, rows, self.estimator)  # type: ignore[no-untyped-call]
        return out


class _Unmapped(Exception):
    """Ends a run in batches: the model was asked about inputs of which it is not known whose they are."""


class _BatchQuery(torch.autograd.Function):
    """Logits of a whole batch, asked for the rows that stand and can pay; the others stay as they were."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: BatchModel) -> Tensor:
        ctx.model = model
        ctx.save_for_backward(x)
        at = model.places(model.oracle.active())
        if not len(at):
            raise _Solved
        model.last = model.last.clone()
        model.last[at] = model.oracle.logits(x[at], model.rows[at]).to(model.last)
        return model.last.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        model, weight = ctx.model, grads[0]
        at = model.places(model.oracle.differentiable(model.estimator))
        if not len(at):
            raise _Solved
        out = torch.zeros_like(x)
        own = weight[at]
        out[at] = model.oracle.loss_and_grad(
            x[at],
            model.rows[at],
            lambda logits, y: (logits * own).sum(dim=1),
            estimator=model.estimator,
        ).grad
        return out, None


class BatchModel(nn.Module):
    """What a foreign attack takes for the model of a whole batch, one input for each sample.

    A sample that is broken or out of budget is asked about no more: its logits stay as they were, its
    gradient is zero, and the others go on.

    Args:
        oracle: the oracle.
        rows: the samples, in the batch's order.
        estimator: registry name of the gradient estimator behind `backward()`.
    """

    def __init__(self, oracle: Oracle, rows: Tensor, estimator: str) -> None:
        super().__init__()
        self.oracle, self.rows, self.estimator = oracle, rows, estimator
        self.place = nn.Parameter(torch.zeros(1))  # libraries ask a parameter for the device
        self.last = torch.zeros(len(rows), oracle.spec.classes, device=rows.device)

    def places(self, standing: Tensor) -> Tensor:
        """Return where in the batch the standing rows are."""
        return torch.isin(self.rows, standing).nonzero().squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != len(self.rows):
            raise _Unmapped
        out: Tensor = _BatchQuery.apply(x, self)  # type: ignore[no-untyped-call]
        return out


@contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators, which foreign code draws from, and put them back afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def in_batches(call: Call, estimator: str, oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Tensor:
    """Run a foreign attack on all samples at once; where it takes the batch apart, on every sample alone."""
    rows = oracle.active()
    if not len(rows):
        return settle(oracle, x0.clone())
    seed = int(rng.fork("batch", rows=rows[:1]).integers(2**31, (1,)))
    model = BatchModel(oracle, rows, estimator).to(x0.device).eval()
    x = x0.clone()
    try:
        with _global_generators(seed), torch.enable_grad():
            found = call(model, x0[rows].clone(), y[rows].clone(), oracle.radius)
        x[rows] = oracle.project(found.detach().to(x0), rows)
    except (_Solved, BudgetExceeded):
        pass
    except _Unmapped:
        return sample_by_sample(call, estimator, oracle, x0, y, rng)
    rows = oracle.active()
    if len(rows):
        oracle.labels(x[rows], rows)
    return settle(oracle, x)


def sample_by_sample(
    call: Call, estimator: str, oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams
) -> Tensor:
    """Run a foreign attack on every sample alone, so that each query belongs to a known sample."""
    x = x0.clone()
    for row in oracle.active().tolist():
        at = torch.tensor([row], device=x0.device)
        seed = int(rng.integers(2**31, (1,), rows=at))
        model = OracleModel(oracle, row, estimator).to(x0.device).eval()
        try:
            with _global_generators(seed), torch.enable_grad():
                found = call(model, x0[at].clone(), y[at].clone(), oracle.radius)
        except (_Solved, BudgetExceeded):
            continue
        x[at] = oracle.project(found.detach().to(x0), at)
    rows = oracle.active()
    if len(rows):
        oracle.labels(x[rows], rows)
    return settle(oracle, x)


@dataclass(frozen=True)
class Adapted:
    """Any attack of one's own library, given as a function (model, x [1, ...], y [1], eps) -> x_adv.

    Args:
        call: the attack; the model it gets answers logits and can be differentiated.
        estimator: registry name of the gradient estimator behind the model's gradients.

    Cost: what the attack asks; a gradient costs 2 forwards and 1 backward.
    """

    call: Call
    estimator: str = "native"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="adapted",
        geometries=("linf", "l2"),
        stochastic=True,
        source="The adapted attack's own. Differs: one sample at a time, which stops at its first hit.",
        cost="the adapted attack's own",
    )

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        return sample_by_sample(self.call, self.estimator, oracle, x0, y, rng)


def _torchattacks(name: str, params: dict[str, Any], spec: VictimSpec) -> Call:
    del spec  # the library takes the range [0, 1] for granted
    kind = getattr(importlib.import_module("torchattacks"), name)

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        out: Tensor = kind(model, **_with_eps(kind, eps, params))(x, y)
        return out

    return call


def _foolbox(name: str, params: dict[str, Any], spec: VictimSpec) -> Call:
    library = importlib.import_module("foolbox")
    attack = getattr(library.attacks, name)(**params)

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        wrapped = library.PyTorchModel(model, bounds=spec.bounds, device=x.device)
        out: Tensor = attack(wrapped, x, y, epsilons=eps)[1]
        return out

    return call


def _art(name: str, params: dict[str, Any], spec: VictimSpec) -> Call:
    kind = getattr(importlib.import_module("art.attacks.evasion"), name)
    estimators = importlib.import_module("art.estimators.classification")

    def call(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        classifier = estimators.PyTorchClassifier(
            model=model,
            loss=nn.CrossEntropyLoss(),
            input_shape=spec.shape,
            nb_classes=spec.classes,
            clip_values=spec.bounds,
            device_type="cpu" if x.device.type == "cpu" else "gpu",
        )
        settings = _with_eps(kind, eps, params)
        if "batch_size" in getattr(kind, "attack_params", ()):
            settings["batch_size"] = len(x)
        found = kind(classifier, **settings).generate(x.cpu().numpy(), y=y.cpu().numpy())
        return torch.from_numpy(found)

    return call


_LIBRARIES = {"torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art}
_PACKAGES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}


def _with_eps(kind: Any, eps: float, params: dict[str, Any]) -> dict[str, Any]:
    takes = "eps" in inspect.signature(kind).parameters
    return {"eps": eps, **params} if takes else dict(params)


@dataclass(frozen=True)
class Foreign:
    """An attack of an installed library, by name; eps comes from the threat model.

    Args:
        library: "torchattacks", "foolbox" or "art".
        attack: the class there, with its parameters as a call: "PGD(steps=10, alpha=0.01)".
        estimator: registry name of the gradient estimator behind the model's gradients.
        batched: attack all samples of a shard together; a sample leaves at its first hit or when it cannot
            pay. Where the library takes the batch apart, and with false, every sample is attacked alone.
            Random numbers are the library's: one seed a batch, or one a sample.

    Cost: what the attack asks; a gradient costs 2 forwards and 1 backward.
    """

    library: str = "torchattacks"
    attack: str = "PGD"
    estimator: str = "native"
    batched: bool = True
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="foreign",
        geometries=("linf", "l2"),
        stochastic=True,
        source="The library's own. Differs: a sample leaves the batch at its first hit.",
        cost="the library's attack's own",
    )

    def __post_init__(self) -> None:
        if self.library not in _LIBRARIES:
            raise ConfigError(
                f"{self.spec.name}: library must be one of {', '.join(_LIBRARIES)}, got '{self.library}'. "
                "Adapt others with robustspike.attacks.foreign.Adapted."
            )

    def fits(self, spec: VictimSpec) -> str | None:
        """Refuse every victim where the library is not installed."""
        del spec
        if importlib.util.find_spec(self.library) is None:
            return f"{_PACKAGES[self.library]} is not installed; pip install {_PACKAGES[self.library]}"
        return None

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        reason = self.fits(oracle.spec)
        if reason:
            raise ConfigError(f"{self.spec.name}: {reason}")
        name, params = parse_call(self.attack)
        try:
            call = _LIBRARIES[self.library](name, dict(params), oracle.spec)
        except AttributeError as error:
            raise ConfigError(f"{self.spec.name}: {self.library} has no attack '{name}'.") from error
        run = in_batches if self.batched else sample_by_sample
        return run(call, self.estimator, oracle, x0, y, rng)
