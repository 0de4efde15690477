"""Memory that a process frees is there again for its next pass."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from robustspike.bench.attack.limits import keep_freed_memory
keep_freed_memory()
def blocks():
    for size in (4, 9, 17, 25):  # MiB, freed at once
        np.empty(size << 20, dtype=np.uint8).fill(1)
blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    blocks()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of the GNU C library")
def test_freed_memory_is_not_asked_for_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50  # pages; without the setting some thousands
