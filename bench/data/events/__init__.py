"""Event data sets."""

from __future__ import annotations

from robustspike.bench.moved import names_of

__getattr__ = names_of("data.events")
