"""Suite files: what a benchmark asks for, as written."""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError
from robustspike.bench.record.schema import digest

MAX_SUITE_BYTES = 1 << 20

_TOP = {
    "name",
    "version",
    "description",
    "samples",
    "shard",
    "seeds",
    "split",
    "threats",
    "victims",
    "attacks",
    "certify",
}
_ENTRY = {
    "threats": {"domain", "geometry", "eps", "bounds", "goal", "levels", "budget", "attacks", "samples"},
    "victims": {"name", "params", "defenses", "seeds"},
    "attacks": {"name", "params"},
    "certify": {"name", "params"},
}
_OPTIONAL = {"certify"}


@dataclass(frozen=True)
class Suite:
    """A parsed suite file; lists are in file order."""

    name: str
    version: int
    description: str
    samples: int
    shard: int
    seeds: tuple[int, ...]
    split: str
    threats: tuple[Mapping[str, Any], ...]
    victims: tuple[Mapping[str, Any], ...]
    attacks: tuple[Mapping[str, Any], ...]
    certify: tuple[Mapping[str, Any], ...]
    digest: str


def shipped_suites() -> list[str]:
    """List the suites that come with the package."""
    folder = importlib.resources.files("robustspike.bench.suites")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def read_suite(name: str) -> Suite:
    """Read a shipped suite by name, or a TOML file by path.

    Raises: ConfigError: unknown name, unreadable file, unknown or missing keys, wrong types.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        try:
            if path.stat().st_size > MAX_SUITE_BYTES:
                raise ConfigError(f"suite '{name}': larger than {MAX_SUITE_BYTES} bytes. It is not a suite.")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"suite '{name}': cannot be read: {error}. Give a TOML file.") from error
    else:
        known = shipped_suites()
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"unknown suite '{name}'.{hint} Suites: {', '.join(known)}; or give the path of a .toml file."
            )
        text = (importlib.resources.files("robustspike.bench.suites") / f"{name}.toml").read_text("utf-8")
    try:
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"suite '{name}': not valid TOML: {error}.") from error
    return _parse(value, name)


def _parse(value: Mapping[str, Any], where: str) -> Suite:
    _known_keys(value, _TOP, f"suite '{where}'")
    lists: dict[str, tuple[Mapping[str, Any], ...]] = {}
    for key, known in _ENTRY.items():
        entries = value.get(key)
        if entries is None and key in _OPTIONAL:
            lists[key] = ()
            continue
        if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
            raise ConfigError(f"suite '{where}': needs at least one [[{key}]] table.")
        for number, entry in enumerate(entries, start=1):
            place = f"suite '{where}', [[{key}]] number {number}"
            _known_keys(entry, known, place)
            if key != "threats" and not isinstance(entry.get("name"), str):
                raise ConfigError(f"{place}: needs a name.")
            chosen = entry.get("attacks", [])
            if not (isinstance(chosen, list) and all(isinstance(pattern, str) for pattern in chosen)):
                raise ConfigError(f'{place}: attacks must be a list such as ["pgd.*", "!pgd.l2"].')
            if not isinstance(entry.get("params", {}), dict):
                raise ConfigError(f"{place}: params must be a table such as {{ steps = 20 }}.")
        lists[key] = tuple(entries)
    numbers = {}
    for key, default in (("version", 1), ("samples", 250), ("shard", 125)):
        number = value.get(key, default)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"suite '{where}': {key} must be a positive integer, got {number!r}.")
        numbers[key] = number
    seeds = value.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(isinstance(s, int) for s in seeds)):
        raise ConfigError(f"suite '{where}': seeds must be a list of integers, got {seeds!r}.")
    split = value.get("split", "test")
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"suite '{where}': split must be train, validation or test, got {split!r}.")
    return Suite(
        name=str(value.get("name", Path(where).stem)),
        description=str(value.get("description", "")),
        seeds=tuple(seeds),
        split=split,
        digest=digest(_jsonable(value)),
        version=numbers["version"],
        samples=numbers["samples"],
        shard=numbers["shard"],
        threats=lists["threats"],
        victims=lists["victims"],
        attacks=lists["attacks"],
        certify=lists["certify"],
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    return value if isinstance(value, bool | int | str) else str(value)


def _known_keys(value: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in value:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(f"{where}: unknown key '{key}'.{hint} Known: {', '.join(sorted(known))}.")
