"""What a victim decides on a batch: by one pass, or by votes of fresh draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustspike.bench.attack.task import rules_of
from robustspike.bench.numbers.rng import RowStreams
from robustspike.bench.numbers.rng import stable_hash
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
        needed: how many draws must agree on a failure.
    """

    label: Tensor
    score: Tensor
    finite: Tensor
    logits: Tensor
    draws: Tensor
    right: Tensor
    needed: int


def decide(victim: ModuleVictim, x: Tensor, y: Tensor, streams: RowStreams) -> Answer:
    """Let the victim decide on a batch, by one pass, or by votes of fresh draws if stochastic.

    The class decided on is the true one unless at least `VERIFICATION_WRONG` draws are wrong, and then
    the most frequent wrong one.
    """
    noisy = victim.spec.stochastic
    answers = []
    with torch.no_grad():
        for draw in range(VERIFICATION_DRAWS if noisy else 1):
            noise = streams.fork("draw", draw) if noisy else None
            answers.append(victim.logits(x, noise=noise).double())
    draws = torch.stack(answers)
    logits = draws.mean(dim=0)
    needed = VERIFICATION_WRONG if noisy else 1
    label, score, right = rules_of(victim.spec).decided(draws, logits, y, victim.spec.classes, needed)
    return Answer(label, score, torch.isfinite(logits).all(dim=1), logits, draws, right, needed)


def target_classes(y: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Draw the target class of every sample from all but its label, by a hash of its id.

    It depends on nothing else: all victims, attacks and seeds aim at the same class. Shape: [N], [N] -> [N].
    """
    offset = torch.tensor([stable_hash("target", int(i)) % (classes - 1) + 1 for i in ids], device=y.device)
    return (y + offset) % classes
