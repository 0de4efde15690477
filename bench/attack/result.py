"""The verdicts on one shard of samples."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field

import torch
from torch import Tensor

from robustspike.bench.contract.specs import Status

STATUS = (Status.ROBUST, Status.BROKEN, Status.WRONG_CLEAN, Status.ERROR, Status.UNCERTIFIED)
"""Order of the status codes 0..4 in stored arrays."""

ROBUST, BROKEN, WRONG, ERROR, UNCERTIFIED = range(5)


@dataclass
class ShardResult:
    """The verdicts on one shard: CPU tensors with one entry per sample, in the shard's order.

    Args:
        ids, labels: global sample ids and labels.
        clean, adv: predicted class on the clean input and on the final one; -1 where not computed.
            For quality models: 0, and the scores are in clean_score and adv_score.
        status: code into `STATUS`.
        distance: size of the final perturbation (0 where none), float64.
        forwards, backwards: passes that the attack spent.
        first_hit: forwards spent at the first legal hit, -1 without one.
        clean_score, adv_score: logit margin strongest-other minus true (positive: wrong) of a
            classifier, or the score of a quality model, on the clean and the final input.
        x_adv: the final inputs; the clean ones where not broken.
        errors: messages, at most one per kind.
        counts: measurements for flags: gradients, zero_gradients, unconfirmed, silent, non_finite;
            forwards:NAME, backwards:NAME and hits:NAME for each part that the attack named; failed:NAME
            and refused:NAME (batches) for each that raised or does not apply; members and members_applied:
            gradient members of an ensemble, and those that ran to their end; hit_once: samples of a
            stochastic victim that some query got wrong; and what the attack itself counted.
        extras: float64 columns beside the verdict: `quality_extras` and `strength_extras` for quality
            models, `spike_extras` on binary frames, and the target class of a targeted goal.
        weights: digest of the victim's weights as they were after the shard; "" where nobody looked.
        cause: what ended the attack or the victim's passes, where something did; not stored.
        seconds: processor seconds that the shard took; in no record.
    """

    ids: Tensor
    labels: Tensor
    clean: Tensor
    adv: Tensor
    status: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    first_hit: Tensor
    clean_score: Tensor
    adv_score: Tensor
    x_adv: Tensor
    errors: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    weights: str = ""
    cause: Exception | None = None
    seconds: float = 0.0

    TENSORS = (
        "ids",
        "labels",
        "clean",
        "adv",
        "status",
        "distance",
        "forwards",
        "backwards",
        "first_hit",
        "clean_score",
        "adv_score",
        "x_adv",
    )

    def count(self, status: Status) -> int:
        """Count the samples with a status."""
        return int((self.status == STATUS.index(status)).sum())


def blank(x: Tensor, y: Tensor, ids: Tensor) -> ShardResult:
    """Return the result of a shard on which nothing has been computed yet."""
    zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return ShardResult(
        ids=ids,
        labels=y,
        clean=zeros - 1,
        adv=zeros - 1,
        status=zeros.clone(),
        distance=zeros.double(),
        forwards=zeros.clone(),
        backwards=zeros.clone(),
        first_hit=zeros - 1,
        clean_score=zeros.double(),
        adv_score=zeros.double(),
        x_adv=x.clone(),
    )


def to_cpu(result: ShardResult) -> ShardResult:
    """Move a result to the CPU, in place, and return it."""
    for name in ShardResult.TENSORS:
        setattr(result, name, getattr(result, name).cpu())
    result.extras = {name: column.cpu() for name, column in result.extras.items()}
    return result
