"""The checks as pytest classes: subclass one, give the fixture, inherit the battery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustspike.bench.testing.attack_checks import ATTACK_CHECKS
from robustspike.bench.testing.certifier_checks import CERTIFIER_CHECKS
from robustspike.bench.testing.certifier_checks import SCORE_CERTIFIER_CHECKS
from robustspike.bench.testing.check import Checks
from robustspike.bench.testing.check import CheckSkipped
from robustspike.bench.testing.dataset_checks import DATASET_CHECKS
from robustspike.bench.testing.dataset_checks import DatasetAt
from robustspike.bench.testing.other_checks import DEFENSE_CHECKS
from robustspike.bench.testing.other_checks import ESTIMATOR_CHECKS
from robustspike.bench.testing.other_checks import GEOMETRY_CHECKS
from robustspike.bench.testing.quality_checks import QUALITY_CHECKS
from robustspike.bench.testing.recipe_checks import RECIPE_CHECKS
from robustspike.bench.testing.victim_checks import VICTIM_CHECKS


def _parametrise(checks: Checks) -> Any:
    return pytest.mark.parametrize("check", checks.values(), ids=checks.keys())


def _apply(check: Callable[[Any], None], component: Any) -> None:
    try:
        check(component)
    except CheckSkipped as skipped:
        pytest.skip(str(skipped))


class AttackContract:
    """Give the fixture `attack`, an attack on classifiers."""

    @_parametrise(ATTACK_CHECKS)
    def test_contract(self, attack: Any, check: Callable[[Any], None]) -> None:
        _apply(check, attack)


class QualityAttackContract:
    """Give the fixture `attack`, an attack on quality models."""

    @_parametrise(QUALITY_CHECKS)
    def test_contract(self, attack: Any, check: Callable[[Any], None]) -> None:
        _apply(check, attack)


class CertifierContract:
    """Give the fixture `certifier`, one of classifiers."""

    @_parametrise(CERTIFIER_CHECKS)
    def test_contract(self, certifier: Any, check: Callable[[Any], None]) -> None:
        _apply(check, certifier)


class ScoreCertifierContract:
    """Give the fixture `certifier`, one of quality models."""

    @_parametrise(SCORE_CERTIFIER_CHECKS)
    def test_contract(self, certifier: Any, check: Callable[[Any], None]) -> None:
        _apply(check, certifier)


class DatasetContract:
    """Give the fixture `dataset`, and `root`, the folder of its published files, where it reads any."""

    @pytest.fixture
    def root(self) -> Path | None:
        return None

    @_parametrise(DATASET_CHECKS)
    def test_contract(self, dataset: Any, root: Path | None, check: Callable[[Any], None]) -> None:
        _apply(check, DatasetAt(dataset, root))


class RecipeContract:
    """Give the fixture `recipe`, a registered victim recipe."""

    @_parametrise(RECIPE_CHECKS)
    def test_contract(self, recipe: Any, check: Callable[[Any], None]) -> None:
        _apply(check, recipe)


class VictimContract:
    """Give the fixture `victim` (a `ModuleVictim`)."""

    @_parametrise(VICTIM_CHECKS)
    def test_contract(self, victim: Any, check: Callable[[Any], None]) -> None:
        _apply(check, victim)


class DefenseContract:
    """Give the fixture `defense`."""

    @_parametrise(DEFENSE_CHECKS)
    def test_contract(self, defense: Any, check: Callable[[Any], None]) -> None:
        _apply(check, defense)


class EstimatorContract:
    """Give the fixture `estimator`."""

    @_parametrise(ESTIMATOR_CHECKS)
    def test_contract(self, estimator: Any, check: Callable[[Any], None]) -> None:
        _apply(check, estimator)


class GeometryContract:
    """Give the fixture `geometry`."""

    @_parametrise(GEOMETRY_CHECKS)
    def test_contract(self, geometry: Any, check: Callable[[Any], None]) -> None:
        _apply(check, geometry)
