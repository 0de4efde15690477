"""No defense: plain training, the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustspike.bench.api import DefenseBase
from robustspike.bench.api import DefenseSpec


@dataclass(frozen=True)
class Undefended(DefenseBase):
    """Plain training with the victim's own loss."""

    spec: ClassVar[DefenseSpec] = DefenseSpec(name="none", trains=False, source="Baseline.")
