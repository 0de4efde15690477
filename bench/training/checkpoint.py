"""Checkpoints of anyone's training: state dicts as people save them, into the network that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch import nn

from robustspike.bench.errors import ArtefactError

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_INSIDE = ("state_dict", "model_state_dict", "model_state", "net", "model", "network", "ema", "weights")


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read a state dict; return it and what was done to find it, a line each.

    Source: safetensors, or torch files with weights_only=True: nothing in them is run.
    Raises: ArtefactError: not readable, or without a state dict.
    """
    if not path.is_file():
        raise ArtefactError(f"--checkpoint {path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            held: Any = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ArtefactError(f"{path}: not a safetensors file ({error}).") from error
    except Exception as error:
        raise ArtefactError(
            f"{path}: cannot be read without running code in it ({str(error).splitlines()[0]}). Save the "
            "state dict alone: torch.save(net.state_dict(), FILE)."
        ) from error
    told: list[str] = []
    for _ in range(4):
        if isinstance(held, Mapping) and held and all(isinstance(v, Tensor) for v in held.values()):
            return dict(held), told
        key = next(
            (k for k in _INSIDE if isinstance(held, Mapping) and isinstance(held.get(k), Mapping)), None
        )
        if key is None:
            break
        held = held[key]
        told.append(f"the state dict is under '{key}'")
    if isinstance(held, Mapping):
        tensors = {str(key): value for key, value in held.items() if isinstance(value, Tensor)}
        if tensors:
            left = sorted(str(key) for key in held if key not in tensors)
            return tensors, [*told, f"entries that are no tensors are left out: {', '.join(left[:5])}"]
    raise ArtefactError(
        f"{path}: holds a {type(held).__name__} without a state dict (looked under {_INSIDE})."
    )


def load_into(network: nn.Module, state: Mapping[str, Tensor], *, where: str) -> list[str]:
    """Load a state dict whole, prefixes of wrappers taken off; return what was done, a line each.

    Raises: ArtefactError: names the entries that are missing, that are left over, or of another shape.
    """
    wanted = network.state_dict()
    told = []
    found = dict(state)
    for _ in range(3):
        taken = [p for p in _PREFIXES if found and all(key.startswith(p) for key in found)]
        if not taken or set(found) <= set(wanted):
            break
        found = {key.removeprefix(taken[0]): value for key, value in found.items()}
        told.append(f"the prefix '{taken[0]}' is taken off")
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{key} is {list(found[key].shape)} there and {list(wanted[key].shape)} here"
        for key in wanted.keys() & found.keys()
        if found[key].shape != wanted[key].shape
    ]
    if missing or extra or shapes:
        parts = [f"{len(missing)} missing ({_few(missing)})"] if missing else []
        parts += [f"{len(extra)} unknown ({_few(extra)})"] if extra else []
        parts += [f"{len(shapes)} of another shape ({_few(sorted(shapes))})"] if shapes else []
        cause = (
            "It is the checkpoint of another network"
            if len(missing) == len(wanted)
            else "It was made with another width, number of classes or inputs"
            if shapes
            else "The network here has other layers than the one that was saved"
        )
        raise ArtefactError(
            f"{where}: of {len(wanted)} entries of the network {'; '.join(parts)}. {cause}: give the "
            "function that builds the network that was trained."
        )
    network.load_state_dict(found)
    return told


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
