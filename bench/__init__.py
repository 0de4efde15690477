"""The harness: contracts, oracle, runner, records, command line."""

from __future__ import annotations

from robustspike.bench.moved import install

install()
