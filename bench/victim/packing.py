"""Gradients of inputs that need more memory than a pass may hold: what the backward pass needs is kept small.

A gradient through time needs what every layer saw at every step. Spikes among it are kept as bits, anything
else goes to a temporary file (in TMPDIR) beyond a bound, and both come back bit for bit when their layer's
turn comes: the gradient is that of an ordinary pass, and nothing is run twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 16
"""Bytes of a tensor below which it is left as it is."""

_WHOLE = {4: torch.int32, 8: torch.int64}
"""Whole numbers with the bits of floating-point numbers of so many bytes."""


class Packed:
    """What is kept for one backward pass.

    Attributes:
        held: bytes kept in memory, packed or as they are; at most about `most`.
        written: bytes in the file.
    """

    def __init__(self, most: int, file: BinaryIO, known: Iterable[Tensor]) -> None:
        self._most, self._file = most, file
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self.held = self.written = 0

    def pack(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Take a tensor in; return what gives it back."""
        size = tensor.numel() * tensor.element_size()
        plain = tensor.is_floating_point() and tensor.element_size() in _WHOLE and tensor.is_contiguous()
        if not plain or size < LEAST or tensor.untyped_storage()._cdata in self._known:
            return lambda: tensor
        shape, device, kind = tensor.shape, tensor.device, tensor.dtype
        bits = tensor.detach().cpu().flatten().view(_WHOLE[tensor.element_size()])
        one = bits.max()
        if bool(((bits == 0) | (bits == one)).all()):
            packed = np.packbits(bits.numpy() != 0)
            self.held += packed.nbytes
            give = self._ones(packed, len(bits), one)
        elif self.held + size <= self._most:
            self.held += size
            give = self._kept(bits)
        else:
            give = self._stored(bits)
        return lambda: give().view(kind).view(shape).to(device)

    @staticmethod
    def _ones(packed: np.ndarray, n: int, one: Tensor) -> Callable[[], Tensor]:
        return lambda: torch.from_numpy(np.unpackbits(packed, count=n)).to(one.dtype).mul_(one)

    @staticmethod
    def _kept(bits: Tensor) -> Callable[[], Tensor]:
        return lambda: bits

    def _stored(self, bits: Tensor) -> Callable[[], Tensor]:
        at, size, kind = self.written, bits.numel() * bits.element_size(), bits.dtype
        self._file.seek(at)
        self.written += self._file.write(bits.numpy().tobytes())

        def read() -> Tensor:
            self._file.seek(at)
            return torch.frombuffer(bytearray(self._file.read(size)), dtype=kind)

        return read


@contextmanager
def packed(most: int, known: Iterable[Tensor] = ()) -> Iterator[Packed]:
    """Keep small what passes in the block save for their backward pass, which lies in the block too.

    Args:
        most: bytes that stay in memory before the file is used; spikes do in any case.
        known: tensors that are there anyway (parameters).

    Cost: some reads of every saved tensor. On an accelerator they wait in the host's memory.
    """
    with tempfile.TemporaryFile() as file:
        store = Packed(most, file, known)  # type: ignore[arg-type]
        with torch.autograd.graph.saved_tensors_hooks(store.pack, lambda give: give()):
            yield store
