"""The standard verdict on images: one fixed cascade of attacks, each on the samples still standing."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import ClassVar
from typing import Literal

import torch
from torch import Tensor

from robustspike.attacks.gradients.grids import ASSG_SWEEP
from robustspike.attacks.gradients.grids import HART_SWEEP
from robustspike.attacks.gradients.grids import RATE_SWEEP
from robustspike.attacks.gradients.grids import RESET_SWEEP
from robustspike.attacks.gradients.grids import SURROGATE_SWEEP
from robustspike.attacks.pixels.climbing import eot
from robustspike.bench.api import BLACK_BOX_STAGE
from robustspike.bench.api import Attack
from robustspike.bench.api import AttackSpec
from robustspike.bench.api import ConfigError
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import registry

Level = Literal["quick", "full"]

_FIRST = ("native", "atan(alpha=10)", "triangle(gamma=0.3)")

SURROGATES = (*_FIRST, *(e for e in SURROGATE_SWEEP if e not in _FIRST), *RESET_SWEEP)
"""Fixed surrogates; two sharp ones early, because what they break need not be attacked 30 times more."""

ADAPTIVE = ("pdsg", *HART_SWEEP, *RATE_SWEEP, "twin")
"""Estimators that look at the network's activity or at its ANN."""

BOUNDS = (0.76, 0.82, 0.85, 0.88, 0.94)
"""ASSG's bound: twice the values 0.38, 0.41, 0.425, 0.44, 0.47 of the release's parameter."""


@dataclass(frozen=True)
class Member:
    """One attack of the cascade.

    Args:
        name: its name in the records.
        attack: registry call.
    """

    name: str
    attack: str


def _gradient(attack: str, estimator: str, **params: object) -> Member:
    given = "".join(f", {key}={value}" for key, value in params.items())
    short = attack.removesuffix(".linf") + "".join(f"-{value}" for value in params.values())
    return Member(f"{short}/{estimator}", f"{attack}(estimator='{estimator}'{given})")


def _black(attack: str) -> Member:
    return Member(BLACK_BOX_STAGE + attack.partition("(")[0].removesuffix(".linf"), attack)


_SHARP = "assg(bound=0.94)"

FULL = (
    _gradient("fgsm.linf", "native"),
    *(_gradient("pgd.linf", estimator, steps=20) for estimator in SURROGATES),
    *(_gradient("pgd.linf", estimator, steps=20) for estimator in ADAPTIVE),
    *(_gradient("sapgd.linf", f"assg(bound={bound})", steps=100) for bound in BOUNDS),
    *(_gradient("sapgd.linf", estimator, steps=100) for estimator in ASSG_SWEEP[1:]),
    *(_gradient("apgd.ce", e, steps=100) for e in (_SHARP, "triangle(gamma=0.3)", "native", "pdsg")),
    *(_gradient("apgd.dlr", e, steps=100) for e in (_SHARP, "native", "pdsg")),
    _gradient("apgd.targeted", _SHARP),
    _gradient("sapgd.linf", _SHARP, steps=1000),
    _black("noise"),
    _black("transfer.linf"),
    _black("square.linf(queries=5000)"),
)

QUICK = (
    *(_gradient("pgd.linf", e, steps=10) for e in _FIRST),
    *(_gradient("pgd.linf", e, steps=10) for e in ("pdsg", "bptr", "hart(gamma=0.25)", "twin")),
    _gradient("sapgd.linf", _SHARP, steps=50),
    _gradient("apgd.ce", _SHARP, steps=50),
    _black("transfer.linf"),
    _black("square.linf(queries=50)"),
)

SMOOTH = {
    "quick": (
        _gradient("pgd.linf", "native", steps=10),
        _gradient("apgd.ce", "native", steps=50),
        _gradient("apgd.dlr", "native", steps=50),
        *QUICK[-2:],
    ),
    "full": (
        _gradient("fgsm.linf", "native"),
        _gradient("pgd.linf", "native", steps=20),
        _gradient("apgd.ce", "native", steps=100),
        _gradient("apgd.dlr", "native", steps=100),
        _gradient("apgd.targeted", "native"),
        *FULL[-3:],
    ),
}
"""For victims without spiking neurons, which have one gradient only."""

NOISY = (
    _gradient("pgd.linf", "native", steps=10),
    *(_gradient(f"apgd.{loss}", e, steps=50) for e in ("native", "pdsg", _SHARP) for loss in ("ce", "dlr")),
    *(_gradient("sapgd.linf", f"assg(bound={bound})", steps=50) for bound in (0.85, 0.94)),
    _black("noise"),
)
"""For stochastic victims: every gradient is an average over draws, and no sample leaves at a hit."""


@dataclass(frozen=True)
class AutoAttackSnn:
    """Run a fixed list of attacks; the verdict is the worst case per sample.

    Members run one after the other, each only on the samples that all earlier ones left standing (a
    sample leaves when the oracle has seen a legal adversarial example, so leaving changes no verdict).
    Grids are fixed and nothing is tuned: a sample's verdict is its worst case over them. Members whose
    estimator does not apply to the victim are passed over. Passes and first hits of every member are
    booked under its name.

    Args:
        level: "full", or "quick" for a first look; stochastic victims have a list of their own.
        only: shell-style pattern of member names, for ablations; a member's random numbers do not
            depend on which others run.

    Cost: see the members; the full list spends at most 9700 forwards and 4600 backwards on a sample.
    """

    level: Level = "full"
    only: str = "*"
    spec: ClassVar[AttackSpec] = AttackSpec(
        name="autoattack.snn",
        geometries=("linf",),
        stochastic=True,
        source=(
            "After AutoAttack (Croce & Hein 2020, arXiv:2003.01690) with the gradient ensemble of Ozdenizci "
            "& Legenstein 2024, arXiv:2311.09266, and ASSG with SA-PGD (arXiv:2512.22522). Differs: no FAB; "
            "PDSG, RGA, BPTR, HART, CBA, twin and transfer join the surrogates; samples leave when broken."
        ),
        cost="up to 9700 forwards and 4600 backwards for a sample that stands",
    )

    def __post_init__(self) -> None:
        if self.level not in ("quick", "full"):
            raise ConfigError(f"{self.spec.name}: level must be 'quick' or 'full', got '{self.level}'.")
        if not any(
            fnmatch.fnmatchcase(m.name, self.only) for m in (*FULL, *QUICK, *NOISY, *SMOOTH[self.level])
        ):
            raise ConfigError(f"{self.spec.name}: no member is named like '{self.only}'.")

    def uses(self) -> dict[str, tuple[str, ...]]:
        lists = (FULL, QUICK, NOISY, SMOOTH["full"], SMOOTH["quick"])
        return {"attacks": tuple(sorted({member.attack for members in lists for member in members}))}

    def members(self, oracle: Oracle) -> list[tuple[Member, Attack]]:
        """Return the members that apply to the victim, in the order in which they run."""
        spiking = QUICK if self.level == "quick" else FULL
        listed = spiking if oracle.refusal(_SHARP) is None else SMOOTH[self.level]
        if oracle.spec.stochastic:
            listed = NOISY
        found = []
        for member in listed:
            if not fnmatch.fnmatchcase(member.name, self.only):
                continue
            attack: Attack = registry("attacks").get(member.attack)
            estimator, fits = getattr(attack, "estimator", None), getattr(attack, "fits", None)
            if estimator is not None and oracle.refusal(estimator) is not None:
                continue
            if callable(fits) and fits(oracle.spec) is not None:
                continue
            found.append((member, attack))
        return found

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        best = x0.clone()
        top = torch.full((len(x0),), -torch.inf, dtype=x0.dtype, device=x0.device)
        draws = eot(oracle, 0)
        for member, attack in self.members(oracle):
            if not len(oracle.active()):
                break
            oracle.stage(member.name)
            found = attack.run(oracle, x0.clone(), y.clone(), rng=rng.fork("member", member.name))
            rows = oracle.active(forwards=draws)
            if oracle.spec.stochastic and len(rows):  # compare candidates on draws that chose none of them
                value, _ = oracle.loss(found[rows], rows, "margin", draws=draws)
                better = rows[value > top[rows]]
                best[better] = found[better]
                top[rows] = torch.maximum(top[rows], value)
        if oracle.spec.stochastic:
            return best
        return oracle.best()[0]
