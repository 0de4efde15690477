"""Everything registered passes the contract that plugin authors inherit."""

from __future__ import annotations

from typing import Any

import pytest

from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.testing import AttackContract
from robustspike.bench.testing import DefenseContract
from robustspike.bench.testing import EstimatorContract
from robustspike.bench.testing import GeometryContract
from robustspike.bench.testing import VictimContract
from robustspike.bench.training.weights import find_weights


def with_weights() -> list[str]:
    names = registry("victims").names()
    return [n for n in names if find_weights(registry("victims").get(n), "none", 0, None) is not None]


SHORTER: dict[str, dict[str, Any]] = {
    "autoattack.snn": {"level": "quick"},
    "cw.l2": {"steps": 20, "searches": 3},
    "rays.linf": {"queries": 100},
    "square.linf": {"queries": 100},
}
"""Attacks whose defaults take long: the contract is checked on shorter runs."""


class TestAttacks(AttackContract):
    @pytest.fixture(params=registry("attacks").names())
    def attack(self, request: pytest.FixtureRequest) -> Any:
        return registry("attacks").get(request.param, **SHORTER.get(request.param, {}))


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


class TestVictims(VictimContract):
    @pytest.fixture(params=with_weights())
    def victim(self, request: pytest.FixtureRequest) -> Any:
        return load_victim(request.param)
