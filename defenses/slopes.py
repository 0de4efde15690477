"""Slopes of a score along a direction, by a finite difference: what gradient regularisers penalise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from robustspike.bench.api import Step
from robustspike.bench.api import cross_entropy

Form = Literal["l1", "l1_sq", "l1_sq_half"]
Target = Literal["softmax_prob", "pair_prob", "logit", "margin", "loss", "score"]
Direction = Literal["sign", "l2"]
Score = Callable[[Tensor], Tensor]

FORMS: tuple[Form, ...] = ("l1", "l1_sq", "l1_sq_half")
TARGETS: tuple[Target, ...] = ("softmax_prob", "pair_prob", "logit", "margin", "loss", "score")


def score_of(logits: Tensor, y: Tensor, target: Target) -> Score:
    """Return the scalar f of logits whose input gradient is penalised; constants are fixed here.

    Args:
        logits: answers at the clean point; "pair_prob" and "margin" take the strongest wrong class there
            and keep it.
        y: labels [N].
        target: "softmax_prob": probability of the true class; "pair_prob": exp(z_y) / (exp(z_y) +
            exp(z_r)), as a sigmoid, so that it does not overflow; "logit": z_y; "margin": z_y - z_r;
            "loss": the cross-entropy; "score": the single output of a quality model.

    Returns: a function [N, K] -> [N].
    """
    if target == "score":
        return lambda z: z.squeeze(1)
    if target == "loss":
        return lambda z: cross_entropy(z, y)

    def own(z: Tensor) -> Tensor:
        return z.gather(1, y[:, None]).squeeze(1)

    if target == "logit":
        return own
    if target == "softmax_prob":
        return lambda z: own(z.softmax(dim=1))
    with torch.no_grad():
        mine = functional.one_hot(y, logits.shape[1]).bool()
        rival = logits.masked_fill(mine, -torch.inf).argmax(dim=1, keepdim=True)

    def gap(z: Tensor) -> Tensor:
        return own(z) - z.gather(1, rival).squeeze(1)

    return gap if target == "margin" else lambda z: torch.sigmoid(gap(z))


def slope(
    step: Step,
    x: Tensor,
    logits: Tensor,
    score: Score,
    *,
    h: float,
    direction: Direction = "sign",
    clamp: bool = False,
) -> Tensor:
    """Return (f(x + h d) - f(x)) / h per sample, differentiable in the parameters through both passes.

    d is the sign of the input gradient of f (the slope is then its l1 norm) or the gradient divided by
    its l2 norm (the slope is its l2 norm); it is a constant to the optimiser, so no second derivative of
    a surrogate is needed. On a spiking network the forward pass is piecewise constant: h is a smoothing
    scale, and the slope goes to 0, not to the surrogate's norm, when h does.

    Args:
        step: the training step.
        x: inputs, a leaf that carries a gradient.
        logits: answers to x, with their graph.
        score: f as a function of logits, see `score_of`.
        h: length of the difference in pixel units.
        direction: "sign" or "l2".
        clamp: whether x + h d is clamped to [0, 1].

    Shape: returns [N].
    Cost: 1 input-gradient backward and 1 forward.
    """
    here = score(logits)
    gradient = step.input_gradient(here, x, keep_graph=True)
    if direction == "sign":
        toward = gradient.sign()
    else:
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        toward = gradient / length.view(-1, *[1] * (x.dim() - 1))
    moved = (x + h * toward).detach()
    if clamp:
        moved = moved.clamp(0, 1)
    return (score(step.logits(moved)) - here) / h


def penalty_of(slopes: Tensor, form: Form) -> Tensor:
    """Return the batch mean of |slope|, of its square, or of half its square."""
    if form == "l1":
        return slopes.abs().mean()
    return slopes.square().mean() * (0.5 if form == "l1_sq_half" else 1.0)
