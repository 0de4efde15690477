"""What victims, attacks and defenses are, and what they declare about themselves.

Plain data types only: nothing here computes. Plugins import these through `robustspike.bench.api`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol
from typing import runtime_checkable

from robustspike.bench.contract.decode import Count
from robustspike.bench.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from robustspike.bench.numbers.rng import RowStreams


API_VERSION = "1"

BLACK_BOX_STAGE = "black_box/"
"""Prefix of `Oracle.stage` names of the parts of an ensemble that use no gradient of the target."""


class Access(StrEnum):
    """What the attacker sees of the victim, from most to least."""

    WHITE = "white"
    SCORE = "score"
    LABEL = "label"
    TRANSFER = "transfer"


class Domain(StrEnum):
    """What an input is: static pixels in [0,1], binary event frames, or integer event counts."""

    STATIC = "static"
    SPIKES = "spikes"
    EVENTS = "events"


class Task(StrEnum):
    """What a victim answers: class logits [N, K], or one quality score [N, 1].

    CERTIFY is the task of records alone: a certificate on a victim, kept apart from all attacks.
    """

    CLASSIFY = "classify"
    QUALITY = "quality"
    CERTIFY = "certify"


class Goal(StrEnum):
    """What counts as success.

    UNTARGETED and TARGETED are for classifiers; RAISE, LOWER and SHIFT (away from the clean score,
    whichever way is larger) are for quality models.
    """

    UNTARGETED = "untargeted"
    TARGETED = "targeted"
    RAISE = "raise"
    LOWER = "lower"
    SHIFT = "shift"


class Status(StrEnum):
    """The verdict on one sample. ERROR is never ROBUST.

    In a certificate ROBUST is proven, and UNCERTIFIED is neither proven nor refuted.
    """

    ROBUST = "robust"
    BROKEN = "broken"
    WRONG_CLEAN = "wrong_clean"
    ERROR = "error"
    UNCERTIFIED = "uncertified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Passes an attack may spend on one sample."""

    forwards: Count = 10_000
    backwards: Count = 10_000

    def __post_init__(self) -> None:
        if self.forwards < 0 or self.backwards < 0:
            raise ConfigError(
                f"budget: forwards and backwards must be 0 or more, got {self.forwards} and "
                f"{self.backwards}. Give non-negative integers."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreatModel:
    """What the adversary may change, see and spend.

    Args:
        domain: the input domain it applies to.
        geometry: name of a registered geometry ("linf", "l2", "l0", ...).
        eps: the exact budget in input units (a count for "l0", time steps for retiming);
            None means no bound: the attack minimises the distance instead (minimum-norm).
        bounds: the legal range of every input element.
        access: what the attacker sees.
        budget: passes per sample.
        goal: what counts as success.
        levels: where above 0, what is judged is first rounded to this many steps over the bounds (255:
            8-bit images), staying inside the budget; then nothing below half a step can count.
    """

    domain: Domain = Domain.STATIC
    geometry: str = "linf"
    eps: Fraction | None = Fraction(8, 255)
    bounds: tuple[float, float] = (0.0, 1.0)
    access: Access = Access.WHITE
    budget: Budget = field(default_factory=Budget)
    goal: Goal = Goal.UNTARGETED
    levels: Count = 0

    def __post_init__(self) -> None:
        if self.levels < 0:
            raise ConfigError(f"threat model: levels must be 0 (no rounding) or more, got {self.levels}.")
        if self.eps is not None and self.eps < 0:
            raise ConfigError(
                f"threat model: eps must be 0 or more, got {self.eps}. Use 0 for the sanity check."
            )
        if not self.bounds[0] < self.bounds[1]:
            raise ConfigError(f"threat model: bounds must be (low, high), got {self.bounds}.")

    @property
    def is_minimum_norm(self) -> bool:
        """Whether the attack minimises the distance instead of staying below a bound."""
        return self.eps is None

    @property
    def label(self) -> str:
        """Name in tables, e.g. "linf 8/255"; equal for attacks that compete with each other."""
        size = "min" if self.eps is None else str(self.eps)
        goal = "" if self.goal is Goal.UNTARGETED else f" {self.goal}"
        return f"{self.geometry} {size}{goal}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VictimSpec:
    """What a victim declares about itself.

    Args:
        name: registry name, e.g. "lif_cnn.digits".
        shape: one input without the batch axis: (C, H, W), or (T, C, H, W) for event frames.
        classes: number of logits; 1 for quality models.
        steps: simulated time steps T; 0 for a network without time.
        stochastic: whether `logits` draws noise (then it must be given a generator).
        score_range: for quality models, the declared (worst, best) score; worst is the smaller one, and
            `wrap` turns a model round whose smaller scores are better.
        weights: sha256 of the parameters and buffers, filled in at load.
        notes: what a reader must know before trusting a number on it, filled in at load.
        black_box: whether its gradients are refused, because it has none: attacks that need them are n/a.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    domain: Domain = Domain.STATIC
    task: Task = Task.CLASSIFY
    bounds: tuple[float, float] = (0.0, 1.0)
    steps: int = 0
    stochastic: bool = False
    score_range: tuple[float, float] | None = None
    weights: str = ""
    notes: tuple[str, ...] = ()
    black_box: bool = False

    def __post_init__(self) -> None:
        if self.task is Task.QUALITY and not (
            self.score_range and self.score_range[0] < self.score_range[1] and self.classes == 1
        ):
            raise ConfigError(
                f"victim '{self.name}': a quality model has classes=1 and score_range=(worst, best) with "
                f"worst < best, got {self.classes} and {self.score_range}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSpec:
    """What an attack declares about itself.

    Args:
        name: registry name, e.g. "pgd.linf".
        geometries: names of the geometries it respects.
        domains: input domains it works on.
        access: the least access it needs; the cell grants no more than this.
        tasks: kinds of victims it attacks.
        goals: goals it can pursue.
        stochastic: whether it draws random numbers (several seeds then make sense).
        minimum_norm: whether it minimises the distance when eps is None.
        source: paper, equation or algorithm, and each deviation.
        cost: passes per sample in words.
    """

    name: str
    geometries: tuple[str, ...]
    domains: tuple[Domain, ...] = (Domain.STATIC,)
    access: Access = Access.WHITE
    tasks: tuple[Task, ...] = (Task.CLASSIFY,)
    goals: tuple[Goal, ...] = (Goal.UNTARGETED,)
    stochastic: bool = False
    minimum_norm: bool = False
    source: str = ""
    cost: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenseSpec:
    """What a defense declares about itself.

    Args:
        name: registry name, e.g. "sr".
        trains: whether it changes the training; its weights are then separate files.
        stochastic: whether the hardened victim draws noise at test time.
        hides_gradient: whether a part of it has no useful gradient of its own.
        adaptive: what an honest evaluation must include against it; a run without it is marked incomplete.
            "eot" for a stochastic one; "straight_through" for a filter without a gradient of its own;
            "wide_surrogate" for a training rule that lowers, or trains on, gradients under one surrogate,
            which tells nothing about another; or the name of an attack.
        source: paper, equation or algorithm, and each deviation.
    """

    name: str
    trains: bool
    stochastic: bool = False
    hides_gradient: bool = False
    adaptive: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifierSpec:
    """What a certifier declares about itself.

    Args:
        name: registry name, e.g. "intervals".
        norm: the norm of its radii, "linf", "l1" or "l2".
        tasks: kinds of victims that it certifies: the answers of classifiers, or scores.
        source: paper, equation or algorithm, and each deviation.
        cost: passes per sample in words.
    """

    name: str
    norm: str
    tasks: tuple[Task, ...] = (Task.CLASSIFY,)
    source: str = ""
    cost: str = ""


@runtime_checkable
class Victim(Protocol):
    """A pure function from raw inputs to logits (or one quality score).

    It resets its own state on every call, treats rows independently, keeps its gradient in
    evaluation mode, draws noise only from the streams it is handed, changes nothing in place.
    """

    @property
    def spec(self) -> VictimSpec: ...

    def logits(self, x: Tensor, *, noise: RowStreams | None = None) -> Tensor:
        """Answer a batch: x [N, *spec.shape] in spec.bounds -> [N, spec.classes]."""
        ...


def params_of(component: Any) -> Mapping[str, Any]:
    """Return the plain parameters of a frozen dataclass component, in field order."""
    from dataclasses import fields
    from dataclasses import is_dataclass

    if not is_dataclass(component):
        return {}
    return {f.name: getattr(component, f.name) for f in fields(component) if f.init}
