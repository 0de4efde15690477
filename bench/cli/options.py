"""Options and displays that several verbs share."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from robustspike.bench.contract.suggest import did_you_mean
from robustspike.bench.errors import ConfigError

_PATH = click.Path(path_type=Path)
_DEVICES = ("auto", "cpu", "cuda", "mps")


def records_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what records of a folder or bundle are checked with; see `verify.opened`."""
    options = (
        click.option("--data", type=_PATH, help="Folder of published data sets."),
        click.option("--weights", type=_PATH, help="Folder of weights from robustspike train."),
        click.option("--plugin", multiple=True, type=_PATH, help="Python file with a plugin."),
        click.option(
            "--trust",
            multiple=True,
            metavar="DIGEST",
            help="Run the enclosed plugin file whose sha256 starts so.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def parse_only(values: Iterable[str], *, option: str = "--only") -> list[tuple[str, str]]:
    """Parse KEY=GLOB filters of an option. Raises: ConfigError."""
    parsed = []
    for value in values:
        key, sign, pattern = value.partition("=")
        if not sign or not key or not pattern:
            raise ConfigError(f"{option} {value}: expected KEY=GLOB, e.g. {option} 'victim=lif_*'.")
        parsed.append((key, pattern))
    return parsed


def parse_params(values: Iterable[str]) -> dict[str, Any]:
    """Parse NAME=VALUE parameters; values are Python literals, anything else is text."""
    parsed: dict[str, Any] = {}
    for value in values:
        key, sign, text = value.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {value}: expected NAME=VALUE, e.g. --set steps=8.")
        try:
            parsed[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[key] = text
    return parsed


def choose_device(name: str) -> str:
    """Turn a --device into a torch device. Raises: ConfigError: unknown, or not on this machine."""
    import torch

    kind, _, number = name.partition(":")
    if kind not in _DEVICES or not re.fullmatch(r"\w+|cuda:\d+", name):
        near = " Did you mean 'cuda'?" if kind == "gpu" else did_you_mean(kind.lower(), _DEVICES)
        raise ConfigError(f"--device: expected auto, cpu, cuda, cuda:N or mps, got {name!r}.{near}")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "no"
        raise ConfigError(f"--device {name}: torch finds {found} CUDA devices. Use --device cpu or auto.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: torch finds no Apple GPU. Use --device cpu or auto.")
    return name


def existing_folder(path: Path | None, option: str) -> Path | None:
    """Check a folder given by the user. Raises: ConfigError: it is not there."""
    if path is not None and not path.is_dir():
        raise ConfigError(f"{option} {path}: no such folder. Give the folder that holds the files.")
    return path
