"""The checks of data sets; those read from published files need the folder that holds them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.data.base import SPLITS
from robustspike.bench.data.base import Split
from robustspike.bench.errors import ArtefactError
from robustspike.bench.numbers.rng import global_randomness
from robustspike.bench.testing.check import Checks
from robustspike.bench.testing.check import CheckSkipped
from robustspike.bench.testing.check import require


@dataclass(frozen=True)
class DatasetAt:
    """A data set to check, and the folder given with `--data`."""

    dataset: Any
    root: Path | None = None

    def load(self, split: str) -> Split:
        """Load a split. Raises: CheckSkipped: its published files are not here."""
        _skip_unless_it_names_data(self.dataset)
        if self.dataset.needs_root and (self.root is None or not self.dataset.present(self.root)):
            raise CheckSkipped(
                "its published files are not here: give the folder that holds them (--data DIR)"
            )
        loaded: Split = self.dataset.load(split, root=self.root)
        return loaded


def _skip_unless_it_names_data(data: Any) -> None:
    if not data.shape and not data.classes:
        raise CheckSkipped("it names no data yet: check a call of it, e.g. 'recordings(folder=DIR)'")


def dataset_declares_itself(at: DatasetAt) -> None:
    data = at.dataset
    _skip_unless_it_names_data(data)
    require(data.name and data.name == data.name.lower(), f"name must be lower-case, got '{data.name}'")
    require(data.shape and all(size > 0 for size in data.shape), f"shape must be positive, got {data.shape}")
    least = 1 if data.task is Task.QUALITY else 2
    require(data.classes >= least, f"classes must be {least} or more for {data.task}, got {data.classes}")
    require(data.bounds[0] < data.bounds[1], f"bounds must be (low, high), got {data.bounds}")
    require(data.source, "source must say where the data come from, and their terms")


def dataset_loads_every_split(at: DatasetAt) -> None:
    data = at.dataset
    for name in SPLITS:
        split = at.load(name)
        require(len(split) > 0, f"the {name} split is empty")
        require(len(split.x) == len(split.y) == len(split.ids), f"{name}: x, y and ids differ in length")
        shape = tuple(split.x.shape[1:])
        require(shape == tuple(data.shape), f"{name}: inputs are {shape}, shape says {data.shape}")
        require(split.ids.dtype == torch.int64, f"{name}: ids must be int64, got {split.ids.dtype}")
        require(len(split.ids.unique()) == len(split), f"{name}: ids are not unique")


def dataset_keeps_its_range(at: DatasetAt) -> None:
    low, high = at.dataset.bounds
    for name in SPLITS:
        x = at.load(name).x
        require(x.is_floating_point(), f"{name}: inputs must be floating, got {x.dtype}")
        require(bool(torch.isfinite(x).all()), f"{name}: inputs hold NaN or infinity")
        least, most = float(x.min()), float(x.max())
        require(low <= least and most <= high, f"{name}: values in [{least}, {most}] leave [{low}, {high}]")
        if at.dataset.domain is Domain.SPIKES:
            require(bool(((x == low) | (x == high)).all()), f"{name}: spike frames must be binary")


def dataset_has_labels(at: DatasetAt) -> None:
    data = at.dataset
    for name in SPLITS:
        y = at.load(name).y
        if data.task is Task.QUALITY:
            require(y.dtype == torch.float64, f"{name}: quality scores must be float64, got {y.dtype}")
            require(bool(torch.isfinite(y).all()), f"{name}: quality scores hold NaN or infinity")
            continue
        require(y.dtype == torch.int64, f"{name}: labels must be int64, got {y.dtype}")
        low, high = int(y.min()), int(y.max())
        require(low >= 0 and high < data.classes, f"{name}: labels {low}..{high} of {data.classes} classes")


def dataset_is_the_same_every_time(at: DatasetAt) -> None:
    before = global_randomness()
    for name in SPLITS:
        require(at.load(name).digest == at.load(name).digest, f"{name}: loading it twice gives other samples")
    require(before == global_randomness(), "load() moved a global random generator")


def dataset_splits_share_no_sample(at: DatasetAt) -> None:
    seen: dict[tuple[int, bytes], str] = {}
    for name in SPLITS:
        split = at.load(name)
        for key in zip(split.ids.tolist(), map(_bytes, split.x), strict=True):
            require(seen.setdefault(key, name) == name, f"sample {key[0]} is in {seen[key]} and in {name}")


def _bytes(x: Tensor) -> bytes:
    return hashlib.blake2b(x.contiguous().numpy().tobytes(), digest_size=16).digest()


def dataset_names_missing_files(at: DatasetAt) -> None:
    if not at.dataset.needs_root:
        raise CheckSkipped("reads no published files")
    with TemporaryDirectory() as empty:
        try:
            at.dataset.load("test", root=Path(empty))
        except ArtefactError as error:
            require("\n" not in str(error), "the error of a missing file must be one line")
            return
    require(False, "load() from an empty folder must raise ArtefactError")


DATASET_CHECKS: Checks = {
    check.__name__: check
    for check in (
        dataset_declares_itself,
        dataset_loads_every_split,
        dataset_keeps_its_range,
        dataset_has_labels,
        dataset_is_the_same_every_time,
        dataset_splits_share_no_sample,
        dataset_names_missing_files,
    )
}
