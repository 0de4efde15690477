"""What people hold in their hands, for `evaluate`: bare networks, numpy arrays, DataLoaders."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import nn

from robustspike.bench.attack.contract import Attack
from robustspike.bench.data.arrays import describe
from robustspike.bench.errors import ContractError
from robustspike.bench.victim.adapt import adapt
from robustspike.bench.victim.adapt import outputs
from robustspike.bench.victim.module import ModuleVictim


def gathered(x: Any, y: Any) -> tuple[Any, Any]:
    """Return inputs and labels as tensors, of a DataLoader those of all its batches."""
    if y is None:
        try:
            batches = [(torch.as_tensor(batch[0]), torch.as_tensor(batch[1])) for batch in x]
        except (TypeError, IndexError) as error:
            raise ContractError(
                "evaluate: give labels y, or for x a DataLoader of (inputs, labels)."
            ) from error
        if not batches:
            raise ContractError("evaluate: the data set is empty. Give at least one sample.")
        return torch.cat([inputs for inputs, _ in batches]), torch.cat([labels for _, labels in batches])
    x, y = (torch.as_tensor(part) if isinstance(part, np.ndarray) else part for part in (x, y))
    return x, y


def adapted_to(network: nn.Module, x: Any, y: Any) -> ModuleVictim:
    """Adapt a bare network to the samples that it is given with."""
    if not isinstance(x, Tensor) or x.dim() < 2:
        raise ContractError("evaluate: inputs of a network must be a tensor or array [N, *shape].")
    what = describe(x, torch.as_tensor(y).flatten())
    known: dict[str, Any] = {"shape": what.shape, "domain": what.domain, "bounds": what.bounds}
    settings: dict[str, Any] = {"steps": 0, "time": "auto", "mean": (), "std": ()}
    settings |= {"stochastic": False, "training_neurons": False}
    classes = outputs(network, **known, **settings)
    return adapt(network, name=type(network).__name__, classes=classes, **known, **settings)


def tell(attack: Attack, done: int, total: int, started: float) -> None:
    """Show on a terminal how far an evaluation is, and the time left."""
    if not sys.stderr.isatty() or total < 2:
        return
    spent = time.monotonic() - started
    left = f", about {spent / done * (total - done):.0f} s left" if 0 < done < total else ""
    sys.stderr.write(
        f"\r{attack.spec.name}: {done} of {total} samples{left}   " + ("\n" if done == total else "")
    )
    sys.stderr.flush()
