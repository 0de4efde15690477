"""Data and victims by name, kept in bounded caches; victims only as they were loaded."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustspike.bench.contract.registry import registry
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.errors import ArtefactError
from robustspike.bench.suite.cell import Cell
from robustspike.bench.training.weights import load_victim
from robustspike.bench.victim.module import ModuleVictim
from robustspike.bench.victim.state import Pristine

VICTIM_BYTES = 1 << 30
"""Weights that are kept at once; whatever was not used for longest goes first, the newest never."""

_LEAST_BYTES = 1 << 20
"""What a victim counts for at least: its modules take memory too."""

SPLITS_KEPT = 4
"""Data sets whose samples are kept at once."""

_Which = tuple[str, tuple[tuple[str, Any], ...], str, int, Path | None, str]


class Victims:
    """The victims of this process, each as it was loaded.

    Args:
        limit: bytes of weights that are kept at once.
    """

    def __init__(self, limit: int = VICTIM_BYTES) -> None:
        self.limit = limit
        self._kept: OrderedDict[_Which, Pristine] = OrderedDict()
        self._lent: set[_Which] = set()
        self._digests: dict[_Which, str] = {}

    def lend(self, cell: Cell, *, weights: Path | None, device: str) -> ModuleVictim:
        """Return the victim of a cell to whom it is not known what they do with it."""
        self._lent.add(_which(cell, weights, device))
        return self._get(cell, weights, device).victim

    def pristine(self, cell: Cell, *, weights: Path | None, device: str) -> Pristine:
        """Return the victim of a cell as it was loaded: loaded again where a borrower changed it.

        The caller compares it after use, and drops it where it is not the same.
        """
        which = _which(cell, weights, device)
        if which in self._lent and which in self._kept and self._kept[which].changed() is not None:
            del self._kept[which]
        self._lent.discard(which)
        return self._get(cell, weights, device)

    def _get(self, cell: Cell, weights: Path | None, device: str) -> Pristine:
        which = _which(cell, weights, device)
        if which not in self._kept:
            name, params, defense, seed, _, _ = which
            victim = load_victim(
                name, defense=defense, seed=seed, weights=weights, device=device, **dict(params)
            )
            self._kept[which] = Pristine.of(victim)
            self._digests[which] = victim.spec.weights
        self._kept.move_to_end(which)
        while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > self.limit:
            self._kept.popitem(last=False)
        return self._kept[which]

    def drop(self, cell: Cell, *, weights: Path | None, device: str) -> None:
        """Forget the victim of a cell: what comes next is loaded again."""
        self._kept.pop(_which(cell, weights, device), None)

    def digest(self, cell: Cell, *, weights: Path | None, device: str) -> str:
        """Return the digest of the weights of a cell's victim, as they were loaded."""
        which = _which(cell, weights, device)
        if which not in self._digests:
            self._get(cell, weights, device)
        return self._digests[which]


def _which(cell: Cell, weights: Path | None, device: str) -> _Which:
    return cell.victim, cell.victim_params, cell.defense, cell.victim_seed, weights, device


def _bytes(kept: Pristine) -> int:
    tensors = kept.victim.module.state_dict().values()
    return max(_LEAST_BYTES, sum(tensor.nbytes for tensor in tensors))


VICTIMS = Victims()


def victim_of(cell: Cell, *, weights: Path | None, device: str) -> ModuleVictim:
    """Return the victim of a cell; see `VICTIMS`."""
    return VICTIMS.lend(cell, weights=weights, device=device)


@lru_cache(maxsize=64)
def available(dataset: str, split: str, root: Path | None) -> int:
    """Return how many samples a split has, without reading them where its data set can tell."""
    return _opened(dataset, root).size(split, root=root)  # type: ignore[arg-type]


def samples_of(cell: Cell, root: Path | None) -> Split:
    """Return the samples of a cell; read, and their digest computed, once while they are kept."""
    return first_samples(cell.dataset, cell.split, root, cell.samples)


@lru_cache(maxsize=SPLITS_KEPT)
def first_samples(dataset: str, split: str, root: Path | None, samples: int) -> Split:
    """Return the first samples of a split; the others are not read where its data set can do without."""
    return _opened(dataset, root).first(split, samples, root=root)  # type: ignore[arg-type]


def _opened(dataset: str, root: Path | None) -> Dataset:
    data: Dataset = registry("datasets").get(dataset)
    if data.needs_root and root is None:
        raise ArtefactError(
            f"data set '{dataset}' is read from its published files: pass --data DIR with the folder that "
            "holds them."
        )
    return data
