"""Which source files a component's behaviour hangs on, and their digest; the harness's own are left aside."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.registry import PLUGIN_MODULE
from robustspike.bench.contract.registry import registry
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError

_OURS = {kind: f"robustspike.{kind}" for kind in ("attacks", "defenses", "victims")}
_ESTIMATORS = "robustspike.attacks.gradients"
_HARNESS = "robustspike.bench."
_CERTIFYING = tuple(f"{_HARNESS}{room}." for room in ("certify", "numbers", "snn"))
"""What of the harness's own a certifier runs: proofs are made there, attacks are made outside of it."""

_NAMED = ("estimators", "geometries", "attacks")
"""Kinds whose components other components name in their parameters."""


def files(component: Any, kind: str) -> dict[str, Path]:
    """Return the files that a component's behaviour hangs on, by module.

    They are the file that defines it; the files that this one imports, of its own package (of its own folder
    for a single file) and of our attacks, defenses and victims; every estimator of ours for an attack, which
    may be handed any; the bounds and statistics of the harness for a certifier; and the same of every
    component that it looks up by name (see `used`), or all of ours of the kinds that its files ask the
    registry for where it does not say which.
    """
    return files_of(used(component, kind))


def files_of(parts: Sequence[tuple[Any, str]]) -> dict[str, Path]:
    """Return the files of components, each with its kind, as `files` does of one and what it uses."""
    found: dict[str, Path] = {}
    for part, kind in parts:
        found |= _files(type(part).__module__, kind, said=getattr(part, "uses", None) is not None)
    return found


def used(component: Any, kind: str) -> list[tuple[Any, str]]:
    """List a component and what it looks up by name, directly or not, each with its kind.

    That is what its method `uses()` lists, and what a text among its parameters names: an estimator, a
    geometry or an attack, with the parameters of its own that the text sets.
    """
    found: list[tuple[Any, str]] = []
    waiting = [(component, kind)]
    while waiting:
        part, of = waiting.pop()
        if any(of == kind and _same(part, other) for other, kind in found):
            continue
        found.append((part, of))
        uses = getattr(part, "uses", None)
        named: Mapping[str, Sequence[str]] = {} if uses is None else uses()
        waiting += [(registry(other).get(name), other) for other, names in named.items() for name in names]
        waiting += _held(part)
    return found


def digest_of(named: Mapping[str, Path]) -> str:
    """Return the digest of files by module; a module that was moved or renamed keeps it."""
    return _digest(tuple(sorted(named.items())))


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _held(part: Any) -> Iterator[tuple[Any, str]]:
    """Yield the components among a component's parameters, and those that its texts name."""
    waiting = _values(part)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield from _named(value)
        elif isinstance(value, tuple | list):
            waiting += value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield value, "parameters"


def _values(part: Any) -> list[Any]:
    if not dataclasses.is_dataclass(part):
        return []
    return [getattr(part, field.name) for field in dataclasses.fields(part)]


def _named(text: str) -> Iterator[tuple[Any, str]]:
    try:
        name, params = parse_call(text)
    except ConfigError:
        return
    for kind in _NAMED:
        if name in registry(kind):
            yield registry(kind).get(name, **params), kind


@cache
def _files(module: str, kind: str, *, said: bool) -> dict[str, Path]:
    """Return the files of one component by its module.

    Args:
        said: whether the component says itself what it looks up.
    """
    modules = set(_closure(module, kind == "certifiers"))
    if kind == "attacks":
        modules |= _below(_ESTIMATORS)
    if not said:
        for asked in set[str]().union(*map(_asks, modules)) & _OURS.keys():
            modules |= _below(_OURS[asked])
    return {name: path for name in modules if (path := _path(name)) is not None}


@cache
def _digest(named: tuple[tuple[str, Path], ...]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for content in sorted(_content(module, path) for module, path in named):
        total.update(content)
    return total.hexdigest()


@cache
def _content(module: str, path: Path) -> bytes:
    """Return the digest of a file that does not change when modules are moved or renamed.

    Of a Python file, import statements count by the names that they bind, in order of the alphabet: where a
    module lies says nothing of what it does, and its own text is among the files.

    Args:
        module: the module that was made of it (a file of one's own that is edited is loaded under another).
    """
    del module
    data = path.read_bytes()
    if path.suffix == ".py":
        lines, bound = data.decode().splitlines(), list[str]()
        for node in ast.walk(ast.parse(data)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound += [f"{alias.name.rpartition('.')[2]} as {alias.asname or ''}" for alias in node.names]
                for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[number] = ""
        data = "\n".join([*sorted(bound), *filter(str.strip, lines)]).encode()
    return hashlib.sha256(data).digest()


@cache
def _closure(module: str, certifies: bool) -> frozenset[str]:
    """Return a module and what it imports, directly or not, of its own package and of our parts."""
    root = module.partition(".")[0]
    followed = tuple(f"{part}." for part in {*_OURS.values(), root} - {"robustspike"})
    followed += _CERTIFYING if certifies else ()
    path = _path(module)
    folder = path.parent if path is not None and root.startswith(PLUGIN_MODULE) else None
    found, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name in found or _path(name) is None:
            continue
        if not name.startswith(_HARNESS) or f"{name}.".startswith(followed):
            found.add(name)
            waiting += [
                other
                for other in _imports(name)
                if f"{other}.".startswith(followed) or (folder is not None and _lies_in(folder, other))
            ]
    return frozenset(found)


def _lies_in(folder: Path, module: str) -> bool:
    path = _path(module.partition(".")[0])
    return path is not None and path.is_relative_to(folder)


@cache
def _below(package: str) -> frozenset[str]:
    """List the modules of one of our packages."""
    path = _path(package)
    assert path is not None
    parts = (file.relative_to(path.parent).with_suffix("").parts for file in path.parent.rglob("*.py"))
    return frozenset(".".join((package, *names)).removesuffix(".__init__") for names in parts)


@cache
def _path(module: str) -> Path | None:
    """Return the source file of a module, or None where there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


@cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    if path is None or path.suffix != ".py":
        raise ContractError(f"{module}: no Python source to take a digest of. Install it with its .py files.")
    return ast.parse(path.read_bytes())


@cache
def _imports(module: str) -> tuple[str, ...]:
    """List the names that a module imports anywhere in its text; some are modules, some are parts of one."""
    path = _path(module)
    is_package = path is not None and path.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


@cache
def _asks(module: str) -> frozenset[str]:
    """List the kinds that a module asks the registry for; a call of `load_victim` asks for victims."""
    found = set[str]()
    for node in ast.walk(_tree(module)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id == "registry":
            found |= {str(asked.value) for asked in node.args[:1] if isinstance(asked, ast.Constant)}
        elif node.func.id == "load_victim":
            found.add("victims")
    return frozenset(found)
