"""Data and victims by name, loaded once per process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from robustspike.bench.contract.registry import registry
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.errors import ArtefactError
from robustspike.bench.suite.cell import Cell
from robustspike.bench.training.weights import load_victim
from robustspike.bench.victim.module import ModuleVictim


@cache
def dataset_split(dataset: str, split: str, root: Path | None) -> Split:
    """Load a split of a data set once per process."""
    data: Dataset = registry("datasets").get(dataset)
    if data.needs_root and root is None:
        raise ArtefactError(
            f"data set '{dataset}' is read from its published files: pass --data DIR with the folder that "
            "holds them."
        )
    return data.load(split, root=root)  # type: ignore[arg-type]


@cache
def loaded_victim(
    name: str,
    params: tuple[tuple[str, Any], ...],
    defense: str,
    seed: int,
    weights: Path | None,
    device: str,
) -> ModuleVictim:
    """Load a victim once per process."""
    return load_victim(name, defense=defense, seed=seed, weights=weights, device=device, **dict(params))


def victim_of(cell: Cell, *, weights: Path | None, device: str) -> ModuleVictim:
    """Return the victim of a cell, loaded once per process."""
    return loaded_victim(cell.victim, cell.victim_params, cell.defense, cell.victim_seed, weights, device)


@cache
def _first(dataset: str, split: str, root: Path | None, samples: int) -> Split:
    return dataset_split(dataset, split, root)[:samples]


def samples_of(cell: Cell, root: Path | None) -> Split:
    """Return the samples of a cell; cut, and their digest computed, once per process."""
    return _first(cell.dataset, cell.split, root, cell.samples)
