"""Adversarial inputs as bytes: what a record encloses."""

from __future__ import annotations

import math
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from robustspike.bench.errors import ArtefactError
from robustspike.bench.record.schema import read_limited


def read_adversarials(folder: Path) -> tuple[Tensor, Tensor]:
    """Read the adversarial inputs of a record folder: sample ids [n] and inputs [n, ...]."""
    path = folder / "adversarials.safetensors"
    return unpack_adversarials(read_limited(path), path)


def unpack_adversarials(data: bytes, where: Path) -> tuple[Tensor, Tensor]:
    """Read adversarials.safetensors back: sample ids [n] and inputs [n, ...]. Raises: ArtefactError."""
    try:
        tensors = safetensors.torch.load(data)
        rows, x = tensors["rows"], tensors["x"]
        if "shape" in tensors:
            shape = [int(size) for size in tensors["shape"]]
            bits = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
            flat = ((x[..., None] & bits) > 0).flatten(1).float()
            x = flat[:, : math.prod(shape)].reshape(len(x), *shape)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtefactError(f"{where}: not readable adversarial inputs ({error}).") from error
    if rows.dim() != 1 or len(rows) != len(x):
        raise ArtefactError(f"{where}: {len(rows)} sample ids for {len(x)} inputs.")
    return rows, x


def pack_adversarials(rows: Tensor, x_adv: Tensor, *, binary: bool) -> bytes:
    """Return adversarials.safetensors: "rows" (sample ids) and "x".

    Real inputs are float32; binary frames are packed 8 to a byte (bit 7 first) with "shape" beside them.
    """
    if not binary:
        return safetensors.torch.save({"rows": rows, "x": x_adv.float().contiguous()})
    size = math.prod(x_adv.shape[1:])
    flat = x_adv.reshape(len(x_adv), size).to(torch.uint8)
    bits = torch.nn.functional.pad(flat, (0, -size % 8)).view(len(flat), -(-size // 8), 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    packed = (bits * weights).sum(dim=2, dtype=torch.uint8)
    shape = torch.tensor(x_adv.shape[1:], dtype=torch.int64)
    return safetensors.torch.save({"rows": rows, "x": packed.contiguous(), "shape": shape})
