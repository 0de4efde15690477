"""Our APGD and Square beside torchattacks' port of AutoAttack, on a network without spikes.

Compared is the number of test samples that stay correctly classified, at equal eps, iterations or
queries and one random start each; needs `pip install torchattacks`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn

from robustspike.attacks.pixels.square import Square
from robustspike.bench.api import RowStreams
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

POINTS = 0.01
"""Allowed difference in robust accuracy."""


def exclusive_squares(
    self: Square, rows: Tensor, side: int, size: tuple[int, int], rng: RowStreams
) -> Tensor:
    """Place squares as the reference does: they never reach the last row and column."""
    inside = []
    for length in size:
        first = rng.integers(max(length - side, 1), (1,), rows=rows)
        at = torch.arange(length)
        inside.append((at >= first) & (at < first + side))
    return (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)


class Plain(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "params"),
    [
        ("apgd.ce", "apgd.APGD", {"steps": 100, "loss": "ce"}),
        ("apgd.dlr", "apgd.APGD", {"steps": 100, "loss": "dlr"}),
        ("apgd.targeted", "apgdt.APGDT", {"steps": 100}),
        ("square.linf(queries=1000)", "square.Square", {"n_queries": 1000, "resc_schedule": False}),
    ],
)
@pytest.mark.parametrize("eps", ["1/20", "1/10"])
def test_robust_accuracy_is_that_of_the_reference(
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    ours: str,
    theirs: str,
    params: dict[str, Any],
    eps: str,
) -> None:
    monkeypatch.setattr(Square, "_square", exclusive_squares)
    pytest.importorskip("torchattacks", reason="the reference is not installed")
    module, name = theirs.split(".")
    kind = getattr(__import__(f"torchattacks.attacks.{module}", fromlist=[name]), name)
    victim = load_victim("ann_cnn.digits")
    test = registry("datasets").get("digits").load("test")
    x, y = test.x[:500], test.y[:500]
    right = victim.logits(x).argmax(dim=1) == y
    top, bottom = eps.split("/")
    reference = kind(Plain(victim.module).eval(), norm="Linf", eps=int(top) / int(bottom), seed=0, **params)
    adversarial = reference(x[right], y[right]).detach()
    expected = int((victim.logits(adversarial).argmax(dim=1) == y[right]).sum())
    mine = benchmark.pedantic(lambda: evaluate(victim, ours, x, y, eps=eps, shard=500), rounds=1)
    benchmark.extra_info.update(ours=mine.robust, reference=expected)
    assert abs(mine.robust - expected) <= POINTS * len(x)
