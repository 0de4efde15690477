"""A seeded sample of records, every kind in it: what a quick check of a large table looks at."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ConfigError
from robustspike.bench.numbers.rng import stable_hash
from robustspike.bench.record.schema import read_limited

UNREADABLE = "unreadable"


def kind_of(folder: Path) -> str:
    """Return the kind of a record, by how it is verified: "certify", "quality", "spikes", "static", and
    "stochastic static" or "stochastic spikes" where the victim draws noise; nothing is checked."""
    try:
        value = json.loads(read_limited(folder / "record.json").decode("utf-8"))
        task, domain = str(value["task"]), str(value["threat"]["domain"])
        noisy = bool(value["measures"].get("noisy"))
    except (BenchError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return UNREADABLE
    return task if task != "classify" else ("stochastic " if noisy else "") + domain


def parse_share(text: str) -> float | int:
    """Read "1%" as a share and "20" as a number of records. Raises: ConfigError."""
    is_share = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / 100 if is_share else int(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= 1 if is_share else value >= 1):
        raise ConfigError(f"--sample {text}: expected a share such as 1% or a number of records such as 20.")
    return value


def sample(folders: Sequence[Path], share: float | int, *, seed: int = 0) -> dict[str, list[Path]]:
    """Draw record folders by kind: of each kind its share, rounded up, and at least one.

    Args:
        folders: the record folders.
        share: a share of every kind (float), or a number of all records (int), cut by kind in proportion.
        seed: another seed draws others; the draw depends on the records' keys alone.

    Returns: kind -> folders, in the order given; records that cannot be read are all of them in it.
    """
    part = share if isinstance(share, float) else min(1.0, share / max(1, len(folders)))
    kinds: dict[str, list[Path]] = {}
    for folder in folders:
        kinds.setdefault(kind_of(folder), []).append(folder)
    drawn = {}
    for kind, members in sorted(kinds.items()):
        count = len(members) if kind == UNREADABLE else math.ceil(part * len(members))
        first = {*sorted(members, key=lambda folder: stable_hash("verify sample", seed, folder.name))[:count]}
        drawn[kind] = [folder for folder in members if folder in first]
    return drawn
