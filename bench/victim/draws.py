"""A network's own random numbers, drawn from our streams: one for each sample, the same at every repeat."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustspike.bench.errors import ContractError
from robustspike.bench.numbers.rng import RowStreams

_LIKE = {torch.rand_like: "uniform", torch.randn_like: "normal"}
_SIZED = {torch.rand: "uniform", torch.randn: "normal"}
_OTHERS = (
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
    torch.Tensor.bernoulli_,
    torch.Tensor.exponential_,
    torch.normal,
    torch.poisson,
    torch.multinomial,
    torch.randint,
    torch.randint_like,
    torch.randperm,
)


class DrawsFrom(TorchFunctionMode):
    """Answers torch.rand, rand_like, randn, randn_like and bernoulli from one stream a sample.

    Args:
        streams: the streams of a pass, one for each of its n samples.
        shape: one input without the batch axis: a draw [N, *shape] is one for each sample.
        steps: time steps: a draw [T, N, ...] is one for each step and sample, where both fit.

    Raises: ContractError: other draws, or numbers that belong to no sample.
    """

    def __init__(self, streams: RowStreams, *, shape: tuple[int, ...], steps: int) -> None:
        super().__init__()
        self.streams, self.shape, self.steps = streams, shape, steps

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if func in _LIKE:
            return self._drawn(_LIKE[func], args[0].shape, args[0], kwargs)
        if func in _SIZED:
            size = kwargs.pop("size", args[0] if args and not isinstance(args[0], int) else args)
            return self._drawn(_SIZED[func], torch.Size(size), None, kwargs)
        if func in (torch.bernoulli, torch.Tensor.bernoulli) and len(args) == 1:
            u = self._drawn("uniform", args[0].shape, args[0], {})
            return (u < args[0]).to(args[0].dtype)
        if func in _OTHERS:
            raise ContractError(
                f"adapt: the network draws by {getattr(func, '__name__', func)}, for which no stream "
                "stands in. Draw by torch.rand, rand_like, randn, randn_like or bernoulli."
            )
        return func(*args, **kwargs)

    def _drawn(self, kind: str, shape: torch.Size, like: Tensor | None, options: Mapping[str, Any]) -> Tensor:
        n = len(self.streams)
        draw = getattr(self.streams, kind)
        by_steps = len(shape) > 1 and shape[0] == self.steps and shape[1:] != self.shape
        order = (1, 0) if by_steps else (0, 1)
        axis = next((axis for axis in order if len(shape) > axis and shape[axis] == n), None)
        if axis is not None:
            out = draw((*shape[:axis], *shape[axis + 1 :])).movedim(0, axis)
        elif shape and shape[0] % n == 0:
            out = draw((shape[0] // n, *shape[1:])).transpose(0, 1).flatten(0, 1)
        else:
            raise ContractError(
                f"adapt: the network draws random numbers of shape {list(shape)} for {n} samples; expected "
                "the samples along the first or the second axis. Draw numbers for every sample."
            )
        dtype = options.get("dtype") or (torch.get_default_dtype() if like is None else like.dtype)
        return out.to(dtype).requires_grad_(bool(options.get("requires_grad", False)))
