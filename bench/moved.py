"""Modules of version 0.1 under their old names, with a warning: `bench.registry` is in `bench.contract` now.

Nothing of ours imports them; scripts written for 0.1 do. The old names go with version 0.3.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from types import ModuleType
from typing import Any

UNTIL = "0.3"

MOVED: dict[str, tuple[str, ...]] = {
    "adapters": ("victim.adapt",),
    "bundle": ("record.bundle",),
    "certify": ("certify.base", "certify.smoothing", "certify.intervals", "certify.result"),
    "code_digest": ("suite.code_digest",),
    "contracts": ("contract.specs", "attack.contract", "certify.contract", "training.contract"),
    "data.cache": ("files",),
    "data.digit_events": ("data.events.digit_events",),
    "data.digits": ("data.images.digits",),
    "data.event_files": ("data.events.event_files",),
    "data.event_sets": ("data.events.event_sets",),
    "data.events": ("data.events.events",),
    "data.image_files": ("data.images.image_files",),
    "data.image_sets": ("data.images.image_sets",),
    "data.photopatch_iqa": ("data.quality.photopatch_iqa",),
    "data.photos": ("data.quality.photos",),
    "data.quality_files": ("data.quality.quality_files",),
    "data.sensor": ("data.events.sensor",),
    "data.spike_camera": ("data.events.spike_camera",),
    "defense": ("training.defense",),
    "energy": ("victim.energy", "victim.training_energy"),
    "evaluate": ("attack.evaluate",),
    "flags": ("record.flags",),
    "flips": ("snn.flips",),
    "fullref": ("numbers.image_quality",),
    "geometry": ("threats.geometry",),
    "gradients": ("snn.estimators",),
    "interval_bounds": ("certify.interval_bounds",),
    "joint": ("victim.joint",),
    "leaky": ("snn.fast_lif",),
    "limits": ("attack.limits", "run.pool"),
    "losses": ("numbers.losses",),
    "neurons": ("snn.neurons",),
    "oracle": ("attack.oracle", "attack.meter"),
    "pictures": ("run.pictures",),
    "plan": ("suite.plan", "suite.file", "suite.cell", "suite.loading", "suite.filters", "suite.identity"),
    "probes": ("attack.probes",),
    "progress": ("attack.trace",),
    "provenance": ("record.provenance",),
    "recipes": ("training.weights", "training.train", "training.recipe"),
    "records": ("record.schema", "record.threat"),
    "registry": ("contract.registry", "contract.calls"),
    "retiming": ("threats.retiming",),
    "rng": ("numbers.rng",),
    "runner": ("run.run", "run.compute", "run.assemble"),
    "stats": ("numbers.stats",),
    "store": ("record.store", "record.adversarials"),
    "training": ("training.fit",),
    "verdicts": ("attack.judge", "attack.decide", "attack.result"),
    "verify": ("run.verify",),
    "victim": ("victim.module", "victim.checks"),
}
"""Old module below robustspike.bench -> the modules that hold its names now."""


def names_of(old: str) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that finds the public names of an old module where they are now."""

    def find(name: str) -> Any:
        if not name.startswith("_"):
            for place in MOVED[old]:
                module = importlib.import_module(f"robustspike.bench.{place}")
                if hasattr(module, name):
                    _warn(old, place, name)
                    return getattr(module, name)
        raise AttributeError(f"module 'robustspike.bench.{old}' has no attribute '{name}'")

    return find


def _warn(old: str, place: str, name: str) -> None:
    warnings.warn(
        f"{name} moved from robustspike.bench.{old} to robustspike.bench.{place}; the old name goes with "
        f"version {UNTIL}. What plugins need is in robustspike.bench.api.",
        FutureWarning,
        stacklevel=4,
    )


class OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Make old modules importable; those that are packages now forward by `names_of` in their own file."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for an old module, None for everything else."""
        old = fullname.removeprefix("robustspike.bench.")
        found = fullname != old and old in MOVED
        return importlib.machinery.ModuleSpec(fullname, self) if found else None

    def exec_module(self, module: ModuleType) -> None:
        """Let an old module find its names where they are now."""
        module.__getattr__ = names_of(module.__name__.removeprefix("robustspike.bench."))  # type: ignore[method-assign]


def install() -> None:
    """Let old modules be imported; asked last, after all that exist."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())
