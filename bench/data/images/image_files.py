"""Readers of published image files: idx (MNIST), CIFAR's binary and pickled batches, and photographs.

A damaged or hostile file gives one `ArtefactError`; nothing in a file is ever executed.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import pickletools
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robustspike.bench.errors import ArtefactError

Bytes = npt.NDArray[np.uint8]

_IDX_LARGEST = 1 << 30
"""Bytes that an idx file may unpack to: a small file that claims more is a bomb, not a data set."""

_CIFAR_PIXELS = 3 * 32 * 32


def read_idx(path: Path) -> Bytes:
    """Read an idx file of unsigned bytes, gzip-compressed or not.

    Raises: ArtefactError: unreadable, of another type, shorter or longer than its header says.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream: Any = gzip.GzipFile(fileobj=plain) if packed else plain
            magic = stream.read(4)
            if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
                raise ArtefactError(
                    f"{path}: not an idx file of bytes (it starts with {magic!r}). Fetch it again."
                )
            sizes = stream.read(4 * magic[3])
            shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist()) if len(sizes) == 4 * magic[3] else ()
            count = math.prod(shape) if shape else -1
            if not 0 < count <= _IDX_LARGEST:
                raise ArtefactError(f"{path}: its header gives the impossible size {shape}. Fetch it again.")
            content = stream.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{path}: cannot be read ({error}). Fetch it again.") from error
    if len(content) != count:
        found = "more" if len(content) > count else str(len(content))
        raise ArtefactError(f"{path}: {count} bytes expected by its header, {found} found. Fetch it again.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_cifar_binary(path: Path, *, classes: int = 10) -> tuple[Bytes, Bytes]:
    """Read a binary batch of CIFAR-10, or of CIFAR-100: images [N, 3, 32, 32] and labels [N].

    Args:
        classes: 10, or 100: a record then has a coarse label, which is skipped, before the fine one.

    Raises: ArtefactError: unreadable, cut short, or with labels that do not exist.
    """
    labels = 1 if classes == 10 else 2
    record = labels + _CIFAR_PIXELS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error}).") from error
    if not content or len(content) % record:
        raise ArtefactError(
            f"{path}: {len(content)} bytes are no whole number of {record}-byte records. Fetch it again."
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    return _checked(path, records[:, labels:], records[:, labels - 1], classes)


def read_cifar_pickle(path: Path, *, classes: int = 10) -> tuple[Bytes, Bytes]:
    """Read a pickled ("python version") batch of CIFAR-10 or CIFAR-100; nothing that it names is called.

    Containers, numbers and texts become themselves; of the few names that numpy's arrays are pickled with, a
    note is taken; any other is refused.

    Raises: ArtefactError: unreadable, or anything but a dictionary with such an array and labels.
    """
    try:
        content = path.read_bytes()
        found = _unpickled(content)
    except (
        OSError,
        EOFError,
        pickle.UnpicklingError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise ArtefactError(
            f"{path}: not a CIFAR-{classes} batch ({type(error).__name__}: {error}). Fetch it again, or use "
            "the binary version."
        ) from error
    if not isinstance(found, dict):
        raise ArtefactError(f"{path}: a pickled {type(found).__name__}, not a CIFAR-{classes} batch.")
    named = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in found.items()}
    labels = named.get("labels" if classes == 10 else "fine_labels")
    if not isinstance(labels, list) or not all(isinstance(v, int) and 0 <= v <= 255 for v in labels):
        raise ArtefactError(f"{path}: no list of labels in it. Use the binary version.")
    return _checked(path, _array(path, named.get("data")), np.array(labels, dtype=np.uint8), classes)


def _checked(path: Path, pixels: Bytes, labels: Bytes, classes: int) -> tuple[Bytes, Bytes]:
    if pixels.shape != (len(labels), _CIFAR_PIXELS) or not len(labels):
        raise ArtefactError(f"{path}: images {pixels.shape} do not go with {len(labels)} labels.")
    if labels.max() >= classes:
        raise ArtefactError(
            f"{path}: a label is {labels.max()}, but CIFAR-{classes} has classes 0 to {classes - 1}."
        )
    return pixels.reshape(-1, 3, 32, 32), labels


def read_photograph(path: Path, side: int, *, shrink: float) -> Bytes:
    """Read an image file, shrink or enlarge it, and cut its middle square: [3, side, side].

    Args:
        shrink: the shorter side becomes round(shrink side) pixels before the cut; at most 1 keeps a file
            of exactly side x side pixels as it is.

    Raises: ArtefactError: unreadable as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow promises no set of errors for a damaged file
        raise ArtefactError(f"{path}: cannot be read as an image ({error}).") from error
    if image.size != (side, side):
        shorter = round(shrink * side)
        scale = shorter / min(image.size)
        image = image.resize(
            (max(side, round(image.width * scale)), max(side, round(image.height * scale))),
            Image.Resampling.BILINEAR,
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


_NOT_BYTES = {"I": "32-bit integers", "F": "floating-point numbers"}
"""Pillow's modes that it cuts off at 255 when it converts them to RGB; 16-bit grey is handled apart."""


def read_rgb(path: Path, *, upright: bool) -> Bytes:
    """Read an image file as RGB: [H, W, 3]. Of 16 bits the upper 8 are kept; CMYK is converted without a
    colour profile; an alpha channel is dropped where every pixel is opaque.

    Args:
        upright: turn the image as its EXIF tag says. Published sets are read as their files lie.

    Raises: ArtefactError: unreadable as an image, of numbers that are no 8 or 16 bits, or transparent.
    """
    from PIL import Image
    from PIL import ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened) if upright else opened
            mode, pixels = image.mode, np.asarray(image)
            seen = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else None
            rgb = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow promises no set of errors for a damaged file
        raise ArtefactError(f"{path}: cannot be read as an image ({error}).") from error
    if mode in _NOT_BYTES:
        raise ArtefactError(
            f"{path}: its pixels are {_NOT_BYTES[mode]}, expected 8 or 16 bits a channel. Save it as PNG."
        )
    if seen is not None and seen.min() < 255:
        raise ArtefactError(
            f"{path}: {np.mean(seen < 255):.1%} of its pixels are transparent, and what lies behind them is "
            "not known. Flatten it on a background first."
        )
    if mode.startswith("I;16"):  # Pillow's own conversion cuts off at 255
        grey = (pixels.astype(np.uint16) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[:, :, None], 3, axis=2)
    return rgb


@dataclass
class _Call:
    """What a pickle would have called: its dotted name, the arguments, and the state set afterwards."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __call__(self, *arguments: Any) -> Any:
        match self.name, arguments:
            case "_codecs.encode", (str(text), "latin1"):  # bytes, as Python 3 writes them
                return text.encode("latin-1")
        return _Call(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


_KNOWN = {"_codecs.encode", "numpy.dtype", "numpy.ndarray"}
_MOST_NOTES = 1 << 18
"""Values that a batch may refer back to; a larger number in a small file would only take memory."""


class _Restricted(pickle.Unpickler):
    """Builds numbers, texts and containers; of the names that an array is made of, a note; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        dotted = f"{module}.{name}"
        if dotted in _KNOWN or dotted.endswith(".multiarray._reconstruct"):
            return _Call(dotted)
        raise pickle.UnpicklingError(f"it asks for {dotted}, which has no place in a batch of images")


def _unpickled(content: bytes) -> Any:
    """Build the value that a pickle describes, with calls as `_Call`s. Raises: ValueError and kin."""
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" in opcode.name and int(argument or 0) > _MOST_NOTES:
            raise ValueError(f"it keeps its value number {argument}")
    return _Restricted(io.BytesIO(content), encoding="latin1").load()


def _array(path: Path, call: Any) -> Bytes:
    """Return the array of bytes that a noted call of numpy's reconstruction stands for."""
    match call:
        case _Call(name=str(name), state=(int(), (int(rows), int(columns)), _Call() as kind, fortran, raw)):
            content = raw.encode("latin-1") if isinstance(raw, str) else raw
            known = name.endswith(".multiarray._reconstruct") and kind.name == "numpy.dtype"
            of_bytes = isinstance(kind.arguments, tuple) and kind.arguments[:1] in (("u1",), (b"u1",))
            if known and of_bytes and isinstance(content, bytes) and len(content) == rows * columns > 0:
                flat = np.frombuffer(content, dtype=np.uint8)
                return flat.reshape((rows, columns), order="F" if fortran else "C")
    raise ArtefactError(f"{path}: its 'data' is not an array of bytes. Use the binary version.")
