"""photos: any folder of photographs as a test set for quality models.

They are degraded and labelled as the embedded ones are, so that a model trained on those can be judged on
scenes that it never saw; see `photopatch_iqa` for what the pseudo-MOS does not say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.contract.specs import Task
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import place_of
from robustspike.bench.data.images.image_files import read_rgb
from robustspike.bench.data.quality.photopatch_iqa import FOLDS
from robustspike.bench.data.quality.photopatch_iqa import LEVELS
from robustspike.bench.data.quality.photopatch_iqa import PATCH
from robustspike.bench.data.quality.photopatch_iqa import PER_CELL
from robustspike.bench.data.quality.photopatch_iqa import PRISTINE
from robustspike.bench.data.quality.photopatch_iqa import Photograph
from robustspike.bench.data.quality.photopatch_iqa import PhotopatchIqa
from robustspike.bench.data.quality.photopatch_iqa import cached
from robustspike.bench.data.quality.photopatch_iqa import degraded_patches
from robustspike.bench.data.quality.photopatch_iqa import prepare
from robustspike.bench.data.quality.photos import PHOTOGRAPHS
from robustspike.bench.data.quality.photos import available_degradations
from robustspike.bench.data.quality.photos import path_of
from robustspike.bench.data.quality.photos import versions
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import cache_folder
from robustspike.bench.files import sha256

VERSION = 1

_SUFFIXES = {".png": (1.0, 0.5), ".jpg": (0.75, 0.5), ".jpeg": (0.75, 0.5)}
"""Suffix -> the two scales of a photograph; three quarters remove JPEG's own blocks."""

_LEAST = 2 * PATCH

_HELD_OUT = FOLDS[0]["test"]


@dataclass(frozen=True)
class _File:
    path: Path
    digest: str


@dataclass(frozen=True)
class Photos(Dataset):
    """64x64 patches of the photographs below a folder, with seven degradations at five levels.

    Test is every PNG and JPEG below the given folder and, with `embedded`, the three photographs that the
    embedded set holds out; train and validation are the embedded set's. A photograph that the embedded set
    trains on is refused. Any prefix of the test split holds every photograph about equally often.

    EXIF rotation is applied; of 16 bits the upper 8 are kept; floating-point files and transparent ones are
    refused; CMYK is converted without its profile. Files of the same bytes are one photograph.

    Args:
        embedded: whether the embedded set's test photographs are scored too.
        limit: photographs that are read at most, in the order of the hash of their bytes; 0 for all.
        longest: a larger photograph is first shrunk to so many pixels on its longer side.

    Cost: about a second a photograph, once; then from the cache.
    """

    embedded: bool = True
    limit: int = 64
    longest: int = 1024

    name: ClassVar[str] = "photos"
    shape: ClassVar[tuple[int, ...]] = (3, PATCH, PATCH)
    classes: ClassVar[int] = 1
    task: ClassVar[Task] = Task.QUALITY
    needs_root: ClassVar[bool] = True
    score_label: ClassVar[str] = PhotopatchIqa.score_label
    source: ClassVar[str] = "A folder of photographs, given with --data. Labels: HaarPSI (pseudo-MOS)."

    def __post_init__(self) -> None:
        if self.limit < 0 or self.longest < 2 * _LEAST:
            raise ConfigError(
                f"photos: limit must be 0 or more and longest at least {2 * _LEAST}, got {self.limit} and "
                f"{self.longest}."
            )

    def present(self, root: Path) -> bool:
        return next(_images(root), None) is not None

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None, root=root)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        return len(self._order(split, root))

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        ids = self._order(split, root)[:n]
        table = self._table(root)
        return Split(table["x"][ids].float() / 255, table["mos"][ids], ids)

    def sources(self, ids: Tensor, *, root: Path | None = None) -> Tensor:
        """Return for each patch the number of its photograph; the embedded ones come first."""
        return self._table(root)["photograph"][ids]

    def _order(self, split: SplitName, root: Path | None) -> Tensor:
        """Return the ids of a split: of the test split photograph by photograph in turns."""
        own = PhotopatchIqa().indices(split)
        if split != "test":
            return own
        photograph = self._table(root)["photograph"]
        chosen = (photograph >= len(PHOTOGRAPHS)).nonzero().squeeze(1)
        chosen = torch.cat([own, chosen]) if self.embedded else chosen
        turns: dict[int, int] = {}
        placed: list[tuple[int, int, int]] = []
        for i in sorted(chosen.tolist(), key=lambda i: place_of(f"photos/{VERSION}:{i}")):
            turn = turns[int(photograph[i])] = turns.get(int(photograph[i]), -1) + 1
            placed.append((turn, len(placed), i))
        return torch.tensor([i for _, _, i in sorted(placed)])

    def _table(self, root: Path | None) -> dict[str, Tensor]:
        """Return the embedded table with the folder's behind it."""
        if root is None:
            raise ArtefactError("photos: say where the photographs are with --data DIR.")
        return _joined(tuple(_files(root, self.limit)), self.longest, cache_folder())


@lru_cache(maxsize=2)
def _joined(files: tuple[_File, ...], longest: int, folder: Path) -> dict[str, Tensor]:
    parts = (VERSION, PATCH, PER_CELL, PRISTINE, LEVELS, available_degradations(), versions(), longest)
    digests = [file.digest for file in files]
    key = sha256(repr((parts, digests)).encode())[:16]
    read = {file.digest: file.path for file in files}
    photographs = [Photograph(file.digest, _SUFFIXES[file.path.suffix.lower()]) for file in files]
    table = cached(
        folder / f"photos-{key}.safetensors",
        lambda: degraded_patches(photographs, lambda name, scale: _shrunk(read[name], scale, longest)),
    )
    first = prepare()
    moved = {"photograph": len(PHOTOGRAPHS), "image": int(first["image"].max()) + 1}
    return {name: torch.cat([column, table[name] + moved.get(name, 0)]) for name, column in first.items()}


def _files(root: Path, limit: int) -> list[_File]:
    """List the photographs of a folder by the hash of their bytes.

    Raises: ArtefactError: there is none, or one that the embedded set trains on.
    """
    known = {_digest_of(path_of(name)): name for name in PHOTOGRAPHS}
    found: dict[str, Path] = {}
    for path in _images(root):
        found.setdefault(_digest_of(path), path)
    for digest, path in found.items():
        if known.get(digest, _HELD_OUT[0]) not in _HELD_OUT:
            raise ArtefactError(
                f"{path}: this is the photograph '{known[digest]}', on which the shipped quality models were "
                "trained. Take it out of the folder: a test photograph must be new to them."
            )
    if not found:
        raise ArtefactError(f"{root}: no photograph below it. Expected PNG or JPEG files.")
    return [_File(found[digest], digest) for digest in sorted(found)[: limit or None]]


def _images(root: Path) -> Iterator[Path]:
    every = (p for p in sorted(root.rglob("*")) if p.suffix.lower() in _SUFFIXES and p.is_file())
    return (p for p in every if not any(part.startswith(".") for part in p.relative_to(root).parts))


def _shrunk(path: Path, scale: float, longest: int) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(read_rgb(path, upright=True))
    if min(image.size) < _LEAST:
        raise ArtefactError(
            f"{path}: {image.width}x{image.height} pixels; a photograph needs at least {_LEAST} on its "
            "shorter side."
        )
    factor = scale * min(1.0, longest / max(image.size))
    if factor == 1.0:
        return np.asarray(image)
    size = (round(image.width * factor), round(image.height * factor))
    if min(size) < PATCH:
        raise ArtefactError(
            f"{path}: {image.width}x{image.height} pixels, too narrow for patches of {PATCH} once its "
            f"longer side is {longest}. Crop it."
        )
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def _digest_of(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _sha256(path: Path, *stamp: int) -> str:
    del stamp
    return sha256(path.read_bytes())
