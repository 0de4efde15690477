"""Tiny-ImageNet, ImageNet folders and CIFAR-100, read from files written here in the published layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import ConfigError
from robustspike.bench.api import registry
from robustspike.bench.data.images.image_files import read_photograph
from robustspike.bench.data.images.image_folders import TinyImageNet


class TwoClasses(TinyImageNet):
    """Tiny-ImageNet's layout with two classes: 200 folders would only make the test slow."""

    classes = 2


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, format="PNG")


def tiny(root: Path, each: int = 24) -> None:
    for label, name in enumerate(("n01", "n02")):
        for i in range(each):
            picture(root / "train" / name / "images" / f"{name}_{i}.JPEG", (100 * label, i, 0))
            picture(root / "val" / "images" / f"val_{2 * i + label}.JPEG", (100 * label, i, 255))
    rows = [f"val_{i}.JPEG\t{('n01', 'n02')[i % 2]}\t0\t0\t9\t9" for i in range(2 * each)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("inside", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_splits_keep_images_with_labels_and_do_not_overlap(tmp_path: Path, inside: str) -> None:
    tiny(tmp_path / inside)
    data = TwoClasses()
    assert data.present(tmp_path)
    splits = {name: data.load(name, root=tmp_path) for name in ("train", "validation", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 44, "validation": 4, "test": 48}
    ids = torch.cat([split.ids for split in splits.values()])
    assert len(set(ids.tolist())) == 96
    for name, split in splits.items():
        assert split.x.shape[1:] == data.shape and split.x.dtype == torch.float32
        assert (split.x[:, 0, 5, 5] * 255).round().tolist() == (100 * split.y).tolist()
        assert set((split.x[:, 2, 0, 0]).tolist()) == {float(name == "test")}
    assert data.load("train", root=tmp_path).digest == splits["train"].digest


@pytest.mark.parametrize(
    "line", ["val_0.JPEG n01", "val_0.JPEG\tn99\t0\t0\t1\t1", "../../secret.JPEG\tn01\t0\t0\t1\t1"]
)
def test_tiny_imagenets_table_of_labels_is_not_trusted(tmp_path: Path, line: str) -> None:
    tiny(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text(line + "\n")
    with pytest.raises(ArtefactError, match="val_annotations"):
        TwoClasses().load("test", root=tmp_path)


def test_folders_of_another_data_set_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    tiny(tmp_path)
    with pytest.raises(ArtefactError, match=r"expected 200 class folders.*found 2"):
        registry("datasets").get("tiny_imagenet").load("train", root=tmp_path)
    with pytest.raises(ArtefactError, match="expected 1000 class folders"):
        registry("datasets").get("imagenet_folder").load("train", root=tmp_path)
    assert not registry("datasets").get("imagenet_folder").present(tmp_path / "nowhere")
    for name in ("tiny_imagenet", "imagenet_folder", "cifar100"):
        with pytest.raises(ArtefactError, match="--data"):
            registry("datasets").get(name).load("train")


def imagenet(root: Path) -> None:
    for part, each in (("train", 15), ("val", 7)):
        for label, name in enumerate(("cat", "dog", "owl")):
            for i in range(each):
                picture(root / part / name / f"{i:02d}.JPEG", (80 * label, i, 7), size=(40 + i, 30))


def test_an_imagenet_folder_is_cut_to_squares_and_read_up_to_its_limit(tmp_path: Path) -> None:
    imagenet(tmp_path)
    data = registry("datasets").get("imagenet_folder", classes=3, side=16, per_class=4)
    test = data.load("test", root=tmp_path)
    assert data.shape == (3, 16, 16) and test.x.shape == (12, 3, 16, 16)
    assert (test.x[:, 0, 8, 8] * 255).round().tolist() == (80 * test.y).tolist()
    whole = registry("datasets").get("imagenet_folder", classes=3, side=16, per_class=0)
    assert len(whole.load("test", root=tmp_path)) == 21
    assert len(whole.load("train", root=tmp_path)) + len(whole.load("validation", root=tmp_path)) == 45
    with pytest.raises(ArtefactError, match="too few"):
        registry("datasets").get("imagenet_folder", classes=3, side=16, per_class=1).load(
            "validation", root=tmp_path
        )
    for wrong in ({"classes": 1}, {"side": 4}, {"per_class": -1}):
        with pytest.raises(ConfigError, match="imagenet_folder"):
            registry("datasets").get("imagenet_folder", **wrong)


def test_a_photograph_keeps_its_middle_and_a_square_of_the_right_size_every_pixel(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "square.png")
    assert np.array_equal(
        read_photograph(tmp_path / "square.png", 20, shrink=8 / 7), pixels.transpose(2, 0, 1)
    )
    wide = np.zeros((28, 84, 3), dtype=np.uint8)
    wide[:, 35:49] = 255  # the middle half of the middle square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    got = read_photograph(tmp_path / "wide.png", 28, shrink=1.0)
    assert got.shape == (3, 28, 28) and got[:, :, 7:21].min() == 255 and got[:, :, :7].max() == 0
    (tmp_path / "broken.JPEG").write_bytes(b"<html>")
    with pytest.raises(ArtefactError, match=r"broken\.JPEG"):
        read_photograph(tmp_path / "broken.JPEG", 8, shrink=1.0)


def cifar100(path: Path, n: int, seed: int) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(seed))
    records = rng.integers(0, 256, (n, 2 + 3072), dtype=np.uint8)
    records[:, 0] %= 20
    records[:, 1] = np.arange(n) % 100
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(records.tobytes())
    return records


def test_cifar100_reads_fine_labels_and_skips_the_coarse_ones(tmp_path: Path) -> None:
    train = cifar100(tmp_path / "cifar-100-binary" / "train.bin", 2400, 1)
    test = cifar100(tmp_path / "cifar-100-binary" / "test.bin", 200, 2)
    data = registry("datasets").get("cifar100")
    for name, records, first in (("train", train, 0), ("validation", train, 0), ("test", test, 50_000)):
        split = data.load(name, root=tmp_path)
        rows = (split.ids - first).numpy()
        assert split.y.tolist() == records[rows, 1].tolist()
        pixels = (split.x * 255).round().to(torch.uint8).flatten(1).numpy()
        assert np.array_equal(pixels, records[rows, 2:])
    (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(bytes([0, 100]) + bytes(3072))
    with pytest.raises(ArtefactError, match="CIFAR-100 has classes"):
        data.load("test", root=tmp_path)
