"""Attacked inputs on cards: what the records enclose, drawn; nothing where they enclose nothing."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robustspike.bench.record.adversarials import pack_adversarials
from robustspike.leaderboard.write.thumbnails import FILE
from robustspike.leaderboard.write.thumbnails import enclosed
from robustspike.leaderboard.write.thumbnails import picture


def pixels(address: str) -> np.ndarray:
    head, text = address.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_an_image_is_drawn_as_it_is() -> None:
    x = torch.tensor([[[0.0, 1.0], [0.2, 0.4]]])
    shown = pixels(picture(x))
    assert shown.shape == (2, 2, 3) and shown[..., 0].tolist() == [[0, 255], [51, 102]]
    colour = torch.rand(3, 4, 5)
    assert np.array_equal(pixels(picture(colour)), (colour.permute(1, 2, 0) * 255).round().byte().numpy())


def test_frames_stand_side_by_side_on_red_off_blue() -> None:
    x = torch.zeros(20, 2, 3, 3)
    x[0, 0, 1, 1] = 1
    x[19, 1, 1, 1] = 1
    shown = pixels(picture(x))
    assert shown.shape == (3, 8 * 4, 3)
    assert shown[1, 1].tolist() == [255, 0, 0] and shown[1, 7 * 4 + 1].tolist() == [0, 0, 255]
    assert shown[0, 0].tolist() == [255, 255, 255]


def test_only_what_records_enclose_is_drawn(tmp_path: Path) -> None:
    for key in ("a" * 32, "b" * 32, "c" * 32):
        (tmp_path / "records" / key).mkdir(parents=True)
    stored = pack_adversarials(torch.arange(3), torch.rand(3, 1, 8, 8), binary=False)
    for key in ("a" * 32, "c" * 32):
        (tmp_path / "records" / key / FILE).write_bytes(stored)
    found = enclosed([tmp_path], {"a" * 32, "b" * 32})
    assert list(found) == ["a" * 32] and len(found["a" * 32]) == 2
