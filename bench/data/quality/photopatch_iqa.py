"""photopatch_iqa: real photographs, degraded by degrees, labelled by a full-reference metric.

The label is a *pseudo*-MOS: 100 times the HaarPSI of a degraded patch against its original. It says
nothing about human opinion; only ranks within this set are comparable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save
from torch import Tensor

from robustspike.bench.contract.specs import Task
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import place_of
from robustspike.bench.data.quality.photos import CREDITS
from robustspike.bench.data.quality.photos import DEGRADATIONS
from robustspike.bench.data.quality.photos import PHOTOGRAPHS
from robustspike.bench.data.quality.photos import available_degradations
from robustspike.bench.data.quality.photos import degrade
from robustspike.bench.data.quality.photos import fingerprint
from robustspike.bench.data.quality.photos import photograph
from robustspike.bench.data.quality.photos import scales_of
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import cache_folder
from robustspike.bench.files import write_atomic
from robustspike.bench.numbers.image_quality import haarpsi
from robustspike.bench.numbers.rng import stable_hash

VERSION = 1
PATCH = 64
PER_CELL = 8
PRISTINE = 24
LEVELS = 5

FOLDS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"test": ("coffee", "china", "camera"), "validation": ("coins",)},
    {"test": ("astronaut", "rocket", "brick"), "validation": ("coins",)},
)
"""Photographs of the test and validation split; all others are for training."""

log = logging.getLogger(__name__)

BuildProgress = Callable[[int, int], None]
"""Called with (degraded photographs so far, all of them)."""


@dataclass(frozen=True)
class PhotopatchIqa(Dataset):
    """64x64 patches of eleven photographs at two scales, seven degradations, five levels.

    Built at first use (deterministic, well below a minute) and cached. Split by source photograph,
    never by patch: no photograph lies on both sides of a split.

    Args:
        fold: which photographs are held out: 0 coffee, china, camera; 1 astronaut, rocket, brick.
    """

    fold: int = 0

    name: ClassVar[str] = "photopatch_iqa"
    shape: ClassVar[tuple[int, ...]] = (3, PATCH, PATCH)
    classes: ClassVar[int] = 1
    task: ClassVar[Task] = Task.QUALITY
    score_label: ClassVar[str] = "pseudo-MOS (HaarPSI)"
    source: ClassVar[str] = f"Photographs inside installed wheels. {CREDITS} Labels: HaarPSI (pseudo-MOS)."

    def __post_init__(self) -> None:
        if self.fold not in range(len(FOLDS)):
            raise ConfigError(f"photopatch_iqa: fold must be 0 to {len(FOLDS) - 1}, got {self.fold}.")

    def prepare(self, progress: BuildProgress | None = None) -> None:
        prepare(progress)

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        del root
        return len(self.indices(split))

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        del root
        table = prepare()
        index = self.indices(split)[:n]
        return Split(table["x"][index].float().div_(255), table["mos"][index], index)

    def sources(self, ids: Tensor, *, root: Path | None = None) -> Tensor:
        """Return for each patch the number of its photograph."""
        del root
        return prepare()["photograph"][ids]

    def indices(self, split: SplitName) -> Tensor:
        """Return the ids of a split, ordered by a hash (so that any prefix is a fair sample)."""
        place = {name: part for part, names in FOLDS[self.fold].items() for name in names}
        codes = [i for i, name in enumerate(PHOTOGRAPHS) if place.get(name, "train") == split]
        members = torch.isin(prepare()["photograph"], torch.tensor(codes)).nonzero().squeeze(1).tolist()
        return torch.tensor(sorted(members, key=lambda i: place_of(f"photopatch_iqa/{VERSION}:{i}")))

    def images(self, ids: Tensor) -> Tensor:
        """Return for each patch the number of the degraded photograph that it was cut from."""
        return prepare()["image"][ids]


def prepare(progress: BuildProgress | None = None) -> dict[str, Tensor]:
    """Return the whole table, from memory, from the cache, or by building it.

    Returns: x [N, 3, 64, 64] uint8, mos [N] float64, and int64 columns photograph, scale, degradation
        (-1: none), level (0: pristine) and image (one number per degraded photograph).
    """
    return _prepare(cache_folder(), progress)


_tables: dict[Path, dict[str, Tensor]] = {}


def _prepare(folder: Path, progress: BuildProgress | None) -> dict[str, Tensor]:
    path = folder / f"photopatch_iqa-{_key()}.safetensors"
    if path not in _tables:
        table = cached(path, lambda: build(progress))
        _tables.clear()
        _tables[path] = table
    return _tables[path]


def cached(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the table of a file, or make it and write it there (where that can be done)."""
    table = _read(path)
    if table is None:
        log.info("building %s (first use)", path.name.split("-")[0])
        table = make()
        _write(path, table)
    return table


@lru_cache(maxsize=1)
def _key() -> str:
    parts = (VERSION, PATCH, PER_CELL, PRISTINE, available_degradations(), fingerprint())
    return place_of(str(parts)).hex()[:16]


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        table: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("%s: not readable (%s); building it again", path, error)
        return None
    return table


def _write(path: Path, table: dict[str, Tensor]) -> None:
    try:
        write_atomic(path, save(table))
    except ArtefactError as error:
        log.warning("%s: cannot be cached (%s); it is built again next time", path, error)


def build(progress: BuildProgress | None = None) -> dict[str, Tensor]:
    """Build the table from the embedded photographs; the same bytes every time in one environment."""
    return degraded_patches([Photograph(name, scales_of(name)) for name in PHOTOGRAPHS], photograph, progress)


@dataclass(frozen=True)
class Photograph:
    """A photograph to cut patches from.

    Args:
        name: what its random numbers are drawn for.
        scales: the two factors by which it is shrunk.
    """

    name: str
    scales: tuple[float, float]


def degraded_patches(
    photographs: Sequence[Photograph],
    read: Callable[[str, float], np.ndarray],
    progress: BuildProgress | None = None,
) -> dict[str, Tensor]:
    """Degrade whole photographs, cut patches and label them; the table that `prepare` describes.

    Args:
        photographs: at least one; column `photograph` counts them from 0.
        read: (name, scale) -> the shrunk photograph [H, W, 3] uint8, each side at least `PATCH`.
    """
    columns: dict[str, list[np.ndarray]] = {"x": [], "original": []}
    about: list[tuple[int, ...]] = []
    cells = [("none", 0)] + [(d, n + 1) for d in available_degradations() for n in range(LEVELS)]
    total, image_number = len(photographs) * 2 * len(cells), 0
    for code, picture in enumerate(photographs):
        for position, scale in enumerate(picture.scales):
            original = read(picture.name, scale)
            for degradation, level in cells:
                rng = np.random.default_rng(
                    stable_hash("photopatch", picture.name, scale, degradation, level) % 2**63
                )
                bad = original if level == 0 else degrade(original, degradation, level, rng)
                places = _places(original, PER_CELL if level else PRISTINE, rng)
                columns["x"].append(_cut(bad, places))
                columns["original"].append(_cut(original, places))
                kind = list(DEGRADATIONS).index(degradation) if level else -1
                about += [(code, position, kind, level, image_number)] * len(places)
                image_number += 1
                if progress is not None:
                    progress(image_number, total)
    x, original_patches = (torch.from_numpy(np.concatenate(columns[k])) for k in ("x", "original"))
    described = torch.tensor(about, dtype=torch.int64)
    names = ("photograph", "scale", "degradation", "level", "image")
    table = {key: described[:, i].contiguous() for i, key in enumerate(names)}
    return {"x": x, "mos": pseudo_mos(original_patches, x), **table}


def pseudo_mos(original: Tensor, degraded: Tensor) -> Tensor:
    """Return 100 * HaarPSI of uint8 patches, in double precision, rounded to 3 decimals: [N]."""
    parts = [
        haarpsi(a.double() / 255, b.double() / 255)
        for a, b in zip(original.split(128), degraded.split(128), strict=True)
    ]
    return (100 * torch.cat(parts)).round(decimals=3)


def _places(image: np.ndarray, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draw three times too many places, drop the flatter third, keep the first `count`."""
    grey = image.mean(axis=2)
    rows = rng.integers(0, image.shape[0] - PATCH + 1, 3 * count)
    cols = rng.integers(0, image.shape[1] - PATCH + 1, 3 * count)
    spread = np.array([grey[r : r + PATCH, c : c + PATCH].std() for r, c in zip(rows, cols, strict=True)])
    rich = np.sort(np.argsort(spread, kind="stable")[count:])[:count]
    return [(int(rows[i]), int(cols[i])) for i in rich]


def _cut(image: np.ndarray, places: list[tuple[int, int]]) -> np.ndarray:
    patches = [image[r : r + PATCH, c : c + PATCH].transpose(2, 0, 1) for r, c in places]
    return np.ascontiguousarray(np.stack(patches))


FOLD_2 = PhotopatchIqa(fold=1)
