"""Rounding with the derivative of the identity, and the projections of compression."""

from __future__ import annotations

import torch
from torch import Tensor


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0]


def round_through(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes unchanged."""
    out: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return out


def floor_through(x: Tensor) -> Tensor:
    """Round down; the gradient passes unchanged."""
    return (x - x.detach()) + x.floor()  # in this order the value is exactly the integer


def prune(w: Tensor, keep: float) -> Tensor:
    """Return w with all but the largest `keep` share of its elements set to 0."""
    count = max(1, int(w.numel() * keep))
    least = w.abs().flatten().topk(count).values[-1]
    return torch.where(w.abs() >= least, w, torch.zeros_like(w))


def quantise(w: Tensor, bits: int, *, iterations: int = 10) -> Tensor:
    """Return the nearest alpha * q, q integers of the given width, zeros kept; 1 bit: alpha * sign.

    Alternates q = clip(round(w / alpha)) and alpha = <w, q> / <q, q>.
    """
    if bits == 1:
        signs = w.sign()
        return w.abs().sum() / signs.abs().sum().clamp(min=1) * signs
    top = 2 ** (bits - 1) - 1
    alpha = w.abs().mean() * 2 / top
    q = w
    for _ in range(iterations):
        q = (w / alpha.clamp(min=1e-12)).round().clamp(-top, top)
        alpha = (w * q).sum() / q.square().sum().clamp(min=1e-9)
    nearest: Tensor = alpha * q
    return nearest
