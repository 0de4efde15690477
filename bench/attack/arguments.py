"""What a user hands to `evaluate`, checked before the first pass: no attack is blamed for it later."""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from robustspike.bench.attack.task import rules_of
from robustspike.bench.contract.specs import Domain
from robustspike.bench.contract.specs import ThreatModel
from robustspike.bench.contract.specs import VictimSpec
from robustspike.bench.errors import ConfigError
from robustspike.bench.errors import ContractError


def exact(value: object, name: str) -> Fraction:
    """Return a size as an exact fraction: 8/255 of "8/255", "8 / 255" or Fraction(8, 255), 1/10 of 0.1.

    Numbers are taken as they print, so that 0.1 and numpy's float32(0.1) are both 1/10.

    Args:
        value: a string, a number of Python or numpy, or a tensor of one number.
        name: what it is, for messages.

    Raises: ConfigError: not a finite number that is 0 or more.
    """
    given = value
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value[()]
    if isinstance(value, Tensor):
        if value.dim() or value.is_complex():
            raise ConfigError(f"{name}: expected one number, got a tensor of shape {list(value.shape)}.")
        value = (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()[()]
    try:
        if isinstance(value, bool) or not isinstance(value, str | numbers.Real | Decimal):
            raise TypeError(f"a {type(value).__name__}")
        exactly = Fraction("/".join(part.strip() for part in str(value).split("/")))
        if exactly < 0 or not math.isfinite(float(exactly)):
            raise ValueError("not a finite number that is 0 or more")
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(
            f'{name}: expected a number that is 0 or more, such as "8/255" or 0.03, got {given!r} ({error}).'
        ) from error
    return exactly


def whole(value: object, name: str, *, least: int) -> int:
    """Return a whole number. Raises: ConfigError: another type, or too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise ConfigError(f"{name}: expected a whole number of {least} or more, got {value!r}.")
    return int(value)


def checked_inputs(x: object, spec: VictimSpec, threat: ThreatModel) -> Tensor:
    """Return inputs as the harness attacks them: float32, a tensor of ordinary mode.

    Raises: ContractError: of another type or shape, not finite, outside the bounds or the domain.
    """
    where = f"evaluate: x for victim '{spec.name}'"
    wanted = f"[N, {', '.join(map(str, spec.shape))}]"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        hint = "Divide 8-bit images by 255." if got == "torch.uint8" else "Convert it with .float()."
        raise ContractError(f"{where}: expected a floating-point tensor {wanted}, got {got}. {hint}")
    if tuple(x.shape[1:]) != spec.shape:
        raise ContractError(
            f"{where}: expected {wanted}, got {list(x.shape)}. Reshape the data, or fix `shape` in the spec."
        )
    if not len(x):
        raise ContractError(f"{where}: the data set is empty. Give at least one sample.")
    x = x.detach().to(torch.float32)
    if x.is_inference():
        x = x.clone()
    bad = ~torch.isfinite(x.flatten(1)).all(dim=1)
    if bool(bad.any()):
        raise ContractError(
            f"{where}: {int(bad.sum())} of {len(x)} samples hold NaN or infinity, the first in row "
            f"{int(bad.nonzero()[0])}. Remove or mend them."
        )
    low, high = threat.bounds
    least, most = float(x.min()), float(x.max())
    if least < low or most > high:
        raise ContractError(
            f"{where}: values from {least:.6g} to {most:.6g}, expected {low:g} to {high:g}. Scale the data "
            "to these bounds and put the normalisation into the module, or declare the victim's own `bounds`."
        )
    if spec.domain is Domain.SPIKES and not bool(((x == low) | (x == high)).all()):
        raise ContractError(
            f"{where}: its domain is binary event frames, so every value must be {low:g} or {high:g}; other "
            "values were found. Binarise the frames, or declare the domain `events` or `static`."
        )
    if spec.domain is Domain.EVENTS and not bool((x == x.round()).all()):
        raise ContractError(f"{where}: its domain is event counts, and values that are not whole were found.")
    return x


def checked_labels(y: object, n: int, spec: VictimSpec) -> Tensor:
    """Return labels [N] int64, or the scores [N] float64 of a quality model.

    Raises: ContractError: of another type, shape or number, or not classes of the victim.
    """
    where = f"evaluate: y for victim '{spec.name}'"
    if not isinstance(y, Tensor):
        raise ContractError(f"{where}: expected a tensor [{n}], got {type(y).__name__}. Use torch.tensor.")
    if tuple(y.shape) != (n,):
        hint = "Give one class for every input: one-hot labels by .argmax(dim=1), [N, 1] by .squeeze(1)."
        raise ContractError(f"{where}: expected [{n}], as many as inputs, got {list(y.shape)}. {hint}")
    y = y.detach()
    if y.is_inference():
        y = y.clone()
    return rules_of(spec).labels(y, spec, where)
