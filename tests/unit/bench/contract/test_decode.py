"""One rule for values that people write: strict types, places, the nearest known word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from enum import StrEnum
from fractions import Fraction
from typing import Any
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustspike.bench.contract.decode import Count
from robustspike.bench.contract.decode import Positive
from robustspike.bench.contract.decode import decode
from robustspike.bench.contract.decode import encode
from robustspike.bench.errors import ConfigError


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Leaf:
    size: Positive = 1
    colour: Colour = Colour.RED


@dataclass(frozen=True, kw_only=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...] = ()
    odds: Fraction | None = None
    level: Literal["low", "high"] = "low"
    pair: tuple[int, float] = (1, 0.5)
    many: int | str = 1
    on: bool = False
    counts: Mapping[str, Count] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], r"here: expected a table such as { name = ... }, got \[1\]."),
        ({}, "here: lacks 'name'."),
        ({"name": 1}, "here: name: expected a text, got 1."),
        ({"name": "a", "nmae": 1}, "here: unknown key 'nmae'. Did you mean 'name'?"),
        ({"nmae": "a"}, "here: unknown key 'nmae'. Did you mean 'name'?"),
        ({"name": "a", "leaves": [{}, {"size": 0}]}, "here: leaves, number 2, size: .* of 1 or more, got 0."),
        ({"name": "a", "leaves": [{"size": True}]}, "whole number of 1 or more, got True"),
        ({"name": "a", "leaves": [{"colour": "gren"}]}, "expected red or green, got 'gren'. Did .* 'green'"),
        ({"name": "a", "leaves": {"size": 1}}, "here: leaves: expected a list, each part a table such as"),
        ({"name": "a", "leaves": [{"sise": 1}]}, "here: leaves, number 1: unknown key 'sise'. Did you mean"),
        ({"name": "a", "odds": "0,1"}, "here: odds: expected a fraction such as \"8/255\" or 0.1, got '0,1'"),
        ({"name": "a", "odds": float("inf")}, "odds: expected a fraction"),
        ({"name": "a", "odds": "1/0"}, "odds: expected a fraction"),
        ({"name": "a", "level": "hihg"}, "expected low or high, got 'hihg'. Did you mean 'high'"),
        ({"name": "a", "pair": [1]}, r"pair: expected a list of 2: a whole number, a number, got \[1\]"),
        ({"name": "a", "pair": [1.5, 1]}, "here: pair, number 1: expected a whole number, got 1.5"),
        ({"name": "a", "many": 1.5}, "many: expected a whole number or a text, got 1.5"),
        ({"name": "a", "on": 1}, "on: expected true or false, got 1"),
        ({"name": "a", "counts": {"x": -1}}, "here: counts, x: expected a whole number of 0 or more, got -1"),
        ({"name": "a", "rest": [1]}, "rest: expected a table"),
    ],
)
def test_what_does_not_fit_is_one_line_with_its_place(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        decode(value, Tree, "here")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


def test_long_values_are_shortened() -> None:
    with pytest.raises(ConfigError) as refused:
        decode({"name": ["x" * 5000]}, Tree, "here")
    assert len(str(refused.value)) < 150


@pytest.mark.parametrize(
    ("written", "exact"),
    [
        ("8/255", (8, 255)),
        (" 8 / 255 ", (8, 255)),
        (0.1, (1, 10)),
        ("0.1", (1, 10)),
        (2, (2, 1)),
        ("1e-3", (1, 1000)),
    ],
)
def test_fractions_are_exact_whatever_way_they_are_written(written: object, exact: tuple[int, int]) -> None:
    assert decode({"name": "a", "odds": written}, Tree, "x").odds == Fraction(*exact)


trees = st.builds(
    Tree,
    name=st.text(),
    leaves=st.lists(st.builds(Leaf, st.integers(1), st.sampled_from(Colour)), max_size=3).map(tuple),
    odds=st.none() | st.fractions(),
    level=st.sampled_from(["low", "high"]),
    many=st.integers() | st.text(),
    on=st.booleans(),
    counts=st.dictionaries(st.text(), st.integers(0), max_size=3),
)


@given(trees)
def test_what_is_encoded_is_decoded_again(tree: Tree) -> None:
    assert decode(encode(tree), Tree, "x") == tree


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Tree.__dataclass_fields__, "other"]), junk, max_size=4) | junk)
def test_nothing_but_a_config_error_comes_of_junk(value: object) -> None:
    try:
        assert isinstance(decode(value, Tree, "x"), Tree)
    except ConfigError as error:
        assert str(error).startswith("x: ")
