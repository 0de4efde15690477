"""Published image data sets, read from their own files: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

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
from robustspike.bench.data.download import Published
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


def _idx_files(
    base: str, folder: str, images: str, labels: str, test_images: str, test_labels: str
) -> tuple[Published, ...]:
    """Return the four published files of a data set in MNIST's format, by their checksums."""
    sums = {
        "train-images-idx3": images,
        "train-labels-idx1": labels,
        "t10k-images-idx3": test_images,
        "t10k-labels-idx1": test_labels,
    }
    return tuple(
        Published(f"{base}/{name}-ubyte.gz", checksum, f"{name}-ubyte.gz", folder)
        for name, checksum in sums.items()
    )


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
    downloads: ClassVar[tuple[Published, ...]] = _idx_files(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "MNIST/raw",
        "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "md5:9fb629c4189551a2d022fa330f9573f3",
        "md5:ec29112dd5afa0611ce80d1b7f02629c",
    )
    source: ClassVar[str] = (
        "Y. LeCun, C. Cortes, C. J. C. Burges: the four files *-ubyte.gz. Licence: CC BY-SA 3.0."
    )


@dataclass(frozen=True)
class FashionMnist(IdxSet):
    """Fashion-MNIST, pixel/255 in [0,1]: 55,000 train, 5,000 validation, 10,000 test."""

    name: ClassVar[str] = "fashion_mnist"
    folder: ClassVar[str] = "FashionMNIST"
    downloads: ClassVar[tuple[Published, ...]] = _idx_files(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "FashionMNIST/raw",
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "md5:25c81989df183df01b3e8a0aad5dffbe",
        "md5:bef4ecab320f06d8554ea6380940ec79",
        "md5:bb300cfdad3c16e7a12a480ee83cd310",
    )
    source: ClassVar[str] = "H. Xiao, K. Rasul, R. Vollgraf 2017: the four files *-ubyte.gz. Licence: MIT."


@lru_cache(maxsize=4)
def _cifar(paths: tuple[Path, ...], stamps: tuple[int, ...], classes: int) -> tuple[Bytes, Bytes]:
    del stamps
    parts = [
        (read_cifar_binary if path.suffix == ".bin" else read_cifar_pickle)(path, classes=classes)
        for path in paths
    ]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


class CifarSet(Dataset):
    """Base of CIFAR-10 and CIFAR-100, pixel/255 in [0,1], from the binary or the python version.

    Ids are positions in the training batches in order, those of test images from 50,000 on. A folder
    with fewer batches, or shorter ones, is read as it is; the digest of the data tells it apart.

    Class attributes:
        folders: where the batches lie below the folder given with --data, besides that folder itself.
        batches: names, without suffix, of the training batches and of the test batches.
    """

    shape: ClassVar[tuple[int, ...]] = (3, 32, 32)
    needs_root: ClassVar[bool] = True
    folders: ClassVar[tuple[str, str]] = ("", "")
    batches: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ())

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None, root=root)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        return len(_places(self._part(split, root)[1], split, name=self.name))

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        return _select(*self._part(split, root), split, n, name=self.name, first_test_id=50_000)

    def _part(self, split: SplitName, root: Path | None) -> tuple[Bytes, Bytes]:
        paths = self._batches(root, test=split == "test")
        return _cifar(paths, tuple(path.stat().st_mtime_ns for path in paths), self.classes)

    def _batches(self, root: Path | None, *, test: bool) -> tuple[Path, ...]:
        if root is None:
            raise ArtefactError(f"{self.name}: say where its files are with --data DIR.")
        names = self.batches[test]
        for place in (*(root / folder for folder in self.folders), root):
            for suffix in (".bin", ""):
                found = tuple(p for p in (place / f"{name}{suffix}" for name in names) if p.is_file())
                if found:
                    return found
        raise ArtefactError(f"{self.name}: no {names[0]}.bin or {names[0]} under {root}. {self.source}")


@dataclass(frozen=True)
class Cifar10(CifarSet):
    """CIFAR-10: 45,833 train, 4,167 validation, 10,000 test (class by class, so nearly)."""

    name: ClassVar[str] = "cifar10"
    classes: ClassVar[int] = 10
    folders: ClassVar[tuple[str, str]] = ("cifar-10-batches-bin", "cifar-10-batches-py")
    batches: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        ("test_batch",),
    )
    downloads: ClassVar[tuple[Published, ...]] = (
        Published(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-binary.tar.gz",
            unpacks=("cifar-10-batches-bin/*.bin",),
        ),
    )
    source: ClassVar[str] = (
        "A. Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html: cifar-10-binary.tar.gz, unpacked. "
        "robustspike download cifar10 fetches it."
    )


@dataclass(frozen=True)
class Cifar100(CifarSet):
    """CIFAR-100 with its fine labels: 45,833 train, 4,167 validation, 10,000 test (nearly)."""

    name: ClassVar[str] = "cifar100"
    classes: ClassVar[int] = 100
    folders: ClassVar[tuple[str, str]] = ("cifar-100-binary", "cifar-100-python")
    batches: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("train",), ("test",))
    downloads: ClassVar[tuple[Published, ...]] = (
        Published(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "md5:03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-binary.tar.gz",
            unpacks=("cifar-100-binary/train.bin", "cifar-100-binary/test.bin"),
        ),
    )
    source: ClassVar[str] = (
        "A. Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html: cifar-100-binary.tar.gz, unpacked. "
        "robustspike download cifar100 fetches it."
    )
