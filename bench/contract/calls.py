"""Components with changed parameters as text: "name(key=value, ...)"."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from robustspike.bench.errors import ConfigError

_WORDS = {"true": True, "false": False, "none": None}


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Read "name" or "name(key=value, ...)": values are numbers, strings, tuples, or bare words.

    A bare word may stand first without a key; it is the parameter `kind`: "tonic(NMNIST, steps=8)".

    Raises: ConfigError: the text is not of that form.
    """
    name, bracket, arguments = text.partition("(")
    if not bracket:
        return text, {}
    try:
        call = ast.parse(f"f({arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or not name.strip():
            raise ValueError("only key=value arguments are allowed")
        if len(call.args) > 1 or not all(isinstance(first, ast.Name) for first in call.args):
            raise ValueError("only key=value arguments are allowed, after one bare word at most")
        leading = [ast.keyword("kind", first) for first in call.args]
        params: dict[str, Any] = {}
        for word in leading + call.keywords:
            if word.arg is None:
                raise ValueError("** is not allowed")
            if word.arg in params:
                raise ValueError(f"{word.arg} is given twice")
            bare = isinstance(word.value, ast.Name)
            value = word.value.id if isinstance(word.value, ast.Name) else ast.literal_eval(word.value)
            params[word.arg] = _WORDS.get(value, value) if bare else value
    except (SyntaxError, ValueError) as error:
        quotes = " Put a path in quotes: folder='/data/mine'." if "/" in text and "'" not in text else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(
            f"'{text}': expected NAME or NAME(key=value, ...), e.g. atan(alpha=5): {reason}.{quotes}"
        ) from error
    return name.strip(), params


def call_text(name: str, params: Mapping[str, Any]) -> str:
    """Write what `parse_call` reads, one text for equal parameters: "mppd(chi=0.5,rho=0)"."""
    inside = ",".join(f"{key}={_word(value)}" for key, value in sorted(params.items()))
    return f"{name}({inside})" if inside else name


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value if value.isidentifier() and value not in _WORDS else repr(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    text = repr(value).replace(" ", "")
    return text.removesuffix(".0") if isinstance(value, float) else text
