"""The embedded quality data: deterministic, split by photograph, no network, cached atomically."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch

from robustspike.bench.data.quality import photopatch_iqa as iqa
from robustspike.bench.data.quality.photopatch_iqa import FOLDS
from robustspike.bench.data.quality.photopatch_iqa import PhotopatchIqa
from robustspike.bench.data.quality.photos import DEGRADATIONS
from robustspike.bench.data.quality.photos import PHOTOGRAPHS
from robustspike.bench.data.quality.photos import degrade
from robustspike.bench.data.quality.photos import path_of
from robustspike.bench.data.quality.photos import photograph
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three photographs and two degradations, cached in a folder of its own, network forbidden."""
    monkeypatch.setattr(iqa, "PHOTOGRAPHS", {n: PHOTOGRAPHS[n] for n in ("chelsea", "coins", "camera")})
    monkeypatch.setattr(iqa, "available_degradations", lambda: ("jpeg", "impulse"))
    monkeypatch.setattr(iqa, "LEVELS", 2)
    monkeypatch.setattr(iqa, "_tables", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    iqa._key.cache_clear()
    yield tmp_path
    iqa._key.cache_clear()


def test_build_is_deterministic_and_labels_follow_the_levels(small: Path) -> None:
    calls: list[tuple[int, int]] = []
    first = iqa.build(lambda done, total: calls.append((done, total)))
    again = iqa.build()
    for name, column in first.items():
        assert torch.equal(column, again[name]), name
    assert calls[-1] == (30, 30)
    assert len(first["x"]) == 3 * 2 * (24 + 2 * 2 * 8)
    assert bool((first["mos"][first["level"] == 0] == 100).all())
    means = [float(first["mos"][first["level"] == level].mean()) for level in (1, 2)]
    assert 100 > means[0] > means[1] > 0


def test_cache_is_written_once_read_back_and_repaired(small: Path) -> None:
    table = iqa.prepare()
    (path,) = (small / "robustspike").iterdir()
    assert path.name.startswith("photopatch_iqa-")
    stamp = path.stat().st_mtime_ns
    iqa._tables.clear()
    assert torch.equal(iqa.prepare()["x"], table["x"])
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:100])
    iqa._tables.clear()
    assert torch.equal(iqa.prepare()["x"], table["x"])
    assert len(path.read_bytes()) > 100


def test_an_unwritable_cache_is_no_obstacle(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = small / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert len(iqa.prepare()["x"]) == 336


def test_splits_share_no_photograph_and_are_in_shuffled_order(small: Path) -> None:
    data = PhotopatchIqa()
    photographs = list(iqa.PHOTOGRAPHS)
    table = iqa.prepare()
    seen = {}
    for split in ("train", "validation", "test"):
        loaded = data.load(split)
        assert loaded.x.dtype == torch.float32 and loaded.y.dtype == torch.float64
        assert bool((loaded.x * 255 == (loaded.x * 255).round()).all())
        seen[split] = {photographs[i] for i in table["photograph"][loaded.ids].tolist()}
        assert len(set(table["level"][loaded.ids[:30]].tolist())) == 3
    assert seen == {"train": {"chelsea"}, "validation": {"coins"}, "test": {"camera"}}


def test_folds_hold_out_different_photographs() -> None:
    assert not set(FOLDS[0]["test"]) & set(FOLDS[1]["test"])
    for fold in FOLDS:
        assert not set(fold["test"]) & set(fold["validation"])
    with pytest.raises(ConfigError, match="fold"):
        PhotopatchIqa(fold=2)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_degradations_keep_the_shape_and_grow_with_the_level(name: str) -> None:
    image = photograph("chelsea", 0.5)
    errors = []
    for level in (1, 3, 5):
        bad = degrade(image, name, level, np.random.default_rng(0))
        assert bad.shape == image.shape and bad.dtype == np.uint8
        errors.append(float(np.square(bad.astype(float) - image).mean()))
    assert 0 < errors[0] < errors[1] < errors[2]


# Mean HaarPSI of levels 1 to 5 as measured for methods/nr-iqa.md, section 8.2.
HAARPSI = {
    "gaublur": (0.86, 0.73, 0.61, 0.50, 0.40),
    "lensblur": (0.84, 0.71, 0.62, 0.49, 0.39),
    "jpeg": (0.90, 0.85, 0.76, 0.66, 0.52),
    "jp2k": (0.77, 0.66, 0.59, 0.53, 0.45),
    "wnoise": (0.83, 0.70, 0.57, 0.45, 0.37),
    "impulse": (0.72, 0.55, 0.44, 0.37, 0.29),
    "pixelate": (0.82, 0.77, 0.73, 0.60, 0.42),
}


def test_the_whole_set_is_what_the_specification_describes() -> None:
    """Counts, range and mean label of every degradation and level; other places are cut, so to 0.04."""
    if "jp2k" not in iqa.available_degradations():
        pytest.skip("this Pillow has no JPEG 2000")
    table, data = iqa.prepare(), PhotopatchIqa()
    assert table["x"].shape == (6688, 3, 64, 64)
    sizes = [len(data.indices(split)) for split in ("train", "validation", "test")]  # type: ignore[arg-type]
    assert sizes[0] + sizes[1] == 4864 and sizes[2] == 1824
    assert len(set(data.images(data.indices("test")).tolist())) == 216
    assert 10 < float(table["mos"].min()) < 20 and 60 < float(table["mos"].median()) < 70
    for number, name in enumerate(DEGRADATIONS):
        for level, expected in enumerate(HAARPSI[name], start=1):
            cell = (table["degradation"] == number) & (table["level"] == level)
            assert float(table["mos"][cell].mean()) / 100 == pytest.approx(expected, abs=0.04), (name, level)


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PHOTOGRAPHS, "coffee", ("skimage.data", "no_such_file.png"))
    with pytest.raises(ArtefactError, match=r"photograph 'coffee'.*wheels"):
        path_of("coffee")
