"""One rule for values that people write or files hold: suites, filters, parameters and records.

`decode` turns plain values (of TOML, JSON or the command line) into frozen dataclasses, by their
annotations, with cattrs. Nothing is converted on the quiet: "10" is no number, 1.7 no whole number, and a key
that nothing reads is an error.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Annotated
from typing import Any
from typing import TypeVar

import cattrs
from cattrs.gen import make_dict_structure_fn
from cattrs.gen import override

from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError

T = TypeVar("T")

_LONGEST = 60


@dataclass(frozen=True)
class Rule:
    """What a value must be beside its type: `Annotated[int, Rule("a whole number of 1 or more", ...)]`.

    Args:
        expected: the rule in words, with the type.
        holds: says whether a value of that type keeps it.
    """

    expected: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Rule("a whole number of 0 or more", lambda value: value >= 0)]
Positive = Annotated[int, Rule("a whole number of 1 or more", lambda value: value >= 1)]


class Unfit(ValueError):
    """A value that its place does not take: what was expected, and what came."""

    def __init__(self, expected: str, got: object, hint: str = "") -> None:
        super().__init__(f"expected {expected}, got {short(got)}.{hint}")
        self.hint = hint


def decode(value: Any, kind: type[T] | Any, where: str) -> T:
    """Return a plain value as what an annotation asks for.

    Args:
        value: numbers, texts, lists and tables, as TOML and JSON have them; what is of its kind already
            stays as it is, whole numbers where numbers are asked for too.
        kind: a frozen dataclass, or any annotation that a field of one may have.
        where: what the value is part of, for messages.

    Raises: ConfigError: one line: where, the place in it, what was expected, what came, the nearest known.
    """
    try:
        found: T = _converter().structure(value, kind)
    except (cattrs.BaseValidationError, cattrs.StructureHandlerNotFoundError, ValueError, TypeError) as error:
        # from None: the errors of cattrs say the same over a page
        raise ConfigError(": ".join(filter(None, (where, _told(error))))) from None
    return found


def encode(value: Any) -> Any:
    """Return what `decode` reads back, with all that is as by default left out."""
    if isinstance(value, Fraction | enum.StrEnum):
        return str(value)
    if isinstance(value, Mapping):
        return {key: encode(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    written = {}
    for field in dataclasses.fields(value):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        if getattr(value, field.name) != default:
            written[field.name] = encode(getattr(value, field.name))
    return written


def short(value: object) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def unknown_key(key: object, known: Sequence[str]) -> str:
    """Say that nothing reads a key, with the nearest that something does."""
    hint = did_you_mean(str(key), known)
    return f"unknown key '{str(key)[:_LONGEST]}'.{hint} Known keys: {', '.join(known) or 'none'}."


def _told(error: BaseException) -> str:
    """Return the first thing that is wrong, with its place."""
    place, leaf = _first(error)
    match leaf:
        case cattrs.ForbiddenExtraKeysError():
            known = [field.name for field in dataclasses.fields(leaf.cl) if field.init]
            what = unknown_key(min(map(str, leaf.extra_fields)), known)
        case KeyError() if place:
            what = f"lacks '{place.pop()}'."
        case _:
            what = str(leaf)
    return ": ".join(filter(None, (", ".join(place), what)))


def _first(error: BaseException) -> tuple[list[str], BaseException]:
    place = list(_steps(error))
    while isinstance(error, cattrs.BaseValidationError):
        inner = error.exceptions  # a key too many first: one misspelt is also one that lacks
        error = next((e for e in inner if isinstance(e, cattrs.ForbiddenExtraKeysError)), inner[0])
        place += _steps(error)
    return place, error


def _steps(error: BaseException) -> Iterator[str]:
    """Yield where an error happened, from the outside in."""
    for note in reversed(getattr(error, "__notes__", [])):
        if isinstance(note, cattrs.AttributeValidationNote):
            yield note.name
        elif isinstance(note, cattrs.IterableValidationNote):
            yield f"number {note.index + 1}" if isinstance(note.index, int) else short(note.index).strip("'")


@cache
def _converter() -> cattrs.Converter:
    made = cattrs.Converter(forbid_extra_keys=True, structure_fallback_factory=_judging)
    for kind, hook in (
        (str, _text),
        (bool, _switch),
        (int, _whole),
        (float, _number),
        (Fraction, lambda value, _: fraction(value)),
        (enum.StrEnum, _word),
    ):
        made.register_structure_hook(kind, hook)
    made.register_structure_hook_func(_is_literal, _one_of)
    made.register_structure_hook_func(_is_union, _any_of)
    for of, factory in (
        (_is_list, _list),
        (_is_table, _table),
        (_is_annotated, _ruled),
        (dataclasses.is_dataclass, _fields),
    ):
        made.register_structure_hook_factory(of, factory)
    return made


def _structure(kind: Any) -> Callable[[Any], Any]:
    """Return what decodes values of an annotation: looked up once, for annotations are slow to hash.

    Not before the first value, for a class may hold itself.
    """
    hook: Callable[[Any, Any], Any] | None = None

    def structure(value: Any) -> Any:
        nonlocal hook
        if hook is None:
            hook = _converter().get_structure_hook(kind)
        return hook(value, kind)

    return structure


def _text(value: Any, _: Any) -> Any:
    if not isinstance(value, str):
        raise Unfit("a text", value)
    return value


def _switch(value: Any, _: Any) -> Any:
    if not isinstance(value, bool):
        raise Unfit("true or false", value)
    return value


def _whole(value: Any, _: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        text = value.strip() if isinstance(value, str) else ""
        hint = f" Did you mean {text}?" if text.lstrip("-").isdecimal() else ""
        raise Unfit("a whole number", value, hint)
    return value


def _number(value: Any, _: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit("a number", value)
    if isinstance(value, int) and abs(value) >= 1 << 1023:
        raise Unfit("a number that a double can hold", value)
    return value


def fraction(value: Any) -> Fraction:
    """Return an exact number from what people write: 1, 0.1, "8/255", "8 / 255". Raises: Unfit."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
            raise ValueError
        return Fraction("".join(str(value).split()))  # of 0.1: one tenth, not its nearest double
    except (ValueError, ArithmeticError) as error:
        raise Unfit('a fraction such as "8/255" or 0.1', value) from error


def _word(value: Any, kind: Any) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise _not_one(value, [str(member) for member in kind]) from error


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _one_of(value: Any, kind: Any) -> Any:
    known = typing.get_args(kind)
    if not any(value == one and type(value) is type(one) for one in known):
        raise _not_one(value, known)
    return value


def _not_one(value: Any, known: Sequence[Any]) -> Unfit:
    names = [str(one) for one in known]
    return Unfit(_either(names), value, did_you_mean(value, names) if isinstance(value, str) else "")


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _any_of(value: Any, kind: Any) -> Any:
    arms = typing.get_args(kind)
    if value is None and types.NoneType in arms:
        return None
    refused = []
    for arm in arms:
        if arm is not types.NoneType:
            try:
                return _converter().structure(value, arm)
            except (cattrs.BaseValidationError, ValueError, TypeError) as error:
                refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    raise Unfit(_either([_words(arm) for arm in arms]), value)


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) in (tuple, list, Sequence)


def _list(kind: Any) -> Callable[[Any, Any], tuple[Any, ...]]:
    inside = typing.get_args(kind)
    any_length = typing.get_origin(kind) is not tuple or inside[1:] == (...,)
    kinds = [(one, _structure(one)) for one in (inside[:1] if any_length else inside)]

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            hint = ""
            if any_length and isinstance(value, str | int | float) and _fits(value, inside[0]):
                hint = f" Did you mean [{short(value)}]?"
            raise Unfit(_words(kind), value, hint)
        parts = kinds * len(value) if any_length else kinds
        if len(value) != len(parts):
            raise Unfit(_words(kind), value)
        return tuple(_at(place, *given) for place, given in enumerate(zip(value, parts, strict=True)))

    return hook


def _at(place: Any, value: Any, part: tuple[Any, Callable[[Any], Any]]) -> Any:
    """Decode a part of a list or table, with its place noted on what is wrong with it."""
    kind, structure = part
    try:
        return structure(value)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        error.add_note(cattrs.IterableValidationNote("", place, kind))
        raise


def _fits(value: Any, kind: Any) -> bool:
    try:
        _converter().structure(value, kind)
    except (cattrs.BaseValidationError, ValueError, TypeError):
        return False
    return True


def _is_table(kind: Any) -> bool:
    return kind in (dict, Mapping) or typing.get_origin(kind) in (dict, Mapping)


def _table(kind: Any) -> Callable[[Any, Any], Mapping[str, Any]]:
    inner = (typing.get_args(kind) or (str, Any))[1]
    part = inner, _structure(inner)

    def hook(value: Any, _: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise Unfit(_words(kind), value)
        return dict(value) if inner is Any else {key: _at(key, item, part) for key, item in value.items()}

    return hook


def _is_annotated(kind: Any) -> bool:
    return typing.get_origin(kind) is Annotated


def _ruled(kind: Any) -> Callable[[Any, Any], Any]:
    plain, *told = typing.get_args(kind)
    rules = [rule for rule in told if isinstance(rule, Rule)]
    structure = _structure(plain)

    def hook(value: Any, _: Any) -> Any:
        try:
            found = structure(value)
        except Unfit as error:
            if getattr(error, "__notes__", ()):  # about a part of it, which says more
                raise
            raise Unfit(_words(kind), value, error.hint) from error
        for rule in rules:
            if not rule.holds(found):
                raise Unfit(rule.expected, value)
        return found

    return hook


def _fields(kind: Any) -> Callable[[Any, Any], Any]:
    hints = typing.get_type_hints(kind, include_extras=True)

    def at(name: str) -> Callable[[Any, Any], Any]:
        structure = _structure(hints[name])
        return lambda value, _: structure(value)

    names = [field.name for field in dataclasses.fields(kind) if field.init]
    parts = {name: override(struct_hook=at(name)) for name in names}
    make = make_dict_structure_fn(kind, _converter(), _cattrs_forbid_extra_keys=True, **parts)  # type: ignore[arg-type]

    def hook(value: Any, _: Any) -> Any:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise Unfit(_words(kind), value)
        return make(value, kind)

    return hook


def _judging(kind: Any) -> Callable[[Any, Any], Any]:
    """Return the hook of a class that is none of the above: its own objects, or anything if it cannot say."""
    judged = isinstance(kind, type) and not getattr(kind, "_is_protocol", False)

    def hook(value: Any, _: Any) -> Any:
        if judged and not isinstance(value, kind):
            raise Unfit(_words(kind), value)
        return value

    return hook


def _words(kind: Any) -> str:
    """Return what an annotation asks for, in words."""
    inside = typing.get_args(kind)
    simple = {bool: "true or false", str: "a text", int: "a whole number", float: "a number", Any: "anything"}
    if kind in (None, types.NoneType):
        return "none"
    if _is_annotated(kind):
        rules = [rule.expected for rule in inside if isinstance(rule, Rule)]
        return rules[-1] if rules else _words(inside[0])
    if _is_literal(kind) or _is_union(kind):
        return _either([str(one) if _is_literal(kind) else _words(one) for one in inside])
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return _either([str(member) for member in kind])
    if _is_list(kind):
        if typing.get_origin(kind) is tuple and inside[1:] != (...,):
            return f"a list of {len(inside)}: {', '.join(map(_words, inside))}"
        return f"a list, each part {_words(inside[0])}"
    if dataclasses.is_dataclass(kind):
        return f"a table such as {{ {dataclasses.fields(kind)[0].name} = ... }}"
    if _is_table(kind):
        return "a table such as { key = value }"
    if kind is Fraction:
        return 'a fraction such as "8/255"'
    return simple.get(kind) or str(getattr(kind, "__name__", kind))
