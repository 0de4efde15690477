"""One training loop for every victim and every training defense.

Deterministic by seed on one platform: the order of epoch e depends on (seed, e) alone, so a run that
was killed and resumed ends with the same weights as one that was not. The checkpoint kept is the one
with the best validation accuracy (ties: the lower validation loss), never chosen on test data.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import operator
import pickle
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any
from typing import Literal

import torch
from torch import Tensor
from torch import nn

from robustspike.bench.data.base import Split
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import write_atomic
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import generator
from robustspike.bench.numbers.rng import stable_hash
from robustspike.bench.snn.fast_lif import in_place
from robustspike.bench.snn.fast_lif import plain_nodes
from robustspike.bench.snn.neurons import reset
from robustspike.bench.snn.neurons import supplied_with


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How to optimise.

    Args:
        epochs: passes over the training split, or over `share` of it.
        batch: samples per step.
        lr: peak learning rate.
        optimiser: "adamw" or "sgd" (momentum 0.9).
        weight_decay: as the optimiser defines it.
        policy: "onecycle" (20 % warm-up), "cosine" (to zero) or "constant".
        patience: stop after this many epochs without a better checkpoint; 0 never stops early.
        keep: which checkpoint stays: the "best" by validation score, or the "last" (where a choice by
            clean score would undo the defense).
        flips: whether training images are mirrored left to right, each with probability 1/2.
        shifts: largest shift of a training image up, down, left or right, in pixels; zeros come in.
        share: part of the training split that an epoch sees, drawn afresh for each; checkpoint, validation
            and the choice of the best come after every epoch, so that a long training can be cut fine.
        smoothing: share of each label that is spread evenly over all classes.
        bf16: whether convolutions and linear layers compute in bfloat16 (automatic mixed precision; worth it
            on an accelerator). Weights, validation and what is shipped stay float32.
    """

    epochs: int = 20
    batch: int = 64
    lr: float = 4e-3
    optimiser: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    policy: Literal["onecycle", "cosine", "constant"] = "onecycle"
    patience: int = 0
    keep: Literal["best", "last"] = "best"
    flips: bool = False
    shifts: int = 0
    share: float = 1.0
    smoothing: float = 0.0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1 or self.patience < 0 or not 0 < self.lr < math.inf:
            raise ConfigError(
                "schedule: epochs and patience must be 0 or more, batch at least 1, lr above 0; got "
                f"{self.epochs}, {self.patience}, {self.batch} and {self.lr}."
            )
        if self.shifts < 0 or not 0 <= self.smoothing < 1 or not 0 < self.share <= 1:
            raise ConfigError(
                "schedule: shifts must be 0 or more, smoothing in [0, 1) and share in (0, 1], got "
                f"{self.shifts}, {self.smoothing} and {self.share}."
            )

    def vary(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Return a training batch [N, ..., H, W] mirrored and shifted at random, as the schedule says."""
        if self.flips:
            mirrored = torch.rand(len(x), generator=rng) < 0.5
            x = torch.where(mirrored.view(-1, *[1] * (x.dim() - 1)).to(x.device), x.flip(-1), x)
        if self.shifts:
            height, width = x.shape[-2:]
            corner = torch.randint(2 * self.shifts + 1, (2, len(x), 1), generator=rng).to(x.device)
            rows = corner[0] + torch.arange(height, device=x.device)
            columns = corner[1] + torch.arange(width, device=x.device)
            padded = nn.functional.pad(x, [self.shifts] * 4).movedim((-2, -1), (1, 2))
            sample = torch.arange(len(x), device=x.device).view(-1, 1, 1)
            x = padded[sample, rows[:, :, None], columns[:, None, :]].movedim((1, 2), (-2, -1)).contiguous()
        return x


@dataclass
class Step:
    """What a training rule sees of one step.

    Args:
        module: the network being trained, in training mode.
        x, y: the batch.
        rng: random numbers of this step (derived from the seed, the epoch and the step).
        epoch: epochs finished before this one.
        loss_of: the recipe's own loss: (module, x, y) -> (scalar loss, logits [N, K]).
        epochs: epochs of the whole run, for rules that ramp a weight; 0 where unknown.
        second_order: whether the rule differentiates a gradient. If not, plain spiking layers run in place:
            the same spikes and gradients, about twice as fast.
        bf16: whether passes run under bfloat16 autocast.

    Attributes:
        forwards, backwards: sample passes made so far; a forward in training mode counts one backward
            (the optimiser's), an input gradient one more.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    rng: torch.Generator
    epoch: int
    loss_of: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
    epochs: int = 0
    second_order: bool = False
    bf16: bool = False
    forwards: int = field(default=0, init=False)
    backwards: int = field(default=0, init=False)

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the recipe's loss and the logits on a batch, from cleared state."""
        with self._fresh(x):
            return self.loss_of(self.module, x, y)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits on a batch, from cleared state."""
        with self._fresh(x):
            out: Tensor = self.module(x)
        return out

    def input_gradient(self, values: Tensor, x: Tensor, *, keep_graph: bool = False) -> Tensor:
        """Return the gradient of the sum of values with respect to the inputs x, detached."""
        self.backwards += len(x)
        (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=keep_graph)
        return gradient

    @contextmanager
    def _fresh(self, x: Tensor) -> Iterator[None]:
        """Clear the state before a pass, and hand new noise to modules that draw some."""
        reset(self.module)
        self.forwards += len(x)
        self.backwards += len(x) if self.module.training else 0
        salt = int(torch.randint(2**62, (), generator=self.rng))
        streams = RowStreams.derive(range(len(x)), "training", salt, device=x.device)
        with (
            supplied_with(self.module, streams),
            in_place([] if self.second_order else plain_nodes(self.module)),
            torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            yield


Terms = Mapping[str, Tensor]
"""Named loss terms (already weighted); their sum is minimised."""


@dataclass(frozen=True)
class Progress:
    """What a training run reports after every epoch."""

    epoch: int
    epochs: int
    terms: Mapping[str, float]
    validation: float


@dataclass
class Report:
    """How a training run went.

    Args:
        best_epoch: epoch (from 1) whose checkpoint was kept; 0 if there was none to run.
        validation: accuracy of that checkpoint on the validation split.
        history: mean loss terms and validation accuracy of every epoch.
        forwards, backwards: sample passes spent on training (validation not counted).
    """

    best_epoch: int = 0
    validation: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    forwards: int = 0
    backwards: int = 0


def accuracy(module: nn.Module, split: Split, *, batch: int = 250) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a module in evaluation mode on a split."""
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    right, total = 0, 0.0
    with torch.no_grad():
        for start in range(0, len(split), batch):
            part = split[start : start + batch]
            reset(module)
            streams = RowStreams.derive(part.ids, "validation", device=device)
            with supplied_with(module, streams), in_place(plain_nodes(module)):
                logits = module(part.x.to(device)).float()
            y = part.y.to(device)
            right += int((logits.argmax(dim=1) == y).sum())
            total += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
    reset(module)
    module.train(was_training)
    return right / len(split), total / len(split)


def fit(
    module: nn.Module,
    train: Split,
    validation: Split,
    *,
    schedule: Schedule,
    terms: Callable[[Step], Terms],
    loss_of: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]],
    seed: int,
    checkpoint: Path | None = None,
    after_epoch: Callable[[nn.Module, int, Split], None] | None = None,
    before_step: Callable[[Step], None] | None = None,
    after_step: Callable[[Step], None] | None = None,
    eligible: Callable[[int, int], bool] | None = None,
    second_order: bool = False,
    identity: object = "",
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    score: Callable[[nn.Module, Split], tuple[float, float]] = accuracy,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Train a module in place and leave it with its best checkpoint, in evaluation mode.

    Args:
        module: network to train; its parameters that require a gradient are optimised.
        train, validation: data; validation chooses the checkpoint.
        schedule: how to optimise.
        terms: the training rule.
        loss_of: the recipe's own loss, handed to the rule.
        seed: root seed of order and noise.
        checkpoint: file that keeps the state after every epoch; a run that finds it goes on there. The
            caller removes it once it has kept what was trained. None: not resumable.
        after_epoch: hook (module, epoch from 0, validation split), e.g. to update statistics.
        before_step: hook (step) between the backward pass and the optimiser, e.g. to change gradients.
        after_step: hook (step) after every step of the optimiser, e.g. to project weights.
        eligible: whether the checkpoint after (epoch from 0, of epochs) may be chosen; by default all.
        second_order: whether the rule differentiates a gradient.
        identity: what else, beside data, schedule and seed, makes this run different from another one
            (the parameters of recipe and defense); a checkpoint of another run is refused.
        augment: changes the inputs of a batch before the training rule sees them.
        score: validation score and loss of a module.
        progress: called after every epoch, once its checkpoint is written.

    Raises:
        ArtefactError: the checkpoint belongs to another run or cannot be read.
        ConfigError: a loss term is not finite, a split is empty, or no checkpoint could ever be chosen.
    """
    if not len(train) or not len(validation):
        raise ConfigError(
            f"training: {len(train)} training and {len(validation)} validation samples; both must have some."
        )
    may_keep = [eligible is None or eligible(epoch, schedule.epochs) for epoch in range(schedule.epochs)]
    if may_keep and not any(may_keep):
        raise ConfigError(
            f"training: none of the {schedule.epochs} epochs gives a checkpoint that the defense accepts. "
            "Train longer, or let its first phase end earlier."
        )
    device = next(module.parameters()).device
    parameters = [p for p in module.parameters() if p.requires_grad]
    seen = math.ceil(schedule.share * len(train))
    steps = math.ceil(seen / schedule.batch)
    optimiser = _optimiser(parameters, schedule)
    scheduler = _scheduler(optimiser, schedule, steps)
    shapes = [p.shape for p in parameters]
    key = stable_hash(dataclasses.asdict(schedule), train.digest, seed, shapes, identity)
    report, best, start = Report(), _snapshot(module), 0
    best_value, best_loss = -math.inf, math.inf  # a score may be negative: a correlation, a mean margin
    if checkpoint is not None and checkpoint.exists():
        state = _read_checkpoint(checkpoint, key)
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        scheduler.load_state_dict(state["scheduler"])
        report, best = Report(**state["report"]), state["best"]
        best_loss, start = state["best_loss"], state["epoch"]
        best_value = report.validation if report.best_epoch else -math.inf
    for epoch in range(start, schedule.epochs):
        if schedule.patience and report.best_epoch and epoch - report.best_epoch >= schedule.patience:
            break
        module.train()
        order = torch.randperm(len(train), generator=generator("order", seed, epoch))[:seen]
        sums: dict[str, float] = {}
        for index in range(steps):
            picked = order[index * schedule.batch : (index + 1) * schedule.batch]
            x, y = train.x[picked].to(device), train.y[picked].to(device)
            if augment is not None:
                x = augment(x, generator("augment", seed, epoch, index))
            rng = generator("step", seed, epoch, index)
            step = Step(module, x, y, rng, epoch, loss_of, schedule.epochs, second_order, schedule.bf16)
            named = terms(step)
            for name, term in named.items():
                sums[name] = sums.get(name, 0.0) + _finite(name, term, epoch, index)
            optimiser.zero_grad()
            functools.reduce(operator.add, named.values()).backward()
            if before_step is not None:
                before_step(step)
            optimiser.step()
            if after_step is not None:
                after_step(step)
            scheduler.step()
            reset(module)
            report.forwards += step.forwards
            report.backwards += step.backwards
        if after_epoch is not None:
            after_epoch(module, epoch, validation)
        value, loss = score(module, validation)
        rank = tuple(-math.inf if math.isnan(part) else part for part in (value, -loss))
        first = not report.best_epoch  # some epoch is kept, however bad all of them are
        if may_keep[epoch] and (first or rank > (best_value, -best_loss) or schedule.keep == "last"):
            report.best_epoch, report.validation = epoch + 1, value
            best, best_value, best_loss = _snapshot(module), rank[0], -rank[1]
        means = {name: total / steps for name, total in sums.items()}
        report.history.append({**means, "validation": value})
        if checkpoint is not None:
            _write_checkpoint(
                checkpoint,
                {
                    "identity": key,
                    "epoch": epoch + 1,
                    "module": module.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "report": dataclasses.asdict(report),
                    "best": best,
                    "best_loss": best_loss,
                },
            )
        if progress is not None:
            progress(Progress(epoch + 1, schedule.epochs, means, value))
    module.load_state_dict(best)
    module.eval()
    if not schedule.epochs:  # what it starts from is what is kept
        report.validation, _ = score(module, validation)
    return report


def initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Draw the initial weights of every convolution and linear layer from a generator.

    PyTorch's own default (uniform, bound 1/sqrt(fan-in)), without its global random state. Modules
    with a method `draw_parameters(rng)` draw their own.
    """
    for child in module.modules():
        own = getattr(child, "draw_parameters", None)
        if callable(own):
            own(rng)
        elif isinstance(child, nn.Conv1d | nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(child.weight[0].numel())
            with torch.no_grad():
                child.weight.uniform_(-bound, bound, generator=rng)
                if child.bias is not None:
                    child.bias.uniform_(-bound, bound, generator=rng)


def _finite(name: str, value: Tensor, epoch: int, index: int) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise ConfigError(
            f"training: loss term '{name}' is {number} in epoch {epoch + 1}, step {index + 1}. "
            "Lower the learning rate or the weight of that term."
        )
    return number


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _optimiser(parameters: list[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(parameters, lr=schedule.lr, momentum=0.9, weight_decay=schedule.weight_decay)


def _scheduler(optimiser: torch.optim.Optimizer, schedule: Schedule, steps: int) -> Any:
    total = max(1, schedule.epochs * steps)
    if schedule.policy == "onecycle":
        warm = 0.2 if total != 5 else 0.25  # a warm-up of exactly one step divides by its length, zero
        return torch.optim.lr_scheduler.OneCycleLR(optimiser, schedule.lr, total_steps=total, pct_start=warm)
    if schedule.policy == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=total)
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    content = io.BytesIO()
    torch.save(state, content)
    write_atomic(path, content.getvalue())


def _read_checkpoint(path: Path, identity: int) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load has no error of its own for arbitrary bytes
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"'{damaged}' is damaged")
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ArtefactError(f"{path}: not a readable training checkpoint ({error}). Delete it.") from error
    if not isinstance(state, dict) or state.get("identity") != identity:
        raise ArtefactError(
            f"{path}: checkpoint of another training run (its recipe, data or seed differ). "
            "Delete it, or train into another folder."
        )
    return state
