"""Which files a component's behaviour hangs on, weights among them, and their digest.

The digest is part of a cell's key: editing an attack disowns what was measured with it, and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustspike.bench.contract import sources
from robustspike.bench.training.weights import find_weights


def code_digest(component: Any, kind: str) -> str:
    """Return the digest of what a component runs, the harness's own code left aside (see `files`)."""
    return sources.digest_of(files(component, kind))


def files(component: Any, kind: str) -> dict[str, Path]:
    """Return the files that a component hangs on: its sources, and the weights of victims that it uses."""
    used = sources.used(component, kind)
    found = sources.files_of(used)
    for part, of in used[1:]:
        weights = find_weights(part, "none", 0, None) if of == "victims" else None
        if weights is not None:
            found[f"weights of {part.name}"] = weights
    return found
