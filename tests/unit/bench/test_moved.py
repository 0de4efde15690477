"""Modules under the names that they had in version 0.1."""

from __future__ import annotations

import importlib

import pytest

from robustspike.bench.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_gives_the_names_that_moved_and_says_where(old: str) -> None:
    module = importlib.import_module(f"robustspike.bench.{old}")
    for place in MOVED[old]:
        now = importlib.import_module(f"robustspike.bench.{place}")
        public = [name for name in vars(now) if not name.startswith("_")]
        own = [name for name in public if getattr(vars(now)[name], "__module__", "") == now.__name__]
        assert own
        with pytest.warns(FutureWarning, match=f"{own[0]} moved from robustspike.bench.{old} to"):
            assert getattr(module, own[0]) is getattr(now, own[0])


def test_a_name_that_never_was_is_no_attribute() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from robustspike.bench.registry import nothing  # type: ignore[import-not-found] # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("robustspike.bench.nowhere")
