"""Which files a component's behaviour hangs on, weights among them, and their digest.

The digest is part of a cell's key: editing an attack disowns what was measured with it, and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustspike.bench.contract import sources
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.training.weights import find_weights


def code_digest(component: Any, kind: str, target: VictimSpec | None = None) -> str:
    """Return the digest of what a component runs, the harness's own code left aside (see `files`)."""
    return sources.digest_of(files(component, kind, target))


def files(component: Any, kind: str, target: VictimSpec | None = None) -> dict[str, Path]:
    """Return the files that a component hangs on: its sources, and the weights of victims that it uses.

    Args:
        target: what it is run on; victims with other inputs or classes, which it passes over, are left out.
    """
    own, *others = sources.used(component, kind)
    used = [own] + [(part, of) for part, of in others if of != "victims" or _alike(part.spec(), target)]
    found = sources.files_of(used)
    for part, of in used[1:]:
        weights = find_weights(part, "none", 0, None) if of == "victims" else None
        if weights is not None:
            found[f"weights of {part.name}"] = weights
    return found


def _alike(spec: VictimSpec, target: VictimSpec | None) -> bool:
    return target is None or (spec.shape, spec.classes) == (target.shape, target.classes)
