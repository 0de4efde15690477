"""Published image data sets, read from their own files: MNIST, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.base import as_split
from robustspike.bench.data.base import stratified
from robustspike.bench.data.images.image_files import Bytes
from robustspike.bench.data.images.image_files import read_cifar_binary
from robustspike.bench.data.images.image_files import read_cifar_pickle
from robustspike.bench.data.images.image_files import read_idx
from robustspike.bench.errors import ArtefactError

_VALIDATION = 12
"""One in so many training images is held out for validation."""


@lru_cache(maxsize=4)
def _idx_pair(images: Path, labels: Path, stamp: tuple[int, int]) -> tuple[Bytes, Bytes]:
    del stamp  # part of the key: a file that changed is read again
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or x.shape[1:] != (28, 28) or y.ndim != 1 or len(x) != len(y):
        raise ArtefactError(
            f"{images}: images {x.shape} and labels {y.shape} do not belong together. Fetch both again."
        )
    if y.max() > 9:
        raise ArtefactError(f"{labels}: a label is {y.max()}, but there are classes 0 to 9.")
    return x[:, None], y


def _places(y: Bytes, split: SplitName, *, name: str) -> np.ndarray:
    """Return the positions of a split's samples in their published part, in the split's order."""
    if split == "test":
        return stratified(y, {"test": -1}, salt=f"{name}/test/1")["test"]
    sizes = {"validation": len(y) // _VALIDATION, "train": -1}
    return stratified(y, sizes, salt=f"{name}/1")[split]


def _select(x: Bytes, y: Bytes, split: SplitName, n: int | None, *, name: str, first_test_id: int) -> Split:
    """Return the first n samples of a split; test ids follow the ids of the training part."""
    offset = first_test_id if split == "test" else 0
    found = as_split(x, y, _places(y, split, name=name)[:n])
    return Split(found.x / 255, found.y, found.ids + offset)


class IdxSet(Dataset):
    """Base of the data sets in MNIST's format.

    The published training part gives train and, one image in 12, validation; the published test part,
    in hashed order, gives test. Ids are positions in the files, those of test images after all others.
    """

    shape: ClassVar[tuple[int, ...]] = (1, 28, 28)
    classes: ClassVar[int] = 10
    needs_root: ClassVar[bool] = True
    folder: ClassVar[str] = ""

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None, root=root)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        return len(_places(self._part(split, root)[1], split, name=self.name))

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        return _select(*self._part(split, root), split, n, name=self.name, first_test_id=60_000)

    def _part(self, split: SplitName, root: Path | None) -> tuple[Bytes, Bytes]:
        part = "t10k" if split == "test" else "train"
        images = self._find(root, f"{part}-images-idx3-ubyte")
        labels = self._find(root, f"{part}-labels-idx1-ubyte")
        stamp = (images.stat().st_mtime_ns, labels.stat().st_mtime_ns)
        return _idx_pair(images, labels, stamp)

    def _find(self, root: Path | None, name: str) -> Path:
        if root is None:
            raise ArtefactError(f"{self.name}: say where its files are with --data DIR.")
        places = [root / self.folder / "raw", root / self.folder, root / "raw", root]
        for place in places:
            for path in (place / f"{name}.gz", place / name):
                if path.is_file():
                    return path
        raise ArtefactError(
            f"{self.name}: no file {name}.gz in {root} or {self.folder}/raw there. {self.source}"
        )


@dataclass(frozen=True)
class Mnist(IdxSet):
    """MNIST, pixel/255 in [0,1]: 55,000 train, 5,000 validation, 10,000 test (class by class, so nearly)."""

    name: ClassVar[str] = "mnist"
    folder: ClassVar[str] = "MNIST"
    source: ClassVar[str] = (
        "Y. LeCun, C. Cortes, C. J. C. Burges: the four files *-ubyte.gz. Licence: CC BY-SA 3.0."
    )


@dataclass(frozen=True)
class FashionMnist(IdxSet):
    """Fashion-MNIST, pixel/255 in [0,1]: 55,000 train, 5,000 validation, 10,000 test."""

    name: ClassVar[str] = "fashion_mnist"
    folder: ClassVar[str] = "FashionMNIST"
    source: ClassVar[str] = "H. Xiao, K. Rasul, R. Vollgraf 2017: the four files *-ubyte.gz. Licence: MIT."


@lru_cache(maxsize=4)
def _cifar(paths: tuple[Path, ...], stamps: tuple[int, ...]) -> tuple[Bytes, Bytes]:
    del stamps
    parts = [read_cifar_binary(p) if p.suffix == ".bin" else read_cifar_pickle(p) for p in paths]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


@dataclass(frozen=True)
class Cifar10(Dataset):
    """CIFAR-10, pixel/255 in [0,1], from the binary or the python version.

    Ids are positions in the training batches in order, those of test images from 50,000 on. A folder
    with fewer batches, or shorter ones, is read as it is; the digest of the data tells it apart.
    """

    name: ClassVar[str] = "cifar10"
    shape: ClassVar[tuple[int, ...]] = (3, 32, 32)
    classes: ClassVar[int] = 10
    needs_root: ClassVar[bool] = True
    source: ClassVar[str] = (
        "A. Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html: cifar-10-binary.tar.gz, unpacked."
    )

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None, root=root)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        return len(_places(self._part(split, root)[1], split, name=self.name))

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        return _select(*self._part(split, root), split, n, name=self.name, first_test_id=50_000)

    def _part(self, split: SplitName, root: Path | None) -> tuple[Bytes, Bytes]:
        paths = self._batches(root, test=split == "test")
        return _cifar(paths, tuple(path.stat().st_mtime_ns for path in paths))

    def _batches(self, root: Path | None, *, test: bool) -> tuple[Path, ...]:
        if root is None:
            raise ArtefactError(f"{self.name}: say where its files are with --data DIR.")
        names = ["test_batch"] if test else [f"data_batch_{i}" for i in range(1, 6)]
        for place in (root / "cifar-10-batches-bin", root / "cifar-10-batches-py", root):
            for suffix in (".bin", ""):
                found = tuple(p for p in (place / f"{name}{suffix}" for name in names) if p.is_file())
                if found:
                    return found
        raise ArtefactError(f"{self.name}: no {names[0]}.bin or {names[0]} under {root}. {self.source}")
