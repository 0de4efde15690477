"""Published image quality data sets, read from their own layouts; nothing is downloaded.

Scores are brought to 0..100, larger is better (LIVE's DMOS leaves 0..100 a little, and so do its scores);
the raw value is kept beside. Images are cut to a square in the middle, so that a split is one tensor; splits
never share a reference image.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
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
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError

_LEAST_SPREAD = 1 / 8
"""Share of the scale that the best rating must reach: every published set has good and bad images."""


@dataclass(frozen=True)
class Entry:
    """One rated image.

    Args:
        path: where it lies.
        score: 0..100, larger is better.
        raw: the published value.
        reference: name of the undistorted image; "" where there is none.
        distortion: published name or number of the distortion; "" where unknown.
        level: its strength from 1; 0 where unknown.
        split: official split; "" where there is none.
    """

    path: Path
    score: float
    raw: float
    reference: str = ""
    distortion: str = ""
    level: int = 0
    split: str = ""


@dataclass(frozen=True)
class RatedImages(Dataset):
    """Base of the published sets.

    Args:
        crop: side of the square cut from the middle of every image.
        limit: images read per split, in the order of a hash (a fair sample); 0 for all.

    Class attributes:
        folder: name of the set's folder, which --data may point to or contain.
        table: a file of the set that must be there.
        rated: the range of the published values, (lowest, highest).
    """

    crop: int = 224
    limit: int = 512

    classes: ClassVar[int] = 1
    task: ClassVar[Task] = Task.QUALITY
    needs_root: ClassVar[bool] = True
    folder: ClassVar[str] = ""
    table: ClassVar[str] = ""
    rated: ClassVar[tuple[float, float]] = (0.0, 100.0)

    def __post_init__(self) -> None:
        if self.crop < 1 or self.limit < 0:
            raise ConfigError(
                f"{self.name}: crop must be at least 1 and limit 0 or more, got {self.crop} and {self.limit}."
            )

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """One input: (3, crop, crop)."""
        return (3, self.crop, self.crop)

    def home(self, root: Path) -> Path | None:
        """Return the set's own folder: --data itself, or the folder of its name below; None without."""
        return next((place for place in (root, root / self.folder) if (place / self.table).is_file()), None)

    def present(self, root: Path) -> bool:
        return self.home(root) is not None

    def rows(self, home: Path) -> Iterator[Entry]:
        """Yield the entries of the set's own tables."""
        raise TypeError(f"{type(self).__name__} does not define rows().")

    def entries(self, root: Path) -> list[Entry]:
        """Return every rated image. Raises: ArtefactError: not the published layout."""
        home = self.home(root)
        if home is None:
            raise ArtefactError(
                f"{self.name}: no {self.table} in {root} or {root / self.folder}. Point --data to the folder "
                "of the published set, as unpacked."
            )
        try:
            found = list(self.rows(home))
        except (KeyError, IndexError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise ArtefactError(
                f"{home / self.table}: not the published table of {self.name} "
                f"({type(error).__name__}: {error})."
            ) from error
        if not found:
            raise ArtefactError(f"{home / self.table}: holds no rated image.")
        self._check_scores(found, home / self.table)
        return found

    def _check_scores(self, found: list[Entry], table: Path) -> None:
        """Refuse values that are not on the published scale: tables of one set are told in several."""
        low, high = self.rated
        for number, entry in enumerate(found, start=1):
            if not low <= entry.raw <= high:  # false for NaN too
                raise ArtefactError(
                    f"{table}: rating {number} ('{entry.path.name}') is {entry.raw:g}, expected {low:g} to "
                    f"{high:g}. The file is damaged, or on another scale; use the published table."
                )
        most = max(entry.raw for entry in found)
        if most - low <= _LEAST_SPREAD * (high - low):
            raise ArtefactError(
                f"{table}: no rating is above {most:g}, on a scale from {low:g} to {high:g}. The ratings "
                "seem to be on another scale (1 to 5, 0 to 1); use the published table."
            )

    def sources(self, ids: Tensor, *, root: Path | None = None) -> Tensor | None:
        """Return for each image the number of its undistorted original; None for sets without originals."""
        if root is None:
            raise ArtefactError(f"{self.name}: needs the published files. Pass --data DIR.")
        names = [entry.reference.lower() for entry in self.entries(root)]
        if not all(names):
            return None
        numbers = {name: number for number, name in enumerate(sorted(set(names)))}
        return torch.tensor([numbers[names[i]] for i in ids.tolist()])

    def load(self, split: SplitName, *, root: Path | None = None) -> Split:
        return self.first(split, None, root=root)

    def size(self, split: SplitName, *, root: Path | None = None) -> int:
        return len(self._chosen(split, root)[1])

    def first(self, split: SplitName, n: int | None, *, root: Path | None = None) -> Split:
        every, chosen = self._chosen(split, root)
        chosen = chosen[:n]
        x = np.stack([read_square(every[i].path, self.crop) for i in chosen])
        scores = torch.tensor([every[i].score for i in chosen], dtype=torch.float64)
        return Split(torch.from_numpy(x).float() / 255, scores, torch.tensor(chosen))

    def _chosen(self, split: SplitName, root: Path | None) -> tuple[list[Entry], list[int]]:
        """Return every entry, and the ids of a split's in its order."""
        if root is None:
            raise ArtefactError(f"{self.name}: needs the published files. Pass --data DIR.")
        every = self.entries(root)
        chosen = [i for i, entry in enumerate(every) if part_of(entry, self.name) == split]
        chosen.sort(key=lambda i: place_of(f"{self.name}:{every[i].path.name.lower()}"))
        if self.limit:
            chosen = chosen[: self.limit]
        if not chosen:
            raise ArtefactError(f"{self.name}: its {split} split is empty; the folder holds too few images.")
        return every, chosen


def part_of(entry: Entry, salt: str) -> str:
    """Return the split of an entry: the official one, or 70/10/20 % by the hash of its reference."""
    if entry.split:
        return entry.split
    share = int.from_bytes(place_of(f"{salt}:{(entry.reference or entry.path.name).lower()}"), "big") % 10
    return "test" if share < 2 else "validation" if share < 3 else "train"


def read_square(path: Path, side: int) -> np.ndarray:
    """Return the middle square of an image: [3, side, side] uint8; of 16 bits, the upper 8 are kept.

    Raises: ArtefactError: smaller than the square, or as `read_rgb`.
    """
    image = read_rgb(path, upright=False)
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise ArtefactError(f"{path}: {width}x{height} pixels, smaller than crop = {side}.")
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side].transpose(2, 0, 1))


def _table(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file, skipinitialspace=True)


def _ignoring_case(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by lower-case name (the published sets mix cases)."""
    return {path.name.lower(): path for path in folder.iterdir()} if folder.is_dir() else {}


def _find(files: dict[str, Path], name: str, folder: Path) -> Path:
    """Return the file of a folder that a table names. Raises: ArtefactError: the name leads elsewhere."""
    if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
        raise ArtefactError(f"{folder}: a table names the file '{name[:60]}'. Expected a plain file name.")
    return files.get(name.lower(), folder / name)


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(path)
    except Exception as error:  # scipy promises no set of errors for a damaged file
        raise ArtefactError(f"{path}: cannot be read as a MATLAB file ({error}).") from error
    return found


def _strings(cell: np.ndarray) -> list[str]:
    """Return the strings of a MATLAB cell array, 1xN or Nx1."""
    return [str(np.ravel(item)[0]) for item in np.ravel(cell)]


@dataclass(frozen=True)
class Kadid10k(RatedImages):
    """KADID-10k: 81 references, 25 distortions, 5 levels; 1..5, larger is better despite the name dmos."""

    name: ClassVar[str] = "kadid10k"
    folder: ClassVar[str] = "kadid10k"
    table: ClassVar[str] = "dmos.csv"
    rated: ClassVar[tuple[float, float]] = (1.0, 5.0)
    source: ClassVar[str] = "Lin, Hosu & Saupe, QoMEX 2019. Own terms of use."

    def rows(self, home: Path) -> Iterator[Entry]:
        files = _ignoring_case(home / "images")
        for row in _table(home / self.table):
            raw, name = float(row["dmos"]), row["dist_img"]
            _, distortion, level = Path(name).stem.split("_")
            yield Entry(
                path=_find(files, name, home / "images"),
                score=25 * (raw - 1),
                raw=raw,
                reference=row["ref_img"],
                distortion=distortion,
                level=int(level),
            )


@dataclass(frozen=True)
class Koniq10k(RatedImages):
    """KonIQ-10k: 10,073 photographs as they are, official split, MOS 0..100."""

    name: ClassVar[str] = "koniq10k"
    folder: ClassVar[str] = "koniq10k"
    table: ClassVar[str] = "koniq10k_distributions_sets.csv"
    source: ClassVar[str] = "Hosu, Lin, Sziranyi & Saupe, IEEE TIP 2020. Own terms of use."

    def rows(self, home: Path) -> Iterator[Entry]:
        folder = next((home / n for n in ("512x384", "1024x768") if (home / n).is_dir()), home / "512x384")
        files = _ignoring_case(folder)
        parts = {"training": "train", "validation": "validation", "test": "test"}
        for row in _table(home / self.table):
            raw = float(row["MOS"])
            path = _find(files, row["image_name"], folder)
            yield Entry(path=path, score=raw, raw=raw, split=parts[row["set"]])


@dataclass(frozen=True)
class Live(RatedImages):
    """LIVE release 2: 29 references, 5 distortions; DMOS, smaller is better, so 100 - DMOS.

    DMOS are scaled z-scores and leave 0..100 on either side; the range here is wider than any published.
    """

    name: ClassVar[str] = "live"
    folder: ClassVar[str] = "live"
    table: ClassVar[str] = "refnames_all.mat"
    rated: ClassVar[tuple[float, float]] = (-20.0, 120.0)
    source: ClassVar[str] = "Sheikh, Sabir & Bovik, IEEE TIP 2006. Own terms of use."

    groups: ClassVar[tuple[tuple[str, int], ...]] = (
        ("jp2k", 227),
        ("jpeg", 233),
        ("wn", 174),
        ("gblur", 174),
        ("fastfading", 174),
    )

    def rows(self, home: Path) -> Iterator[Entry]:
        realigned = home / "dmos_realigned.mat"
        table = _mat(realigned if realigned.is_file() else home / "dmos.mat")
        values = np.ravel(table["dmos_new"] if "dmos_new" in table else table["dmos"])
        original = np.ravel(table["orgs"]).astype(bool)
        names = _strings(_mat(home / self.table)["refnames_all"])
        places = [(group, i + 1) for group, size in self.sizes(home, len(values)) for i in range(size)]
        for (group, number), raw, is_original, reference in zip(places, values, original, names, strict=True):
            if not is_original:
                files = _ignoring_case(home / group)
                yield Entry(
                    path=_find(files, f"img{number}.bmp", home / group),
                    score=100 - float(raw),
                    raw=float(raw),
                    reference=reference,
                    distortion=group,
                )

    def sizes(self, home: Path, total: int) -> tuple[tuple[str, int], ...]:
        """Return the number of images of each group: as published, or counted where a part was unpacked."""
        if total == sum(size for _, size in self.groups):
            return self.groups
        return tuple((group, len(list((home / group).glob("img*.bmp")))) for group, _ in self.groups)


@dataclass(frozen=True)
class LiveChallenge(RatedImages):
    """LIVE In the Wild: 1,162 photographs as they are (7 training images dropped), MOS 0..100."""

    name: ClassVar[str] = "live_challenge"
    folder: ClassVar[str] = "ChallengeDB_release"
    table: ClassVar[str] = "Data/AllMOS_release.mat"
    source: ClassVar[str] = "Ghadiyaram & Bovik, IEEE TIP 2016. Own terms of use."
    practice: ClassVar[int] = 7

    def rows(self, home: Path) -> Iterator[Entry]:
        names = _strings(_mat(home / "Data/AllImages_release.mat")["AllImages_release"])
        values = np.ravel(_mat(home / self.table)["AllMOS_release"])
        files = _ignoring_case(home / "Images")
        pairs = list(zip(names, values, strict=True))
        for name, raw in pairs[self.practice :]:
            yield Entry(path=_find(files, name, home / "Images"), score=float(raw), raw=float(raw))


@dataclass(frozen=True)
class Tid2013(RatedImages):
    """TID2013: 25 references, 24 distortions, 5 levels; MOS 0..9; upper and lower case are mixed."""

    name: ClassVar[str] = "tid2013"
    folder: ClassVar[str] = "tid2013"
    table: ClassVar[str] = "mos_with_names.txt"
    rated: ClassVar[tuple[float, float]] = (0.0, 9.0)
    source: ClassVar[str] = (
        "Ponomarenko et al., Signal Processing: Image Communication 2015. Own terms of use."
    )

    def rows(self, home: Path) -> Iterator[Entry]:
        folder = home / "distorted_images"
        files = _ignoring_case(folder)
        for line in (home / self.table).read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            value, name = line.split()
            reference, distortion, level = Path(name).stem.lower().split("_")
            yield Entry(
                path=_find(files, name, folder),
                score=float(value) * 100 / 9,
                raw=float(value),
                reference=reference,
                distortion=distortion,
                level=int(level),
            )
