"""The contract of a data set, and splits that are stable for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from typing import ClassVar
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.data.download import Published
from robustspike.bench.data.events.events import EventLists
from robustspike.bench.numbers.rng import global_randomness_kept

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Samples in a fixed order.

    Args:
        x: inputs [N, *shape].
        y: labels [N] int64, or quality scores [N] float64.
        ids: the samples' global ids [N] int64; they name a sample in every record.
    """

    x: Tensor
    y: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> Split:
        return Split(self.x[index], self.y[index], self.ids[index])

    @cached_property
    def digest(self) -> str:
        """The sha256 of inputs, labels and ids."""
        total = hashlib.sha256()
        for part in (self.x, self.y, self.ids):
            total.update(f"{part.dtype}{tuple(part.shape)}".encode())
            total.update(part.contiguous().numpy().tobytes())
        return total.hexdigest()


class Dataset:
    """Base of data sets; a frozen dataclass of plain parameters.

    Class attributes:
        name: registry name.
        shape, classes, domain, task, bounds: as in `VictimSpec`.
        source: where the data come from, and their terms.
        needs_root: whether `--data DIR` must point to the published files.
        score_label: what the scores of a quality set are where they are no human opinion; empty otherwise.
        downloads: the published files, for `robustspike download`; empty where there is nothing to fetch.
    """

    name: ClassVar[str] = ""
    shape: ClassVar[tuple[int, ...]] = ()
    classes: ClassVar[int] = 0
    domain: ClassVar[Domain] = Domain.STATIC
    task: ClassVar[Task] = Task.CLASSIFY
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    source: ClassVar[str] = ""
    needs_root: ClassVar[bool] = False
    score_label: ClassVar[str] = ""
    downloads: ClassVar[tuple[Published, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let no `load` move a global random generator: the libraries that it imports do, and an attack that
        learns on data of its own would be blamed."""
        super().__init_subclass__(**kwargs)
        if "load" in vars(cls):
            cls.load = global_randomness_kept()(cls.load)  # type: ignore[method-assign]

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Build what is built at first use, reporting (done, of all); nothing by default."""
        del progress

    def present(self, root: Path) -> bool:
        """Say whether the folder given with `--data` holds this data set (checked where it can be)."""
        del root
        return True

    def events(self, split: SplitName, rows: range, *, root: Path | None = None) -> EventLists | None:
        """Return the raw events of some samples of a split; None for data that are no recordings.

        Args:
            rows: positions in the split; positions past its end are left out.
        """
        del split, rows, root
        return None

    def sources(self, ids: Tensor, *, root: Path | None = None) -> Tensor | None:
        """Return what each sample was made from, as a number: [N] int64; None where each stands alone.

        Samples made from one photograph are not independent: intervals count photographs, not samples.

        Args:
            ids: global ids of samples.
            root: as in `load`.
        """
        del ids, root
        return None

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        """Return a split, always the same samples in the same order.

        Args:
            split: "train", "validation" or "test".
            root: the folder given with `--data`, for data sets read from their published files.
        Raises: ArtefactError: files missing or not what they should be.
        """
        raise TypeError(f"{type(self).__name__} does not define load().")

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        """Return the first n samples of a split, as `load(split)[:n]` has them; all where n is None.

        Sets that are files of one sample each read no others. Raises: as `load`.
        """
        return self.load(split, root=root)[:n]

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        """Return the number of samples of a split, read from a listing or the labels where there are such.

        Raises: as `load`.
        """
        return len(self.load(split, root=root))


def place_of(text: str) -> bytes:
    """Return the hash that orders samples, so that any prefix of them is a fair sample."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def stratified(labels: np.ndarray, sizes: dict[str, int], *, salt: str) -> dict[str, np.ndarray]:
    """Split indices by class in proportion, by the hash of their position: stable for ever.

    Args:
        labels: class of every sample [N].
        sizes: split name -> number of samples; one split may be -1 for all that is left.
        salt: name of the data set and version of the split.
    Returns: split name -> indices, ordered by the hash (so that any prefix is a fair sample).
    """
    order = sorted(range(len(labels)), key=lambda i: place_of(f"{salt}:{i}"))
    total = len(labels)
    share = {name: size for name, size in sizes.items() if size >= 0}
    rest = next((name for name, size in sizes.items() if size < 0), None)
    chosen: dict[str, list[int]] = {name: [] for name in sizes}
    for label in np.unique(labels):
        members = [i for i in order if labels[i] == label]
        start = 0
        for name, size in share.items():
            stop = start + round(size * len(members) / total)
            chosen[name] += members[start:stop]
            start = stop
        if rest is not None:
            chosen[rest] += members[start:]
    position = {index: place for place, index in enumerate(order)}
    return {
        name: np.array(sorted(indices, key=position.__getitem__), dtype=np.int64)
        for name, indices in chosen.items()
    }


def as_split(x: np.ndarray, y: np.ndarray, indices: np.ndarray) -> Split:
    """Make a split of the chosen indices; ids are the indices."""
    return Split(
        torch.from_numpy(np.ascontiguousarray(x[indices], dtype=np.float32)),
        torch.from_numpy(y[indices].astype(np.int64)),
        torch.from_numpy(indices.astype(np.int64)),
    )
