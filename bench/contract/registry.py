"""Registries of components, filled from entry points: built-ins and third parties alike.

An entry point `name = "module:attribute"` in the group `robustspike.<kind>` names a frozen dataclass
(made with its default parameters) or an instance of one. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from collections.abc import Mapping
from functools import cache
from importlib.metadata import Distribution
from importlib.metadata import EntryPoint
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from robustspike.bench.contract.calls import call_text
from robustspike.bench.contract.calls import parse_call
from robustspike.bench.contract.parameters import _fitted
from robustspike.bench.contract.renamed import present_name
from robustspike.bench.contract.specs import API_VERSION
from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError

KINDS = ("attacks", "defenses", "certifiers", "victims", "datasets", "estimators", "geometries")

PLUGIN_MODULE = "robustspike_plugin_"
"""How the names of modules begin that are made of single files; a digest of place and content ends them."""

_REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    # kind -> method -> parameter names it must accept
    "attacks": {"run": ("oracle", "x0", "y", "rng")},
    "defenses": {"fits": ("recipe",)},
    "certifiers": {"fits": ("victim",), "certify": ("victim", "x", "y", "radii", "streams")},
    "victims": {"build": ("rng",)},
    "datasets": {"load": ("split", "root")},
    "estimators": {"rule": ("neuron", "memory")},
    "geometries": {"project": ("x0", "x", "eps", "bounds"), "distance": ("x0", "x")},
}


@dataclasses.dataclass(frozen=True)
class Registered:
    """One entry: its name, what it points to, and the distribution that brought it."""

    name: str
    kind: str
    target: str
    distribution: str
    version: str
    load: Callable[[], Any]

    @property
    def is_installed(self) -> bool:
        """Whether it came from an installed package, not from a single file."""
        return self.distribution != "file"


class Registry:
    """The components of one kind, by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.singular = "geometry" if kind == "geometries" else kind.removesuffix("s")
        self._entries: dict[str, Registered] = {}
        for point in sorted(entry_points(group=f"robustspike.{kind}"), key=lambda p: p.name):
            self.add(_from_entry_point(point, kind))

    def add(self, entry: Registered) -> None:
        """Add an entry. Raises: ConfigError: the name is taken by another target."""
        known = self._entries.get(entry.name)
        if known is not None and known.target != entry.target:
            raise ConfigError(
                f"two {self.kind} are named '{entry.name}': {known.target} from {known.distribution} "
                f"{known.version}, and {entry.target} from {entry.distribution} {entry.version}. "
                "Uninstall one, or rename it in its entry points."
            )
        self._entries[entry.name] = entry

    def names(self, pattern: str = "*") -> list[str]:
        """List the names that match a shell-style pattern, sorted."""
        return sorted(n for n in self._entries if fnmatch.fnmatchcase(n, pattern))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def entry(self, name: str) -> Registered:
        """Return an entry. Raises: ConfigError: unknown name, with the nearest known one."""
        if name not in self._entries:
            name = present_name(self.kind, name)
        if name in self._entries:
            return self._entries[name]
        hint = did_you_mean(name, self._entries, cutoff=0.4)
        raise ConfigError(
            f"unknown {self.singular} '{name}'.{hint} {len(self._entries)} {self.kind} are registered: "
            f"robustspike list {self.kind}."
        )

    def left_out(self) -> dict[str, str]:
        """Return what the packages of the entries leave out and why: their constants LEFT_OUT, merged."""
        modules = (entry.target.partition(":")[0] for entry in self._entries.values() if entry.is_installed)
        packages = {module.rpartition(".")[0] for module in modules if "." in module}
        found: dict[str, str] = {}
        for package in sorted(packages):
            found |= vars(importlib.import_module(package)).get("LEFT_OUT", {})
        return dict(sorted(found.items()))

    def get(self, name: str, **params: Any) -> Any:
        """Load a component, with some of its parameters changed.

        Args:
            name: its name, or a call "name(key=value, ...)" with plain values: "atan(alpha=5)".
            params: parameters to change, over those of the call.

        Raises: ConfigError: unknown name or parameter. ContractError: it breaks its contract.
        """
        name, written = parse_call(name)
        entry = self.entry(name)
        return self._instantiate(entry, _loaded(entry), {**written, **params})

    def canonical(self, text: str) -> str:
        """Return the one spelling of a call: parameters in order, those that change nothing left out.

        Raises: as `get`.
        """
        name, written = parse_call(text)
        if not written:
            return text
        plain, made = self.get(name), self.get(text)
        changed = {key: getattr(made, key) for key in written if getattr(made, key) != getattr(plain, key)}
        return call_text(name, changed)

    def _instantiate(self, entry: Registered, target: Any, params: Mapping[str, Any]) -> Any:
        kind_of = target if inspect.isclass(target) else type(target)
        known = (
            {f.name for f in dataclasses.fields(kind_of) if f.init}
            if dataclasses.is_dataclass(kind_of)
            else set()
        )
        for key in params:
            if key not in known:
                hint = did_you_mean(key, known)
                raise ConfigError(
                    f"{self.singular} '{entry.name}' has no parameter '{key}'.{hint} "
                    f"It has: {', '.join(sorted(known)) or 'none'}."
                )
        where = f"{self.singular} '{entry.name}'"
        frozen = {key: _fitted(value, key, kind_of, target, where) for key, value in params.items()}
        try:
            if inspect.isclass(target):
                made = target(**frozen)
            else:
                made = dataclasses.replace(target, **frozen) if frozen else target
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(
                f"{self.singular} '{entry.name}' cannot be made with {dict(params)}: {error}"
            ) from error
        validate_component(made, self.kind, where=f"{self.singular} '{entry.name}' ({entry.target})")
        return made


def validate_component(component: Any, kind: str, *, where: str) -> None:
    """Check the signature of a component. Raises: ContractError: naming the member at fault."""
    api = str(getattr(component, "api", API_VERSION))
    if api.split(".")[0] != API_VERSION:
        raise ContractError(
            f"{where}: written for plugin API {api}; this version supports {API_VERSION}. Update the plugin."
        )
    if kind in ("attacks", "defenses", "certifiers") and not hasattr(component, "spec"):
        raise ContractError(f"{where}: lacks `spec`. Declare a class attribute spec.")
    for method, expected in _REQUIRED.get(kind, {}).items():
        function = getattr(component, method, None)
        if not callable(function):
            raise ContractError(f"{where}: lacks the method {method}({', '.join(expected)}).")
        accepted = inspect.signature(function).parameters
        if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            continue
        missing = [p for p in expected if p not in accepted]
        if missing:
            raise ContractError(
                f"{where}: {method}() must accept {', '.join(expected)}; it lacks {', '.join(missing)}."
            )


def _from_entry_point(point: EntryPoint, kind: str) -> Registered:
    name, version = ("unknown", "unknown") if point.dist is None else _named(point.dist)
    return Registered(
        name=point.name,
        kind=kind,
        target=point.value,
        distribution=name,
        version=version,
        load=point.load,
    )


@cache
def _named(dist: Distribution) -> tuple[str, str]:
    """Return a distribution's name and version, for which its metadata are parsed, once."""
    return dist.name, dist.version


@cache
def _loaded(entry: Registered) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ContractError(
            f"{entry.kind.removesuffix('s')} '{entry.name}' from {entry.distribution} {entry.version}: "
            f"cannot load '{entry.target}': {error}. Reinstall the package or its extra."
        ) from error


@cache
def registry(kind: str) -> Registry:
    """Return the registry of a kind (see `KINDS`); filled once per process."""
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise ConfigError(f"unknown kind '{kind}'.{hint} Kinds: {', '.join(KINDS)}.")
    return Registry(kind)


def load_file(path: Path) -> list[Registered]:
    """Register every component that a Python file defines, of any kind (see `KINDS`).

    Such entries carry the distribution "file"; records made with them are marked unpublished.
    Raises: ConfigError: the file is missing, fails to import, or defines no component.
    """
    if not path.is_file():
        raise ConfigError(f"plugin file '{path}' does not exist. Give the path of a Python file.")
    try:
        content = f"{path.resolve()}\n".encode() + path.read_bytes()
    except OSError as error:
        raise ConfigError(f"plugin file '{path}' cannot be read: {error}.") from error
    name = f"{PLUGIN_MODULE}{path.stem}_{hashlib.sha256(content).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin file '{path}' is not a Python file. Give a path that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"plugin file '{path}' fails to import: {type(error).__name__}: {error}") from error
    found: list[Registered] = []
    for attribute, value in vars(module).items():
        kind = _kind_of(value, name)
        if kind is None:
            continue
        entry = Registered(
            name=value.spec.name if kind in _WITH_SPEC else value.name,
            kind=kind,
            target=f"{path.resolve()}:{attribute}",
            distribution="file",
            version=path.name,
            load=functools.partial(_given, value),
        )
        registry(kind).add(entry)
        found.append(entry)
    if not found:
        raise ConfigError(
            f"plugin file '{path}' defines no component: no class with `spec` and `run`, `certify` or `fits` "
            "(attack, certifier, defense), and nothing with a `name` and `build` (an instance: a victim), "
            "`load` (data set), `rule` (estimator), or `project` and `distance` (geometry)."
        )
    return found


def _given(value: Any) -> Any:
    return value


_WITH_SPEC = {"attacks": "run", "certifiers": "certify", "defenses": "fits"}
_WITH_NAME = {"datasets": "load", "estimators": "rule", "geometries": "project"}
"""Kind -> the method that a class of that kind has; of the first that fits, in this order."""


def _kind_of(value: Any, module: str) -> str | None:
    """Say which kind of component a module attribute is, if it was defined there."""
    is_class = inspect.isclass(value)
    if (value if is_class else type(value)).__module__ != module:
        return None
    if is_class and hasattr(value, "spec"):
        return next((kind for kind, method in _WITH_SPEC.items() if hasattr(value, method)), None)
    if not isinstance(getattr(value, "name", None), str) or not value.name:
        return None
    if not is_class and hasattr(value, "build"):
        return "victims"
    return next((kind for kind, method in _WITH_NAME.items() if hasattr(value, method)), None)
