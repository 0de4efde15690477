"""Victims: networks behind one contract."""

from __future__ import annotations

from robustspike.bench.moved import names_of

__getattr__ = names_of("victim")
