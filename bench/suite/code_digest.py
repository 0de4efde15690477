"""Which files a component's behaviour hangs on, and their digest.

The digest is part of a cell's key: editing an attack disowns what was measured with it, and nothing else.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from robustspike.bench.contract.registry import registry
from robustspike.bench.errors import ContractError
from robustspike.bench.training.weights import find_weights

_OURS = {kind: f"robustspike.{kind}" for kind in ("attacks", "defenses", "victims")}
_ESTIMATORS = "robustspike.attacks.gradients"


def code_digest(component: Any, kind: str) -> str:
    """Return the digest of what a component runs, the harness's own code left aside (see `files`)."""
    return _digest(tuple(sorted(files(component, kind).items())))


def files(component: Any, kind: str) -> dict[str, Path]:
    """Return the files that a component's behaviour hangs on, by module.

    They are the file that defines it; the files that this one imports, of its own package and of our attacks,
    defenses and victims; every gradient estimator for an attack, which may be handed any; and the same of the
    components that it looks up by name: those that its method `uses()` lists, with the weights of victims,
    else all of ours of every kind that its files ask the registry for.
    """
    modules = set(_closure(type(component).__module__))
    if kind == "attacks":
        modules |= _below(_ESTIMATORS)
    looked_up: dict[str, Path] = {}
    uses = getattr(component, "uses", None)
    if uses is None:
        for asked in set[str]().union(*map(_asks, modules)) & _OURS.keys():
            modules |= _below(_OURS[asked])
    else:
        named: Mapping[str, Sequence[str]] = uses()
        for other, names in named.items():
            for name in names:
                found = registry(other).get(name)
                looked_up |= files(found, other)
                weights = find_weights(found, "none", 0, None) if other == "victims" else None
                if weights is not None:
                    looked_up[f"weights of {name}"] = weights
    return looked_up | {module: path for module in modules if (path := _path(module)) is not None}


@cache
def _digest(named: tuple[tuple[str, Path], ...]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for content in sorted(_content(path) for _, path in named):
        total.update(content)
    return total.hexdigest()


@cache
def _content(path: Path) -> bytes:
    """Return the digest of a file that does not change when modules are moved or renamed.

    Of a Python file, import statements count by the names that they bind, in order of the alphabet: where a
    module lies says nothing of what it does, and its own text is among the files.
    """
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
def _closure(module: str) -> frozenset[str]:
    """Return a module and what it imports, directly or not, of its own package and of our parts."""
    root = module.partition(".")[0]
    followed = tuple(f"{part}." for part in {*_OURS.values(), root} - {"robustspike"})
    found, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name not in found and _path(name) is not None:
            found.add(name)
            waiting += [other for other in _imports(name) if f"{other}.".startswith(followed)]
    return frozenset(found)


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
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


@cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    if path is None or path.suffix != ".py":
        raise ContractError(f"{module}: no Python source to take a digest of. Install it with its .py files.")
    return ast.parse(path.read_bytes())


def _imports(module: str) -> Iterator[str]:
    """List the names that a module imports anywhere in its text; some are modules, some are parts of one."""
    path = _path(module)
    is_package = path is not None and path.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _asks(module: str) -> set[str]:
    """List the kinds that a module asks the registry for."""
    calls = (node for node in ast.walk(_tree(module)) if isinstance(node, ast.Call))
    return {
        str(argument.value)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "registry"
        for argument in call.args[:1]
        if isinstance(argument, ast.Constant)
    }
