"""Attacked inputs as small pictures for the cards of the page: images as they are, frames side by side."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustspike.bench.record.bundle import contents
from robustspike.bench.record.bundle import sources
from robustspike.bench.record.schema import read_limited
from robustspike.bench.record.store import record_folders

if TYPE_CHECKING:  # records without inputs need no torch
    from torch import Tensor

FILE = "adversarials.safetensors"

OF_A_RECORD = 2
"""Pictures of one record: a card shows several attacks."""

FRAMES = 8
"""Frames of a picture at most; of more, as many evenly spaced ones."""


def enclosed(folders: Sequence[Path], keys: Collection[str]) -> dict[str, list[str]]:
    """Return the first attacked inputs of every record that encloses some, as addresses.

    Args:
        folders: folders of records and bundles.
        keys: of the records that are shown.

    Raises: ArtefactError: a file is damaged.
    """
    found = {}
    for folder in sources(folders):
        for key, data, path in _in_bundle(folder) if folder.is_file() else _in_folder(folder, keys):
            if key in keys:
                from robustspike.bench.record.adversarials import unpack_adversarials

                _, x = unpack_adversarials(data, path)
                found[key] = [picture(one) for one in x[:OF_A_RECORD]]
    return found


def _in_bundle(bundle: Path) -> Iterator[tuple[str, bytes, Path]]:
    with zipfile.ZipFile(bundle) as archive:
        if not any(name.endswith(FILE) for name in archive.namelist()):
            return
    for name, data in contents(bundle):
        if name.endswith(FILE):
            yield name.split("/")[1], data, bundle / name


def _in_folder(folder: Path, keys: Collection[str]) -> Iterator[tuple[str, bytes, Path]]:
    for place in record_folders(folder):
        path = place / FILE
        if place.name in keys and path.is_file():
            yield place.name, read_limited(path), path


def picture(x: Tensor) -> str:
    """Return an input as a PNG in an address.

    Args:
        x: an image [C, H, W] in [0, 1], or frames [T, C, H, W], side by side in the order of time. Of two
            channels the first (ON) is red and the second (OFF) blue; counts are scaled by their largest.
    """
    from PIL import Image

    frames = x[None] if x.dim() == 3 else x
    if len(frames) > FRAMES:
        frames = frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
    values = frames.float().numpy()
    values = values / max(1.0, float(values.max()))
    if values.shape[1] == 2:
        on, off = values[:, :1], values[:, 1:]
        values = 1 - np.concatenate([off, np.maximum(on, off), on], axis=1)
    else:
        values = values[:, :3] if values.shape[1] >= 3 else np.repeat(values[:, :1], 3, axis=1)
    if len(values) > 1:
        values = np.pad(values, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=0.5)
    strip = np.concatenate(list((values.clip(0, 1) * 255).round().astype(np.uint8)), axis=2)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(strip.transpose(1, 2, 0))).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
