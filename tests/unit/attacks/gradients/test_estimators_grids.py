"""The published grids of estimators."""

from __future__ import annotations

import pytest

from robustspike.attacks.gradients import grids
from robustspike.bench.api import GradientEstimator
from robustspike.bench.api import registry

GRIDS = {name: value for name, value in vars(grids).items() if name.endswith("_SWEEP")}


@pytest.mark.parametrize("grid", GRIDS)
def test_every_entry_can_be_made_and_none_stands_twice(grid: str) -> None:
    made: list[GradientEstimator] = [registry("estimators").get(text) for text in GRIDS[grid]]
    assert len(set(made)) == len(made)


def test_sweep_holds_the_default_of_every_fixed_surrogate() -> None:
    sweep = {registry("estimators").get(text) for text in grids.SURROGATE_SWEEP}
    for name in {text.partition("(")[0] for text in grids.SURROGATE_SWEEP}:
        assert registry("estimators").get(name) in sweep, name
