"""Everything registered passes the contract that plugin authors inherit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustspike.bench.api import Task
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.testing import AttackContract
from robustspike.bench.testing import CertifierContract
from robustspike.bench.testing import DatasetContract
from robustspike.bench.testing import DefenseContract
from robustspike.bench.testing import EstimatorContract
from robustspike.bench.testing import GeometryContract
from robustspike.bench.testing import QualityAttackContract
from robustspike.bench.testing import RecipeContract
from robustspike.bench.testing import ScoreCertifierContract
from robustspike.bench.testing import VictimContract
from robustspike.bench.testing.quality_checks import shortened
from robustspike.bench.training.weights import find_weights


def with_weights() -> list[str]:
    names = registry("victims").names()
    return [n for n in names if find_weights(registry("victims").get(n), "none", 0, None) is not None]


SHORTER: dict[str, dict[str, Any]] = {
    "autoattack.snn": {"level": "quick"},
    "cw.l2": {"steps": 20, "searches": 3},
    "rays.linf": {"queries": 100},
    "square.linf": {"queries": 100},
    "vertex.linf": {"queries": 100},
    "quality.facpa": {"images": 16, "epochs": 1, "batch": 8, "width": 4, "levels": 2, "lr": 0.05},
    "quality.nes": {"samples": 6},
    "quality.perceptual": {"steps": 6, "step": 1e-2, "lambdas": (1000.0,), "least_ssim": 0.0},
    "quality.uap_cumulative": {"images": 16, "batch": 8, "lr": 10.0},
    "quality.sega": {"sources": ("cnn_iqa.photopatch",), "steps": 2},
    "quality.transfer": {"sources": ("cnn_iqa.photopatch",), "steps": 2},
    "quality.uap": {"batch": 8},
    "quality.uap_generative": {"images": 16, "epochs": 1, "batch": 8, "width": 4, "levels": 2, "lr": 0.05},
}
"""Attacks whose defaults take long: the contract is checked on shorter runs."""


def attacks_on(task: Task) -> list[str]:
    return [n for n in registry("attacks").names() if task in registry("attacks").get(n).spec.tasks]


def recorded(folder: Path) -> Path:
    """Write integrated frames of 20 random recordings of two classes, in both parts."""
    draws = np.random.Generator(np.random.PCG64(0))
    for part in ("train", "test"):
        for label in ("left", "right"):
            (folder / part / label).mkdir(parents=True)
            for number in range(5):
                np.savez(folder / part / label / f"{number}.npz", frames=draws.integers(0, 3, (10, 2, 8, 8)))
    return folder


class TestAttacks(AttackContract):
    @pytest.fixture(params=attacks_on(Task.CLASSIFY))
    def attack(self, request: pytest.FixtureRequest) -> Any:
        return registry("attacks").get(request.param, **SHORTER.get(request.param, {}))


TRAINED = ("quality.facpa", "quality.uap_cumulative", "quality.uap_generative")
"""Attacks that train something for every check: by themselves as long as all the others."""


class TestQualityAttacks(QualityAttackContract):
    @pytest.fixture(
        params=[
            pytest.param(name, marks=pytest.mark.slow) if name in TRAINED else name
            for name in attacks_on(Task.QUALITY)
        ]
    )
    def attack(self, request: pytest.FixtureRequest) -> Any:
        return shortened(registry("attacks").get(request.param, **SHORTER.get(request.param, {})))[0]


def certifiers_of(task: Task) -> list[str]:
    return [n for n in registry("certifiers").names() if task in registry("certifiers").get(n).spec.tasks]


class TestScoreCertifiers(ScoreCertifierContract):
    @pytest.fixture(params=certifiers_of(Task.QUALITY))
    def certifier(self, request: pytest.FixtureRequest) -> Any:
        return registry("certifiers").get(request.param, draws=100)


class TestCertifiers(CertifierContract):
    @pytest.fixture(params=certifiers_of(Task.CLASSIFY))
    def certifier(self, request: pytest.FixtureRequest) -> Any:
        return registry("certifiers").get(request.param)


class TestDatasets(DatasetContract):
    @pytest.fixture(params=registry("datasets").names())
    def dataset(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        params = {"folder": str(recorded(tmp_path)), "side": 8} if request.param == "recordings" else {}
        return registry("datasets").get(request.param, **params)


def recipes() -> Iterator[Any]:
    """Yield the names of recipes; an architecture without weights is slow on all data sets but its first."""
    shipped, seen = set(with_weights()), set[str]()
    for name in registry("victims").names():
        again = name.partition(".")[0] in seen and name not in shipped
        seen.add(name.partition(".")[0])
        yield pytest.param(name, marks=pytest.mark.slow) if again else name


class TestRecipes(RecipeContract):
    @pytest.fixture(params=recipes())
    def recipe(self, request: pytest.FixtureRequest) -> Any:
        return registry("victims").get(request.param)


class TestDefenses(DefenseContract):
    @pytest.fixture(params=registry("defenses").names())
    def defense(self, request: pytest.FixtureRequest) -> Any:
        return registry("defenses").get(request.param)


class TestEstimators(EstimatorContract):
    @pytest.fixture(params=registry("estimators").names())
    def estimator(self, request: pytest.FixtureRequest) -> Any:
        return registry("estimators").get(request.param)


class TestGeometries(GeometryContract):
    @pytest.fixture(params=registry("geometries").names())
    def geometry(self, request: pytest.FixtureRequest) -> Any:
        return registry("geometries").get(request.param)


@pytest.fixture(scope="module", params=with_weights())
def victim(request: pytest.FixtureRequest) -> Any:
    """A victim for all its checks: what its neurons are is found once."""
    return load_victim(request.param)


class TestVictims(VictimContract):
    pass
