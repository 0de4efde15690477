"""Event counts as inputs: binary or whole counts, never more than what the bounds say."""

from __future__ import annotations

import numpy as np
import pytest

from robustspike.bench.api import Domain
from robustspike.bench.api import registry
from robustspike.bench.data.events.events import as_input
from robustspike.bench.errors import ArtefactError


def test_counts_stay_counts_and_a_cell_beyond_the_bound_is_refused() -> None:
    frames = np.array([0, 1, 3], dtype=np.int32).reshape(1, 1, 1, 3)
    assert as_input(frames, 0, where="f").ravel().tolist() == [0, 1, 1]
    assert as_input(frames, 3, where="f").ravel().tolist() == [0, 1, 3]
    with pytest.raises(ArtefactError, match=r"f: a cell holds 3 events.*counts=3"):
        as_input(frames, 2, where="f")


def test_event_sets_on_counts_are_of_the_domain_of_counts() -> None:
    binary, counted = (registry("datasets").get("nmnist", counts=n) for n in (0, 40))
    assert (binary.domain, binary.bounds) == (Domain.SPIKES, (0.0, 1.0))
    assert (counted.domain, counted.bounds) == (Domain.EVENTS, (0.0, 40.0))
