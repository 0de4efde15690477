"""Certificates: what can be proven about a victim."""

from __future__ import annotations

from robustspike.bench.moved import names_of

__getattr__ = names_of("certify")
