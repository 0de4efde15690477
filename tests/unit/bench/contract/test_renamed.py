"""Old names of components."""

from __future__ import annotations

import warnings

import pytest

from robustspike.bench.api import ConfigError
from robustspike.bench.api import registry
from robustspike.bench.contract.renamed import RENAMED
from robustspike.bench.contract.renamed import Renamed


def test_an_old_name_gives_the_component_and_says_what_it_is_called_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RENAMED, "attacks", {"pgd.old": Renamed(to="pgd.linf", since="0.2", until="0.4")})
    with pytest.warns(FutureWarning, match=r"'pgd.old' is called 'pgd.linf' since version 0.2.*version 0.4"):
        assert registry("attacks").get("pgd.old", steps=3) == registry("attacks").get("pgd.linf", steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry("attacks").get("pgd.linf")


def test_an_old_name_of_one_kind_is_no_name_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RENAMED, "defenses", {"pgd.old": Renamed(to="sr", since="0.2", until="0.4")})
    with pytest.raises(ConfigError, match=r"unknown attack 'pgd.old'. Did you mean 'pgd.l"):
        registry("attacks").get("pgd.old")


def test_every_new_name_is_registered() -> None:
    for kind, names in RENAMED.items():
        for old, found in names.items():
            assert found.to in registry(kind).names() and old not in registry(kind).names()
