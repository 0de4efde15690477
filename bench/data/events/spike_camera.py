"""Spike-camera streams: a bit per pixel and read-out, 1 where a pixel has collected its quantum of light."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from robustspike.bench.data.events.event_files import load_numpy
from robustspike.bench.data.events.event_files import read_bytes
from robustspike.bench.errors import ArtefactError
from robustspike.bench.errors import ConfigError

Stream = npt.NDArray[np.uint8]
"""Spikes of 0 and 1: [T, H, W]."""


def read_spike_dat(path: Path, *, height: int = 250, width: int = 400) -> Stream:
    """Read a `.dat` stream: no header, one bit a pixel, least significant first, rows bottom to top.

    Raises: ArtefactError: missing, empty, or not a whole number of read-outs of that size.
    """
    if height < 1 or width < 1 or height * width % 8:
        raise ConfigError(
            f"read_spike_dat: height * width must be a multiple of 8, got {height} and {width}."
        )
    content, frame = read_bytes(path), height * width // 8
    if len(content) % frame:
        raise ArtefactError(
            f"{path}: {len(content)} bytes are not a whole number of {height}x{width} read-outs of {frame} "
            "bytes. The file is cut short, or from a camera of another size."
        )
    bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8), bitorder="little")
    return np.ascontiguousarray(bits.reshape(-1, height, width)[:, ::-1])


def read_spike_npz(path: Path) -> tuple[Stream, int]:
    """Read a labelled capture (arrays `spk` [T, H, W] of 0 and 1, and `label`): the stream and its label."""
    spikes, label = load_numpy(path, "spk", "label")
    if label.size != 1 or label.dtype.kind not in "iu":
        raise ArtefactError(f"{path}: label must be one integer, got {list(label.shape)} {label.dtype}.")
    if spikes.ndim != 3 or not spikes.size or not np.isin(spikes, (0, 1)).all():
        raise ArtefactError(
            f"{path}: spk must be [T, H, W] of 0 and 1, got {list(spikes.shape)} {spikes.dtype}."
        )
    return spikes.astype(np.uint8), int(label.item())


def spike_frames(stream: Stream, *, steps: int, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Cut a stream into T equal windows of read-outs, 1 where any pixel of a block fired in a window.

    Args:
        stream: spikes [T', H, W].
        steps: windows T; read-outs that do not fill a window are dropped from the end.
        size: (height, width) of the frames; rows and columns that do not fill a block are dropped.

    Shape: returns [T, 1, height, width] float32 of 0 and 1.
    """
    total, height, width = stream.shape
    window, rows, columns = total // max(steps, 1), height // max(size[0], 1), width // max(size[1], 1)
    if steps < 1 or min(size) < 1 or not min(window, rows, columns):
        raise ConfigError(
            f"spike_frames: cannot make {steps} frames of {size[0]}x{size[1]} from a stream of "
            f"{list(stream.shape)}."
        )
    kept = stream[: steps * window, : size[0] * rows, : size[1] * columns]
    blocks = kept.reshape(steps, window, size[0], rows, size[1], columns)
    fired: npt.NDArray[np.float32] = blocks.max(axis=(1, 3, 5))[:, None].astype(np.float32)
    return fired
