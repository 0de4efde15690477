"""One's own samples as a data set: an .npz, .pt or .safetensors file, or a folder of images, one a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import Task
from robustspike.bench.data.base import Dataset
from robustspike.bench.data.base import Split
from robustspike.bench.data.base import SplitName
from robustspike.bench.data.images.image_files import read_rgb
from robustspike.bench.data.quality.quality_tables import Files
from robustspike.bench.data.quality.quality_tables import read_table
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import BenchError

INPUTS = ("x", "inputs", "images", "data", "frames", "x_test", "test_x")
LABELS = ("y", "labels", "label", "targets", "target", "y_test", "test_y", "scores", "mos")
_PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class ArrayData(Dataset):
    """The samples of a file or folder, all of them the test split, in their own order.

    Args:
        path: the file, with inputs and labels under any of their usual names, or a folder of class folders
            of images of one size (a class's number is the place of its name in alphabetical order).
    """

    path: str = ""

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        del root
        x, y = read_samples(Path(self.path), scores=self.task is Task.QUALITY)
        rows = slice(None) if split == "test" else slice(0)  # nothing is kept for training
        return Split(x[rows], y[rows], torch.arange(len(x))[rows])


@dataclass(frozen=True)
class Described:
    """What samples are: one input without the batch axis, classes, domain."""

    shape: tuple[int, ...]
    classes: int
    domain: Domain
    bounds: tuple[float, float] = (0.0, 1.0)
    task: Task = Task.CLASSIFY


def describe(x: Tensor, y: Tensor) -> Described:
    """Say what samples are: images [N, C, H, W], or events [N, T, C, H, W], binary or counts.

    Labels that are no whole numbers are quality scores.
    """
    if y.is_floating_point():
        return Described(tuple(x.shape[1:]), 1, Domain.STATIC, task=Task.QUALITY)
    domain = Domain.STATIC
    if x.dim() == 5:
        domain = Domain.SPIKES if bool(((x == 0) | (x == 1)).all()) else Domain.EVENTS
    bounds = (0.0, max(1.0, float(x.max()))) if domain is Domain.EVENTS else Dataset.bounds
    return Described(tuple(x.shape[1:]), max(2, int(y.max()) + 1), domain, bounds)


def read_samples(path: Path, *, scores: bool = False) -> tuple[Tensor, Tensor]:
    """Read inputs [N, ...] in [0, 1] (event counts as they are) and labels [N] from a file or folder.

    Bytes 0..255 are divided by 255; images [N, H, W] and [N, H, W, C] get their channel axis in front.

    Args:
        scores: the labels are quality scores, returned as float64; a folder then holds images and a
            scores.csv with the columns image and score.

    Raises: ArtefactError: not readable, no such arrays, or values that are no raw pixels.
    """
    if not path.exists():
        raise ArtefactError(f"--data {path}: no such file or folder, and no data set of that name.")
    read = _file if not path.is_dir() else _rated_folder if scores else _folder
    return as_samples(*read(path), where=str(path), scores=scores)


def as_samples(x: Any, y: Any, *, where: str, scores: bool = False) -> tuple[Tensor, Tensor]:
    """Turn arrays or tensors into inputs and labels; see `read_samples`. Raises: ArtefactError."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if scores:
        y = y.double().flatten()
        if x.dim() == 5 or not bool(torch.isfinite(y).all()):
            raise ArtefactError(f"{where}: quality scores are finite numbers, one for each image.")
    elif y.dim() == 2 and y.shape[1] > 1 and len(y) == len(x):
        y = y.argmax(dim=1)  # one-hot
    y = y.flatten() if scores else y.flatten().to(torch.int64)
    if len(x) != len(y) or not len(x):
        raise ArtefactError(f"{where}: {len(x)} inputs and {len(y)} labels. Give one label per input.")
    if x.dim() == 3:
        x = x.unsqueeze(1)
    elif x.dim() == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.movedim(3, 1)
    if x.dtype == torch.uint8 and x.dim() == 4:
        x = x.float() / 255
    x = x.float().contiguous()
    if not bool(torch.isfinite(x).all()):
        raise ArtefactError(f"{where}: inputs hold NaN or infinity.")
    low, high = float(x.min()), float(x.max())
    if x.dim() == 4 and low < 0:
        raise ArtefactError(
            f"{where}: inputs lie in [{low:.3g}, {high:.3g}], so they are normalised already. Give raw "
            "pixels in [0, 1], and the normalisation as --mean and --std: budgets are in pixels."
        )
    if x.dim() == 4 and high > 1:
        raise ArtefactError(
            f"{where}: inputs lie in [{low:.3g}, {high:.3g}]; expected [0, 1]. Divide pixels by 255, or "
            "store them as uint8."
        )
    if x.dim() == 5 and (low < 0 or not bool((x == x.round()).all())):
        raise ArtefactError(
            f"{where}: event frames in [{low:.3g}, {high:.3g}] that hold no whole counts; expected 0, 1, 2, "
            "... events a cell. Give the frames before they are normalised; a scale belongs into the network."
        )
    if not scores and int(y.min()) < 0:
        raise ArtefactError(f"{where}: the label {int(y.min())} is negative; classes count from 0.")
    return x, y


def _file(path: Path) -> tuple[Any, Any]:
    kind = path.suffix.lower()
    try:
        if kind == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                held: Any = {name: stored[name] for name in stored.files}
        elif kind in (".pt", ".pth"):
            held = torch.load(path, map_location="cpu", weights_only=True)
        elif kind == ".safetensors":
            from safetensors.torch import load_file

            held = load_file(path)
        else:
            raise ArtefactError(f"{path}: expected .npz, .pt, .safetensors or a folder of class folders.")
    except ArtefactError:
        raise
    except Exception as error:
        raise ArtefactError(f"{path}: cannot be read as {kind} ({error}).") from error
    if isinstance(held, tuple | list) and len(held) == 2:
        return held[0], held[1]
    if not isinstance(held, Mapping):
        raise ArtefactError(f"{path}: holds a {type(held).__name__}; expected inputs and labels by name.")
    return _named(held, INPUTS, path, "inputs"), _named(held, LABELS, path, "labels")


def _named(held: Mapping[str, Any], names: tuple[str, ...], path: Path, what: str) -> Any:
    known = {key.lower(): value for key, value in held.items()}
    for name in names:
        if name in known:
            return known[name]
    raise ArtefactError(
        f"{path}: no {what} among its arrays {', '.join(sorted(held))}. Name them one of {', '.join(names)}."
    )


def _rated_folder(path: Path) -> tuple[Any, Any]:
    """Read the images that scores.csv names, all of one size, and their scores."""
    table = path / "scores.csv"
    if not table.is_file():
        raise ArtefactError(f"{path}: no scores.csv in it. Expected lines 'image,score' under that heading.")
    pixels, scores, files = [], [], Files(path)
    try:
        for row in read_table(table):
            *folders, name = row["image"].split("/")
            pixels.append(read_rgb(files.find(*folders, name=name), upright=True))
            scores.append(float(row["score"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BenchError):
            raise
        raise ArtefactError(f"{table}: expected lines 'image,score' under that heading ({error}).") from error
    sizes = sorted({image.shape[:2] for image in pixels})
    if len(sizes) != 1:
        raise ArtefactError(f"{table}: expected images of one size, got {len(sizes)} sizes: {sizes[:3]}.")
    return np.stack(pixels), np.array(scores)


def _folder(path: Path) -> tuple[Any, Any]:
    from skimage.io import imread

    names = sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != ".")
    pixels, labels, first = [], [], None
    for label, name in enumerate(names):
        for file in sorted(p for p in (path / name).iterdir() if p.suffix.lower() in _PICTURES):
            picture = np.asarray(imread(file))
            picture = picture[..., :3] if picture.ndim == 3 else picture
            if first is not None and picture.shape != first.shape:
                raise ArtefactError(
                    f"{file}: is {picture.shape}, other images here are {first.shape}. Give one size."
                )
            first = picture
            pixels.append(picture)
            labels.append(label)
    if not pixels and {"train", "test"} <= set(names):
        raise ArtefactError(
            f'{path}: holds train/ and test/. Event recordings are given as --data "recordings(folder='
            f"'{path}', steps=10)\", with counts=N where the network sees event counts."
        )
    if not pixels:
        raise ArtefactError(f"{path}: no class folders with images ({', '.join(_PICTURES)}).")
    return np.stack(pixels), np.array(labels)
