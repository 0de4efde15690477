"""How many samples a network answers at once: fixed by the network, never by the machine.

A rounding depends on the batch that it happens in, and a spike turns a rounding into a bit. So a batch that
is too large for one pass is cut by a rule that is the same everywhere: what one sample takes, counted in the
tensors of its pass and rounded up to a power of two, is divided into `PASS_BYTES`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PASS_BYTES = 1 << 31
"""Bytes of tensors that one pass may hold at once; part of the protocol."""

NEVER_CUT = 1 << 18
"""Bytes of inputs, over all time steps, up to which a batch is one pass whatever the network: a network that
holds 8 kB for every byte of input is taken to be no network that anybody has."""


class _Enough(MemoryError):
    """Ends a call that holds more than anybody need know."""


class _Held(TorchDispatchMode):
    """Adds up the storages that operations in the block allocate and that are still held."""

    def __init__(self, known: Iterable[Tensor], most: int) -> None:
        super().__init__()
        self._most = most
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        which, size = storage._cdata, storage.nbytes()
        if which in self._known:
            return
        self._known.add(which)
        weakref.finalize(storage, self._freed, which, size)
        self.now += size
        self.peak = max(self.peak, self.now)
        if self.peak > self._most:
            raise _Enough

    def _freed(self, which: int, size: int) -> None:
        self._known.discard(which)
        self.now -= size


def peak_bytes(call: Callable[[], object], known: Iterable[Tensor] = (), *, most: int = sys.maxsize) -> int:
    """Return the most bytes of tensors that a call holds at once, those it makes itself.

    Args:
        most: where it comes to hold more, it is ended there.
        known: tensors that are there already, whose views are nothing new.

    Cost: the call, and some microseconds an operation.
    """
    with _Held(known, most) as held, suppress(_Enough):
        call()
    return held.peak


def rows_of(sample_bytes: int) -> int:
    """Return how many samples make one pass, given what one of them takes: a power of two, at least 1."""
    grid = 1 << max(0, sample_bytes - 1).bit_length()
    return max(1, PASS_BYTES // grid)


def whole_rows(rows: Tensor, size: int) -> list[Tensor]:
    """Cut positions 0..n-1 into passes so that the candidates of one sample stay in one of them.

    What an estimator remembers of a sample then moves once for all its candidates, as in a single pass. A
    sample with more candidates than `size` makes a pass of its own.

    Args:
        rows: the sample of every candidate [n].
    Returns: positions of each pass, candidates of a sample in their order.
    """
    order = rows.sort(stable=True).indices
    counts = torch.unique_consecutive(rows[order], return_counts=True)[1].tolist()
    found, start, stop = [], 0, 0
    for count in counts:
        if stop > start and stop + count - start > size:
            found.append(order[start:stop])
            start = stop
        stop += count
    return [*found, order[start:stop]]
