"""Published image quality data sets, read from their own layouts; nothing is downloaded.

Scores are brought to 0..100, larger is better (LIVE's DMOS leaves 0..100 a little, and so do its scores);
the raw value is kept beside. Images are cut to a square in the middle, so that a split is one tensor; splits
never share a reference image.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
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
from robustspike.bench.data.quality.quality_tables import Files
from robustspike.bench.data.quality.quality_tables import needed
from robustspike.bench.data.quality.quality_tables import read_mat
from robustspike.bench.data.quality.quality_tables import read_sheet
from robustspike.bench.data.quality.quality_tables import read_table
from robustspike.bench.data.quality.quality_tables import strings
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import BenchError
from robustspike.bench.errors import ConfigError
from robustspike.bench.files import sha256
from robustspike.bench.numbers.stats import spearman

_LEAST_SPREAD = 1 / 8
"""Share of the scale that the best rating must reach: every published set has good and bad images."""

_LEAST_TOLD = 10
"""Images on which the direction of a table can be told; fewer may be an odd part of the set."""


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
        table: the file of the ratings, as published.
        others: other files of the ratings, any of which will do.
        rated: the range of the published values, (lowest, highest).
        shorter: pixels of the shorter side to which images are shrunk before the cut; 0 for as they are.
    """

    crop: int = 224
    limit: int = 512

    classes: ClassVar[int] = 1
    task: ClassVar[Task] = Task.QUALITY
    needs_root: ClassVar[bool] = True
    folder: ClassVar[str] = ""
    table: ClassVar[str] = ""
    others: ClassVar[tuple[str, ...]] = ()
    rated: ClassVar[tuple[float, float]] = (0.0, 100.0)
    shorter: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.crop < 1 or self.limit < 0:
            raise ConfigError(
                f"{self.name}: crop must be at least 1 and limit 0 or more, got {self.crop} and {self.limit}."
            )

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """One input: (3, crop, crop)."""
        return (3, self.crop, self.crop)

    def ratings(self, root: Path) -> tuple[Path, Path] | None:
        """Return the set's own folder (--data itself, or that of its name below) and its rating file."""
        for home in (root, root / self.folder):
            for name in (self.table, *self.others):
                if (home / name).is_file():
                    return home, home / name
        return None

    def present(self, root: Path) -> bool:
        return self.ratings(root) is not None

    def score_of(self, raw: float) -> float:
        """Bring a published value to 0..100, larger is better."""
        return raw

    def entry(
        self,
        path: Path,
        raw: float,
        *,
        reference: str = "",
        distortion: str = "",
        level: int = 0,
        split: str = "",
    ) -> Entry:
        """Return an entry of this set by its published value."""
        return Entry(path, self.score_of(raw), raw, reference, distortion, level, split)

    def rows(self, home: Path, table: Path) -> Iterator[Entry]:
        """Yield the entries of the set's own table, one of `table` and `others`."""
        raise TypeError(f"{type(self).__name__} does not define rows().")

    def entries(self, root: Path) -> list[Entry]:
        """Return every rated image. Raises: ArtefactError: not the published layout."""
        found = self.ratings(root)
        if found is None:
            raise ArtefactError(
                f"{self.name}: no {' or '.join((self.table, *self.others))} in {root} or "
                f"{root / self.folder}. Point --data to the folder of the published set, as unpacked."
            )
        home, table = found
        try:
            rows = listed_rows(self, home, table) if table.name in _LISTS else self.rows(home, table)
            every = list(rows)
        except BenchError:
            raise
        except (KeyError, IndexError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise ArtefactError(
                f"{table}: not the published table of {self.name} ({type(error).__name__}: {error})."
            ) from error
        if not every:
            raise ArtefactError(f"{table}: holds no rated image.")
        self._check_scores(every, table)
        levels = [entry for entry in every if entry.level]
        self.check_direction(table, [entry.score for entry in levels], [-entry.level for entry in levels])
        return every

    def _check_scores(self, found: list[Entry], table: Path) -> None:
        """Refuse values that are not on the published scale (tables of one set are told in several), and
        images that are rated twice."""
        low, high = self.rated
        first: dict[str, int] = {}
        for number, entry in enumerate(found, start=1):
            if not low <= entry.raw <= high:  # false for NaN too
                raise ArtefactError(
                    f"{table}: rating {number} ('{entry.path.name}') is {entry.raw:g}, expected {low:g} to "
                    f"{high:g}. The file is damaged, or on another scale; use the published table."
                )
            before = first.setdefault(str(entry.path).lower(), number)
            if before != number:
                raise ArtefactError(
                    f"{table}: '{entry.path.name}' is rated twice, {found[before - 1].raw:g} (rating "
                    f"{before}) and {entry.raw:g} (rating {number}). Use the published table."
                )
        most = max(entry.raw for entry in found)
        if most - low <= _LEAST_SPREAD * (high - low):
            raise ArtefactError(
                f"{table}: no rating is above {most:g}, on a scale from {low:g} to {high:g}. The ratings "
                "seem to be on another scale (1 to 5, 0 to 1); use the published table."
            )

    def check_direction(self, table: Path, scores: Sequence[float], better: Sequence[float]) -> None:
        """Refuse scores that fall where something else that the set tells of its images says "better".

        Args:
            scores: of some images, larger meant to be better.
            better: what tells their order: weaker distortion, the mean of the votes; values may repeat.
        """
        if len(scores) < _LEAST_TOLD or len(set(better)) < 2:
            return
        agreement = spearman(np.asarray(scores), np.asarray(better))
        if agreement < 0:
            raise ArtefactError(
                f"{table}: read as {self.name} publishes them, ratings are the better the worse the image "
                f"(rank correlation {agreement:.2f} on {len(scores)} images). They seem to be turned around "
                "(MOS for DMOS, or the reverse); use the published table."
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
        assert root is not None
        self._check_present([every[i].path for i in chosen], root)
        seen: dict[str, Path] = {}
        images = []
        for i in chosen:
            path = every[i].path
            images.append(read_square(path, self.crop, shorter=self.shorter))
            other = seen.setdefault(sha256(path.read_bytes()), path)
            if other != path:
                raise ArtefactError(
                    f"{path}: the same file as {other.name}, byte for byte, but rated as another image. "
                    "One was copied over the other; unpack the published set again."
                )
        scores = torch.tensor([every[i].score for i in chosen], dtype=torch.float64)
        return Split(torch.from_numpy(np.stack(images)).float() / 255, scores, torch.tensor(chosen))

    def _check_present(self, paths: Sequence[Path], root: Path) -> None:
        absent = [path for path in paths if not path.is_file()]
        found = self.ratings(root)
        if absent and found is not None:
            raise ArtefactError(
                f"{absent[0]}: no such file, but {found[1].name} rates it ({len(absent)} of {len(paths)} "
                f"images of this split are absent). Unpack the images of {self.name} there."
            )

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


def read_square(path: Path, side: int, *, shorter: int = 0) -> np.ndarray:
    """Return the middle square of an image: [3, side, side] uint8; of 16 bits, the upper 8 are kept.

    Args:
        shorter: shrink the image first, so that its shorter side has so many pixels; 0 for as it is.

    Raises: ArtefactError: smaller than the square, or as `read_rgb`.
    """
    from PIL import Image

    image = read_rgb(path, upright=False)
    height, width = image.shape[:2]
    if shorter and min(height, width) > shorter:
        scale = shorter / min(height, width)
        size = (round(scale * width), round(scale * height))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        height, width = image.shape[:2]
    if min(height, width) < side:
        raise ArtefactError(f"{path}: {width}x{height} pixels, smaller than crop = {side}.")
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side].transpose(2, 0, 1))


_LISTS = ("CSIQ.txt", "LIVE.txt", "LIVE_Challenge.txt", "TID2013.txt")
"""Rating tables of github.com/icbcbicc/IQA-Dataset, all of one form, with the published values."""


def listed_rows(data: RatedImages, home: Path, table: Path) -> Iterator[Entry]:
    """Yield the entries of such a table: dis_img_path, dis_type, ref_img_path (where there is one), score."""
    files = Files(home)
    for row in read_table(table):
        _, *folders, name = row["dis_img_path"].split("/")
        level = Path(name).stem.replace("_", ".").rpartition(".")[2]
        reference = row.get("ref_img_path", "")
        yield data.entry(
            files.find(*folders, name=name),
            float(row["score"]),
            reference=Path(reference).name,
            distortion=row["dis_type"] if reference else "",
            level=int(level) if reference and len(level) == 1 and level.isdigit() else 0,
        )


@dataclass(frozen=True)
class Csiq(RatedImages):
    """CSIQ: 30 references, 6 distortions, 3 to 5 levels; DMOS 0..1, smaller is better."""

    name: ClassVar[str] = "csiq"
    folder: ClassVar[str] = "csiq"
    table: ClassVar[str] = "csiq.DMOS.xlsx"
    others: ClassVar[tuple[str, ...]] = ("csiq_label.txt", "CSIQ.txt")
    rated: ClassVar[tuple[float, float]] = (0.0, 1.0)
    source: ClassVar[str] = "Larson & Chandler, Journal of Electronic Imaging 2010. Own terms of use."

    kinds: ClassVar[dict[str, str]] = {
        "noise": "AWGN",
        "blur": "BLUR",
        "contrast": "contrast",
        "fnoise": "fnoise",
        "jpeg": "JPEG",
        "jpeg 2000": "jpeg2000",
    }
    """Distortion in the sheet -> in the names of files, and in lower case their folder."""

    def score_of(self, raw: float) -> float:
        return 100 * (1 - raw)

    def rows(self, home: Path, table: Path) -> Iterator[Entry]:
        files = Files(home)
        flat = next((name for name in ("dst_imgs_all", "dst_imgs") if (home / name).is_dir()), "dst_imgs")
        for name, raw in self._sheet(table) if table.suffix == ".xlsx" else _pairs(table, value=1):
            reference, kind, level, _ = name.split(".")
            found = files.find("dst_imgs", kind.lower(), name=name)
            yield self.entry(
                found if found.is_file() else files.find(flat, name=name),
                raw,
                reference=f"{reference}.png",
                distortion=kind,
                level=int(level),
            )

    def _sheet(self, table: Path) -> Iterator[tuple[str, float]]:
        for row in read_sheet(table, ("image", "dst_type", "dst_lev", "dmos"), instead=self.others[0]):
            kind = self.kinds[str(row["dst_type"]).strip().lower()]
            yield f"{row['image']}.{kind}.{int(row['dst_lev'])}.png", float(row["dmos"])


@dataclass(frozen=True)
class Kadid10k(RatedImages):
    """KADID-10k: 81 references, 25 distortions, 5 levels; 1..5, larger is better despite the name dmos."""

    name: ClassVar[str] = "kadid10k"
    folder: ClassVar[str] = "kadid10k"
    table: ClassVar[str] = "dmos.csv"
    rated: ClassVar[tuple[float, float]] = (1.0, 5.0)
    source: ClassVar[str] = "Lin, Hosu & Saupe, QoMEX 2019. Own terms of use."

    def score_of(self, raw: float) -> float:
        return 25 * (raw - 1)

    def rows(self, home: Path, table: Path) -> Iterator[Entry]:
        files = Files(home)
        for row in read_table(table):
            name = row["dist_img"]
            _, distortion, level = Path(name).stem.split("_")
            yield self.entry(
                files.find("images", name=name),
                float(row["dmos"]),
                reference=row["ref_img"],
                distortion=distortion,
                level=int(level),
            )


@dataclass(frozen=True)
class Koniq10k(RatedImages):
    """KonIQ-10k: 10,073 photographs as they are, MOS 0..100 and the official split.

    The table of the paper's site has the MOS on two scales and no split: its MOS_zscore is read, and the
    split is by a hash. A MOS from 1 to 5 alone is refused.
    """

    name: ClassVar[str] = "koniq10k"
    folder: ClassVar[str] = "koniq10k"
    table: ClassVar[str] = "koniq10k_distributions_sets.csv"
    others: ClassVar[tuple[str, ...]] = ("koniq10k_scores_and_distributions.csv",)
    source: ClassVar[str] = "Hosu, Lin, Sziranyi & Saupe, IEEE TIP 2020. Own terms of use."

    def rows(self, home: Path, table: Path) -> Iterator[Entry]:
        files = Files(home)
        folder = next((n for n in ("512x384", "1024x768") if (home / n).is_dir()), "512x384")
        parts = {"training": "train", "validation": "validation", "test": "test"}
        scores, votes = [], []
        for row in read_table(table):
            raw = float(row["MOS_zscore"] if "MOS_zscore" in row else row["MOS"])
            split = parts[row["set"]] if "set" in row else ""
            entry = self.entry(files.find(folder, name=row["image_name"]), raw, split=split)
            if "c5" in row:
                counts = [float(row[f"c{k}"]) for k in range(1, 6)]
                scores.append(entry.score)
                votes.append(float(np.average(range(1, 6), weights=counts)))
            yield entry
        self.check_direction(table, scores, votes)


@dataclass(frozen=True)
class Live(RatedImages):
    """LIVE release 2: 29 references, 5 distortions; DMOS, smaller is better, so 100 - DMOS.

    DMOS are scaled z-scores and leave 0..100 on either side; the range here is wider than any published.
    """

    name: ClassVar[str] = "live"
    folder: ClassVar[str] = "live"
    table: ClassVar[str] = "refnames_all.mat"
    others: ClassVar[tuple[str, ...]] = ("LIVE.txt",)
    rated: ClassVar[tuple[float, float]] = (-20.0, 120.0)
    source: ClassVar[str] = "Sheikh, Sabir & Bovik, IEEE TIP 2006. Own terms of use."

    groups: ClassVar[tuple[tuple[str, int], ...]] = (
        ("jp2k", 227),
        ("jpeg", 233),
        ("wn", 174),
        ("gblur", 174),
        ("fastfading", 174),
    )

    def score_of(self, raw: float) -> float:
        return 100 - raw

    def rows(self, home: Path, table: Path) -> Iterator[Entry]:
        files = Files(home)
        where = needed(home, "dmos_realigned.mat", "dmos.mat")
        held = read_mat(where)
        values = np.ravel(held["dmos_new"] if "dmos_new" in held else held["dmos"]).astype(float)
        original = np.ravel(held["orgs"]).astype(bool)
        names = strings(read_mat(table)["refnames_all"])
        self.check_direction(where, [self.score_of(raw) for raw in values], original.astype(float).tolist())
        places = [(group, i + 1) for group, size in self.sizes(home, len(values)) for i in range(size)]
        for (group, number), raw, is_original, reference in zip(places, values, original, names, strict=True):
            if not is_original:
                path = files.find(group, name=f"img{number}.bmp")
                yield self.entry(path, float(raw), reference=reference, distortion=group)

    def sizes(self, home: Path, total: int) -> tuple[tuple[str, int], ...]:
        """Return the number of images of each group: as published, or counted where a part was unpacked."""
        if total == sum(size for _, size in self.groups):
            return self.groups
        return tuple((group, len(list((home / group).glob("img*.bmp")))) for group, _ in self.groups)


@dataclass(frozen=True)
class LiveChallenge(RatedImages):
    """LIVE In the Wild: 1,162 photographs as they are (7 training images dropped), MOS 0..100.

    Nothing in its files says which way the ratings run, so that a table turned around is not noticed.
    """

    name: ClassVar[str] = "live_challenge"
    folder: ClassVar[str] = "ChallengeDB_release"
    table: ClassVar[str] = "Data/AllMOS_release.mat"
    others: ClassVar[tuple[str, ...]] = ("LIVE_Challenge.txt",)
    source: ClassVar[str] = "Ghadiyaram & Bovik, IEEE TIP 2016. Own terms of use."
    practice: ClassVar[int] = 7

    def rows(self, home: Path, table: Path) -> Iterator[Entry]:
        files = Files(home)
        names = strings(read_mat(needed(home, "Data/AllImages_release.mat"))["AllImages_release"])
        values = np.ravel(read_mat(table)["AllMOS_release"])
        for name, raw in list(zip(names, values, strict=True))[self.practice :]:
            yield self.entry(files.find("Images", name=name), float(raw))


@dataclass(frozen=True)
class Spaq(RatedImages):
    """SPAQ: 11,125 photographs by smartphones, MOS 0..100.

    As its authors do, each is first shrunk to 512 pixels on the shorter side.
    """

    name: ClassVar[str] = "spaq"
    folder: ClassVar[str] = "SPAQ"
    table: ClassVar[str] = "Annotations/MOS and Image attribute scores.xlsx"
    others: ClassVar[tuple[str, ...]] = ("Annotations/MOS and Image attribute scores.csv",)
    shorter: ClassVar[int] = 512
    source: ClassVar[str] = (
        "Fang, Zhu, Zeng, Ma & Wang, CVPR 2020. Own terms of use. Differs: a square is cut from the middle."
    )

    def rows(self, home: Path, table: Path) -> Iterator[Entry]:
        files = Files(home)
        scores, sharp = [], []
        lines = (
            read_table(table)
            if table.suffix == ".csv"
            else read_sheet(table, ("Image name", "MOS"), instead=self.others[0])
        )
        for row in lines:
            entry = self.entry(files.find("TestImage", name=str(row["Image name"])), float(row["MOS"]))
            if "Sharpness" in row:
                scores.append(entry.score)
                sharp.append(float(row["Sharpness"]))
            yield entry
        self.check_direction(table, scores, sharp)


@dataclass(frozen=True)
class Tid2013(RatedImages):
    """TID2013: 25 references, 24 distortions, 5 levels; MOS 0..9; upper and lower case are mixed."""

    name: ClassVar[str] = "tid2013"
    folder: ClassVar[str] = "tid2013"
    table: ClassVar[str] = "mos_with_names.txt"
    others: ClassVar[tuple[str, ...]] = ("mos.txt", "TID2013.txt")
    rated: ClassVar[tuple[float, float]] = (0.0, 9.0)
    source: ClassVar[str] = (
        "Ponomarenko et al., Signal Processing: Image Communication 2015. Own terms of use."
    )
    size_of: ClassVar[tuple[int, int, int]] = (25, 24, 5)

    def score_of(self, raw: float) -> float:
        return raw * 100 / 9

    def rows(self, home: Path, table: Path) -> Iterator[Entry]:
        files = Files(home)
        for name, raw in self._in_order(table) if table.name == "mos.txt" else _pairs(table, value=0):
            reference, distortion, level = Path(name).stem.lower().split("_")
            yield self.entry(
                files.find("distorted_images", name=name),
                raw,
                reference=reference,
                distortion=distortion,
                level=int(level),
            )

    def _in_order(self, table: Path) -> Iterator[tuple[str, float]]:
        """Yield what the table without names holds: every image, the level changing fastest."""
        values = [float(value) for value in table.read_text(encoding="utf-8").split()]
        places = itertools.product(*(range(1, size + 1) for size in self.size_of))
        for (reference, distortion, level), raw in zip(places, values, strict=True):
            yield f"i{reference:02d}_{distortion:02d}_{level}.bmp", raw


def _pairs(table: Path, *, value: int) -> Iterator[tuple[str, float]]:
    """Yield the names and values of a text of two words a line; `value` says which is the value."""
    for line in table.read_text(encoding="utf-8").splitlines():
        if line.strip():
            words = line.split()
            if len(words) != 2:
                raise ValueError(f"expected a name and a value, got '{line[:60]}'")
            yield words[1 - value], float(words[value])
