"""Data sets that are folders of image files, one a class: Tiny-ImageNet and ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import stratified
from robustspike.bench.data.images.image_files import read_photograph
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError

_VALIDATION = 12
"""One in so many training images is held out for validation."""

_SUFFIXES = (".jpeg", ".jpg", ".png")

File = tuple[Path, int]
"""An image file and its class."""


class FolderSet(Dataset):
    """Base of folders of image files; pixel/255 in [0,1].

    A class's number is the position of its name in alphabetical order. The published training part gives
    train and, one image in 12, validation; the published validation part, which has labels, is test. Ids are
    positions in the sorted list of files, those of test images after all training ones. A split is held in
    memory: 4 bytes a value.

    Class attributes:
        folder: name of the data set's folder, looked for inside the given one.
        shrink: how the images are shrunk before the middle square is cut; see `read_photograph`.
    """

    needs_root: ClassVar[bool] = True
    folder: ClassVar[str] = ""
    shrink: ClassVar[float] = 1.0

    def home(self, root: Path) -> Path:
        """Return the folder that holds `train` and `val`: the given one, or the data set's in it."""
        inner = root / self.folder
        return inner if self.folder and (inner / "train").is_dir() else root

    def present(self, root: Path) -> bool:
        return (self.home(root) / "train").is_dir()

    def most(self) -> int:
        """Return how many files of a class are listed at most; 0 for all of them."""
        return 0

    def images_of(self, folder: Path) -> Path:
        """Return where the images of a class's training folder lie."""
        return folder

    def tested(self, home: Path, names: Sequence[str]) -> list[File]:
        """List the files of the published validation part."""
        return self._by_folder(home / "val", names)

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        if root is None:
            raise ArtefactError(f"{self.name}: say where its files are with --data DIR.")
        home = self.home(root)
        names = sorted(p.name for p in (home / "train").glob("*") if p.is_dir() and p.name[0] != ".")
        if len(names) != self.classes:
            raise ArtefactError(
                f"{self.name}: expected {self.classes} class folders in {home / 'train'}, found "
                f"{len(names)}. {self.source}"
            )
        training = self._by_folder(home / "train", names)
        files = self.tested(home, names) if split == "test" else training
        if not files:
            raise ArtefactError(f"{self.name}: no images of the {split} split under {home}. {self.source}")
        labels = np.array([label for _, label in files])
        sizes = {"test": -1} if split == "test" else {"validation": len(files) // _VALIDATION, "train": -1}
        chosen = stratified(labels, sizes, salt=f"{self.name}/1")[split]
        if not len(chosen):
            raise ArtefactError(f"{self.name}: its {split} split is empty; the folder holds too few images.")
        side = self.shape[-1]
        pixels = np.stack([read_photograph(files[i][0], side, shrink=self.shrink) for i in chosen])
        ids = chosen + (len(training) if split == "test" else 0)
        return Split(
            torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels[chosen]), torch.from_numpy(ids)
        )

    def _by_folder(self, part: Path, names: Sequence[str]) -> list[File]:
        most = self.most()
        found = []
        for label, name in enumerate(names):
            inside = self.images_of(part / name)
            files = sorted(p for p in inside.glob("*") if p.suffix.lower() in _SUFFIXES and p.name[0] != ".")
            found += [(path, label) for path in (files[:most] if most else files)]
        return found


@dataclass(frozen=True)
class TinyImageNet(FolderSet):
    """Tiny-ImageNet: 200 classes of 64x64; about 91,700 train, 8,300 validation, 10,000 test images.

    Layout: `train/WNID/images/*.JPEG`, `val/images/*.JPEG` with `val/val_annotations.txt`; the published
    test part has no labels and is not read. The training split takes 4.5 GB of memory.
    """

    name: ClassVar[str] = "tiny_imagenet"
    shape: ClassVar[tuple[int, ...]] = (3, 64, 64)
    classes: ClassVar[int] = 200
    folder: ClassVar[str] = "tiny-imagenet-200"
    source: ClassVar[str] = (
        "Stanford CS231n 2015, cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked. Terms: those of ImageNet."
    )

    def images_of(self, folder: Path) -> Path:
        return folder / "images"

    def tested(self, home: Path, names: Sequence[str]) -> list[File]:
        table = home / "val" / "val_annotations.txt"
        number = {name: label for label, name in enumerate(names)}
        try:
            rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if line]
            pairs = sorted((row[0], number[row[1]]) for row in rows)
        except (OSError, UnicodeDecodeError, LookupError) as error:
            raise ArtefactError(
                f"{table}: expected lines of file name, class, box ({type(error).__name__}: {error}). "
                "Fetch it again."
            ) from error
        if any(Path(file).name != file for file, _ in pairs):
            raise ArtefactError(f"{table}: a file name leaves its folder. Fetch it again.")
        return [(home / "val" / "images" / file, label) for file, label in pairs]


@dataclass(frozen=True, kw_only=True)
class ImageNetFolder(FolderSet):
    """ImageNet, or any folder `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`, cut to squares.

    The shorter side is shrunk to 8/7 of `side` (256 for 224) and the middle square cut.

    Args:
        classes: number of class folders.
        side: height and width of an input in pixels.
        per_class: files of a class that are read at most, first by name, in training and in test; 0 for
            all. A split is held in memory: 0.6 MB an image of 224x224.
    """

    classes: int = 1000  # type: ignore[misc]
    side: int = 224
    per_class: int = 5

    name: ClassVar[str] = "imagenet_folder"
    folder: ClassVar[str] = "imagenet"
    shrink: ClassVar[float] = 8 / 7
    source: ClassVar[str] = (
        "ILSVRC 2012, image-net.org: train/WNID/*.JPEG and val/WNID/*.JPEG. Terms: non-commercial research. "
        "For another folder give the number of its classes: imagenet_folder(classes=10)."
    )

    def __post_init__(self) -> None:
        if self.classes < 2 or self.side < 8 or self.per_class < 0:
            raise ConfigError(
                f"{self.name}: classes must be at least 2, side at least 8 and per_class 0 or more, got "
                f"{self.classes}, {self.side} and {self.per_class}."
            )

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """One input: (3, side, side)."""
        return (3, self.side, self.side)

    def most(self) -> int:
        return self.per_class
