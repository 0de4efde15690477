"""One thread, reproducible hypothesis runs, and where the real data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile(
    "repo", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repo")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout, or of ROBUSTSPIKE_DATA; skips where it is absent."""
    places = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if "ROBUSTSPIKE_DATA" in os.environ:
        places.insert(0, Path(os.environ["ROBUSTSPIKE_DATA"]))
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("no shared data: set ROBUSTSPIKE_DATA to the folder that holds it")
