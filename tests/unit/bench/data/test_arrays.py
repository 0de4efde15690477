"""One's own samples: files with arrays, folders of images, and what is said where they are not raw pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.io import imsave

from robustspike.bench.api import ArtefactError
from robustspike.bench.api import Domain
from robustspike.bench.data.arrays import describe
from robustspike.bench.data.arrays import read_samples

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_files_of_every_kind_give_the_same_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    torch.save({"x": torch.from_numpy(PIXELS), "targets": torch.from_numpy(LABELS)}, tmp_path / "a.pt")
    save_file({"x": torch.from_numpy(PIXELS), "y": torch.from_numpy(LABELS)}, tmp_path / "a.safetensors")
    np.savez(
        tmp_path / "last.npz", x=PIXELS.transpose(0, 2, 3, 1).astype(np.float32) / 255, y=np.eye(3)[LABELS]
    )
    for name in ("a.npz", "a.pt", "a.safetensors", "last.npz"):
        x, y = read_samples(tmp_path / name)
        assert torch.equal(x, torch.from_numpy(PIXELS).float() / 255), name
        assert torch.equal(y, torch.from_numpy(LABELS))


def test_a_folder_of_class_folders_numbers_classes_by_name(tmp_path: Path) -> None:
    for label, name in ((0, "cat"), (1, "dog")):
        (tmp_path / name).mkdir()
        imsave(tmp_path / name / "1.png", PIXELS[label].transpose(1, 2, 0), check_contrast=False)
    x, y = read_samples(tmp_path)
    assert y.tolist() == [0, 1]
    assert torch.equal(x, torch.from_numpy(PIXELS[:2]).float() / 255)


def test_what_samples_are_is_seen_in_their_axes_and_values() -> None:
    y = torch.tensor([0, 3])
    assert describe(torch.rand(2, 1, 4, 4), y).domain is Domain.STATIC
    assert describe((torch.rand(2, 5, 2, 4, 4) > 0.5).float(), y).domain is Domain.SPIKES
    assert describe(torch.full((2, 5, 2, 4, 4), 3.0), y).domain is Domain.EVENTS
    assert describe(torch.rand(2, 1, 4, 4), y).classes == 4


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((PIXELS / 255 - 0.5) / 0.25, LABELS, "normalised already.*--mean and --std"),
        (PIXELS.astype(np.float32), LABELS, "Divide pixels by 255"),
        (PIXELS, LABELS[:5], "6 inputs and 5 labels"),
        (PIXELS, LABELS - 1, "negative"),
        (np.full((6, 3, 8, 8), np.nan), LABELS, "NaN"),
    ],
)
def test_samples_that_are_no_raw_pixels_are_refused_with_the_cause(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(ArtefactError, match=message):
        read_samples(tmp_path / "a.npz")


def test_arrays_under_other_names_are_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pictures=PIXELS, y=LABELS)
    with pytest.raises(ArtefactError, match="no inputs among its arrays pictures, y"):
        read_samples(tmp_path / "a.npz")
