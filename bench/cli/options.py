"""Options and displays that several verbs share."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robustspike.bench.errors import ConfigError


def parse_only(values: Iterable[str]) -> list[tuple[str, str]]:
    """Parse KEY=GLOB filters. Raises: ConfigError."""
    parsed = []
    for value in values:
        key, sign, pattern = value.partition("=")
        if not sign or not key or not pattern:
            raise ConfigError(f"--only {value}: expected KEY=GLOB, e.g. --only 'victim=lif_*'.")
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
    """Turn auto, cpu or cuda into a torch device. Raises: ConfigError: no CUDA device is there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device. Use --device cpu or auto.")
    return name


def existing_folder(path: Path | None, option: str) -> Path | None:
    """Check a folder given by the user. Raises: ConfigError: it is not there."""
    if path is not None and not path.is_dir():
        raise ConfigError(f"{option} {path}: no such folder. Give the folder that holds the files.")
    return path
