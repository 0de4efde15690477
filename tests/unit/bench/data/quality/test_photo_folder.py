"""A folder of one's own photographs as a test set for quality models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustspike.bench.data.images.image_files import read_rgb
from robustspike.bench.data.quality import photo_folder
from robustspike.bench.data.quality import photopatch_iqa as iqa
from robustspike.bench.data.quality.photo_folder import Photos
from robustspike.bench.data.quality.photos import PHOTOGRAPHS
from robustspike.bench.data.quality.photos import path_of
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two photographs in subfolders; three embedded ones, one degradation and a cache of their own."""
    monkeypatch.setattr(iqa, "PHOTOGRAPHS", {n: PHOTOGRAPHS[n] for n in ("chelsea", "coins", "camera")})
    monkeypatch.setattr(photo_folder, "PHOTOGRAPHS", iqa.PHOTOGRAPHS)
    for module in (iqa, photo_folder):
        monkeypatch.setattr(module, "available_degradations", lambda: ("jpeg",))
        monkeypatch.setattr(module, "LEVELS", 2)
    monkeypatch.setattr(iqa, "_tables", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    iqa._key.cache_clear()
    root = tmp_path / "mine"
    for name, suffix, seed in (("a/one", "png", 0), ("b/two", "jpg", 1)):
        path = root / f"{name}.{suffix}"
        path.parent.mkdir(parents=True)
        _noise(seed, (140, 180)).save(path)
    yield root
    iqa._key.cache_clear()


def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_every_photograph_is_scored_in_turn_beside_those_held_out(folder: Path) -> None:
    data = Photos()
    split = data.first("test", 6, root=folder)
    sources = data.sources(split.ids, root=folder)
    assert len(set(sources[:3].tolist())) == 3  # the two given and the camera
    assert torch.equal(sources[:3].sort().values, sources[3:].sort().values)
    assert data.size("test", root=folder) == 3 * 2 * (24 + 2 * 8)
    alone = Photos(embedded=False)
    assert set(alone.sources(alone.load("test", root=folder).ids, root=folder).tolist()) == {3, 4}
    trained = data.load("train", root=folder)
    assert set(data.sources(trained.ids, root=folder).tolist()) == {0}
    again = data.first("test", 6, root=folder)
    assert torch.equal(again.x, split.x) and torch.equal(again.y, split.y)


def test_hidden_files_and_copies_are_no_photographs_of_their_own(folder: Path) -> None:
    before = Photos().size("test", root=folder)
    shutil.copy(folder / "a/one.png", folder / "copy.png")
    (folder / "._one.png").write_bytes(b"not an image")
    (folder / ".thumbs").mkdir()
    shutil.copy(path_of("chelsea"), folder / ".thumbs" / "cat.png")
    assert Photos().size("test", root=folder) == before
    assert Photos(limit=1).size("test", root=folder) < before


def test_a_photograph_that_was_trained_on_is_refused(folder: Path) -> None:
    shutil.copy(path_of("chelsea"), folder / "cat.png")
    with pytest.raises(ArtefactError, match=r"cat\.png: this is the photograph 'chelsea'.*trained"):
        Photos().load("test", root=folder)


def test_what_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert not Photos().present(tmp_path / "empty")
    with pytest.raises(ArtefactError, match="no photograph below it"):
        Photos().load("test", root=tmp_path / "empty")
    with pytest.raises(ArtefactError, match="--data DIR"):
        Photos().load("test")
    _noise(2, (100, 300)).save(folder / "small.png")
    with pytest.raises(ArtefactError, match=r"small\.png: 300x100 pixels.*at least 128"):
        Photos().load("test", root=folder)
    (folder / "small.png").write_bytes(b"no image")
    with pytest.raises(ArtefactError, match=r"small\.png: cannot be read as an image"):
        Photos().load("test", root=folder)
    with pytest.raises(ConfigError, match="limit"):
        Photos(limit=-1)


def test_pixels_are_read_as_they_are_meant(tmp_path: Path) -> None:
    image = _noise(3, (4, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_rgb(tmp_path / "turned.png", upright=True).shape == (6, 4, 3)
    assert read_rgb(tmp_path / "turned.png", upright=False).shape == (4, 6, 3)
    deep = np.array([[0, 256, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_rgb(tmp_path / "deep.png", upright=True)[0, :, 0].tolist() == [0, 1, 255]
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ArtefactError, match=r"floating-point"):
        read_rgb(tmp_path / "float.tiff", upright=True)
    clear = image.convert("RGBA")
    clear.save(tmp_path / "opaque.png")
    assert np.array_equal(read_rgb(tmp_path / "opaque.png", upright=True), np.asarray(image))
    clear.putpixel((0, 0), (1, 2, 3, 0))
    clear.save(tmp_path / "clear.png")
    with pytest.raises(ArtefactError, match=r"transparent.*Flatten"):
        read_rgb(tmp_path / "clear.png", upright=True)
