"""Whether a value fits a parameter of a component."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Any

from robustspike.bench.errors import ConfigError


def _fitted(value: Any, key: str, kind: Any, holder: Any, where: str) -> Any:
    """Return a parameter as a field takes it: lists as tuples, tables as the dataclass they change.

    Args:
        holder: what has the field's present value, the component or its class.

    Raises: ConfigError: a value of another type.
    """
    value = tuple(value) if isinstance(value, list) else value
    try:
        hint = _hints(kind)[key]
    except (NameError, KeyError, TypeError):  # annotations that only a type checker can read
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        present, known = getattr(holder, key), [f.name for f in dataclasses.fields(hint)]
        for inner in value:
            if inner not in known:
                raise ConfigError(f"{where}: '{key}' has no '{inner}'. It has: {', '.join(known)}.")
        return dataclasses.replace(
            present, **{inner: _fitted(v, inner, hint, present, where) for inner, v in value.items()}
        )
    if not _accepts(value, hint):
        name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        if dataclasses.is_dataclass(hint):
            name = f"a table such as {{'{dataclasses.fields(hint)[0].name}': ...}}"
        raise ConfigError(f"{where}: parameter '{key}' must be {name}, got {value!r}.")
    return value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _accepts(value: Any, hint: Any) -> bool:
    """Say whether a value is of an annotated type; annotations it cannot judge accept everything."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in inside
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(value, one) for one in inside)
    if origin is tuple:
        each = (inside[0],) * len(value) if isinstance(value, tuple) and inside[1:] == (...,) else inside
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_accepts, value, each))
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    judged = isinstance(hint, type) and not getattr(hint, "_is_protocol", False)
    return isinstance(value, hint) if judged else True
