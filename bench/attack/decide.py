"""What a victim decides on a batch: by one pass, or by votes of fresh draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustspike.bench.contract.specs import Task
from robustspike.bench.numbers.losses import margin
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import stable_hash
from robustspike.bench.victim.joint import answered_class
from robustspike.bench.victim.joint import over_members
from robustspike.bench.victim.module import ModuleVictim

VERIFICATION_DRAWS = 20
"""Fresh noise draws on which a sample of a stochastic victim is decided; no attack has seen them."""

VERIFICATION_WRONG = 11
"""A sample of a stochastic victim is wrong, clean or attacked, if this many of the draws are wrong (with a
targeted goal, for the attacked input: answer the target)."""


@dataclass
class Answer:
    """The victim's decision on a batch.

    Args:
        label: the class decided on, or 0 for quality models.
        score: mean margin strongest-other minus true, or the mean score of a quality model.
        finite: whether every logit was finite.
        logits: mean logits over the draws.
        draws: the logits of every draw, [D, N, K]; D = 1 without noise.
        right: the share of draws that answer the true class (of no meaning for quality models).
    """

    label: Tensor
    score: Tensor
    finite: Tensor
    logits: Tensor
    draws: Tensor
    right: Tensor

    @property
    def needed(self) -> int:
        """How many draws must agree on a failure."""
        return VERIFICATION_WRONG if len(self.draws) > 1 else 1


def decide(victim: ModuleVictim, x: Tensor, y: Tensor, streams: RowStreams) -> Answer:
    """Let the victim decide on a batch, by one pass, or by votes of fresh draws if stochastic.

    The class decided on is the true one unless at least `VERIFICATION_WRONG` draws are wrong, and then
    the most frequent wrong one.
    """
    noisy, classes = victim.spec.stochastic, victim.spec.classes
    answers = []
    with torch.no_grad():
        for draw in range(VERIFICATION_DRAWS if noisy else 1):
            noise = streams.fork("draw", draw) if noisy else None
            answers.append(victim.logits(x, noise=noise).double())
    draws = torch.stack(answers)
    logits = draws.mean(dim=0)
    finite = torch.isfinite(logits).all(dim=1)
    zeros = torch.zeros_like(y, dtype=torch.int64)
    answer = Answer(zeros, logits.squeeze(1), finite, logits, draws, zeros.double())
    if victim.spec.task is Task.CLASSIFY:
        answer.score = over_members(margin, logits, y, classes).amin(dim=1)
        labels = torch.stack([answered_class(part, y, classes) for part in draws])
        votes = torch.nn.functional.one_hot(labels, classes).sum(dim=0).scatter(1, y[:, None], -1)
        answer.right = (labels == y).double().mean(dim=0)
        wrong = (labels != y).sum(dim=0) >= answer.needed
        answer.label = torch.where(wrong, votes.argmax(dim=1), y)
    return answer


def target_classes(y: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Draw the target class of every sample from all but its label, by a hash of its id.

    It depends on nothing else: all victims, attacks and seeds aim at the same class. Shape: [N], [N] -> [N].
    """
    offset = torch.tensor([stable_hash("target", int(i)) % (classes - 1) + 1 for i in ids], device=y.device)
    return (y + offset) % classes
