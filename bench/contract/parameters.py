"""Whether a value fits a parameter of a component."""

from __future__ import annotations

import dataclasses
import typing
from functools import cache
from typing import Any

from robustspike.bench.contract.decode import decode
from robustspike.bench.contract.decode import unknown_key
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
                raise ConfigError(f"{where}: parameter '{key}': {unknown_key(inner, known)}")
        return dataclasses.replace(
            present, **{inner: _fitted(v, inner, hint, present, where) for inner, v in value.items()}
        )
    decode(value, hint, f"{where}: parameter '{key}'")
    return value  # as it was written: 1 stays 1 where a number is asked for, and so keys stay what they were


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
