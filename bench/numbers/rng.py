"""Random numbers that belong to samples, not to batches.

A stream is a 64-bit key and a counter for each row. The n-th number of a row is a hash of its key
and n (the SplitMix64 finaliser, Steele, Lea & Flood, OOPSLA 2014), so it depends on nothing else:
not on batch mates, their order, or the device, and a whole batch is drawn by a few tensor operations.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right without sign extension."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def stable_hash(*parts: object) -> int:
    """Hash printable parts to a signed 64-bit integer, equal on every platform and run."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def generator(*parts: object) -> torch.Generator:
    """Make a CPU generator for training, seeded by the hash of the parts; never the global one."""
    return torch.Generator().manual_seed(stable_hash(*parts) & ((1 << 63) - 1))


def global_randomness() -> tuple[bytes, bytes, object]:
    """Return the states of the global generators of torch, NumPy and Python, comparable with ==."""
    _, words, *rest = np.random.get_state()  # noqa: NPY002
    numpy_state = np.asarray(words).tobytes() + repr(rest).encode()
    return torch.get_rng_state().numpy().tobytes(), numpy_state, random.getstate()


@contextmanager
def global_randomness_kept() -> Iterator[None]:
    """Put the global generators back after the block: other people's code moves them, some when imported."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


class RowStreams:
    """One independent random stream for each row of a batch.

    Every drawing method takes `rows` (positions, default all) and a shape per row, and returns
    `[len(rows), *shape]`. A row's numbers continue where its own last draw stopped.
    """

    __slots__ = ("_counters", "_keys")

    def __init__(self, keys: Tensor, counters: Tensor | None = None) -> None:
        self._keys = keys
        self._counters = torch.zeros_like(keys) if counters is None else counters

    @classmethod
    def derive(
        cls,
        ids: Sequence[int] | Tensor,
        *parts: object,
        device: torch.device | str = "cpu",
    ) -> RowStreams:
        """Make the streams of the given global sample ids for (root seed, component, restart, ...)."""
        base = stable_hash(*parts)
        rows = torch.as_tensor(ids, dtype=torch.int64, device=device)
        return cls(_mix(_mix(rows * _GAMMA + base) ^ base))

    def __len__(self) -> int:
        return len(self._keys)

    def fork(self, *parts: object, rows: Tensor | None = None, index: Tensor | None = None) -> RowStreams:
        """Make fresh streams, independent of these, named by the parts and an index per row."""
        keys = self._keys if rows is None else self._keys[rows]
        salt = torch.full_like(keys, stable_hash("fork", *parts))
        if index is not None:
            salt = salt + index.to(keys) * _GAMMA
        return RowStreams(_mix(keys ^ _mix(salt)))

    def part(self, rows: Tensor) -> RowStreams:
        """Return the streams of some rows, as they stand; what is drawn there, `advance` books here."""
        return RowStreams(self._keys[rows], self._counters[rows])

    def advance(self, rows: Tensor, part: RowStreams) -> None:
        """Let the streams of some rows go on from where a `part` of them stands."""
        self._counters = self._counters.index_put((rows,), part._counters)

    def _bits(self, rows: Tensor | None, shape: Sequence[int]) -> Tensor:
        count = math.prod(shape)
        if rows is None:
            keys, start = self._keys, self._counters
            self._counters = start + count
        else:
            keys, start = self._keys[rows], self._counters[rows]
            self._counters = self._counters.index_put((rows,), start + count)
        steps = torch.arange(1, count + 1, device=keys.device)
        z = keys[:, None] + (start[:, None] + steps) * _GAMMA
        return _mix(z).view(len(keys), *shape)

    def uniform(
        self, shape: Sequence[int], *, rows: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Draw numbers in [0, 1): 24 bits for float32 and smaller, 53 bits for float64."""
        bits = 53 if dtype == torch.float64 else 24
        return _shift(self._bits(rows, shape), 64 - bits).to(dtype) * 2.0**-bits

    def normal(
        self, shape: Sequence[int], *, rows: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Draw standard normal numbers (inverse error function of 53-bit uniforms)."""
        u = self.uniform(shape, rows=rows, dtype=torch.float64)
        return (torch.erfinv(2 * u - 1 + 2.0**-53) * math.sqrt(2.0)).to(dtype)

    def sign(
        self, shape: Sequence[int], *, rows: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Draw -1 or +1 with equal probability."""
        return (_shift(self._bits(rows, shape), 63) * 2 - 1).to(dtype)

    def integers(self, high: int, shape: Sequence[int], *, rows: Tensor | None = None) -> Tensor:
        """Draw integers in [0, high)."""
        u = self.uniform(shape, rows=rows, dtype=torch.float64)
        return (u * high).floor().to(torch.int64).clamp_(max=high - 1)

    def permutation(self, n: int, *, rows: Tensor | None = None) -> Tensor:
        """Draw one permutation of 0..n-1 per row: [len(rows), n]."""
        return self.uniform((n,), rows=rows, dtype=torch.float64).argsort(dim=1)
