"""Attack losses: functions of logits and labels, one value per sample, which an attack increases.

For a targeted goal the oracle hands the target class instead of the label and negates the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample. Shape: [N, K], [N] -> [N]."""
    return functional.cross_entropy(logits, y, reduction="none")


def strongest_other(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest logit among the wrong classes (masked with -inf, not with zero)."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the strongest wrong logit minus the true one: positive means misclassified."""
    return strongest_other(logits, y) - logits.gather(1, y[:, None]).squeeze(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference-of-logits-ratio loss (Croce & Hein 2020, arXiv:2003.01690, eq. 6).

    Differs: the denominator has 1e-12 added, as in the authors' code; needs at least 3 classes.
    """
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def score(logits: Tensor, y: Tensor) -> Tensor:
    """Return the quality score itself. Shape: [N, 1] -> [N]; y is not used."""
    del y
    return logits.squeeze(1)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "score": score,
}
