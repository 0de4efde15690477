"""Parts of an attack side by side: answers as one after the other, each pass counted for its own part."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Budget
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.attack import lanes
from robustspike.bench.attack.evaluate import evaluate_shard

PARTS = {
    "a": "sapgd.linf(estimator='assg(bound=0.94)', steps=4)",
    "b": "sapgd.linf(estimator='assg(bound=0.94)', steps=7, loss='margin')",
    "c": "pgd.linf(estimator='native', steps=3)",
    "d": "apgd.ce(estimator='assg(bound=0.94)', steps=4, restarts=2)",
    "e": "square.linf(queries=4)",
}


class Together:
    """An attack that runs parts at once and keeps what each returned."""

    spec = AttackSpec(name="together", geometries=("linf",), stochastic=True, source="test", cost="test")

    def __init__(self, names: str = "abcde", *, at_once: bool = True, faults: dict | None = None) -> None:
        self.names, self.at_once, self.faults = names, at_once, faults or {}
        self.found: list = []
        self.live: list[int] = []

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
        def part(name: str):
            def code() -> Tensor:
                if name in self.faults:
                    oracle.logits(x0, torch.arange(len(x0)))
                    raise self.faults[name]
                attack = registry("attacks").get(PARTS[name])
                return attack.run(oracle, x0.clone(), y, rng=rng.fork("member", name))

            return name, code

        parts = [part(name) for name in self.names]
        for some in [parts] if self.at_once else [[one] for one in parts]:
            self.found += oracle.side_by_side(some)
        return oracle.best()[0]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of inputs in every gradient pass."""
    seen: list[int] = []
    own = ModuleVictim.loss_and_grad

    def noted(self, x, *args, **kwargs):
        seen.append(len(x))
        return own(self, x, *args, **kwargs)

    monkeypatch.setattr(ModuleVictim, "loss_and_grad", noted)
    yield seen


def attacked(attack, n: int = 4, eps: Fraction = Fraction(1, 1000), **changes):
    split = registry("datasets").get("digits").load("test")[:n]
    threat = ThreatModel(eps=eps, **changes)
    return evaluate_shard(load_victim("lif_cnn.digits"), attack, threat, split.x, split.y, split.ids)


def accounts(result) -> dict[str, int]:
    return {
        k: v for k, v in result.counts.items() if k.partition(":")[0] in ("forwards", "backwards", "hits")
    }


def test_parts_side_by_side_return_what_they_return_alone_at_the_same_passes(passes) -> None:
    alone, abreast = Together(at_once=False), Together()
    expected = attacked(alone)
    turns = len(passes)
    result = attacked(abreast)
    assert max(passes[turns:]) == 12 and len(passes) - turns < turns  # a, b and d in one pass
    for mine, other in zip(abreast.found, alone.found, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-6)  # kernels round by the size of a batch
    assert accounts(result) == accounts(expected)
    assert torch.equal(result.forwards, expected.forwards)
    assert torch.equal(result.backwards, expected.backwards)


def test_a_hit_of_one_part_retires_the_sample_for_all(passes) -> None:
    result = attacked(Together("ab"), eps=Fraction(1, 3))
    counts = result.counts
    assert counts["hits:a"] + counts["hits:b"] == int((result.status == 1).sum()) > 0
    assert passes[-1] < passes[0]
    assert int(result.backwards.sum()) == counts["backwards:a"] + counts["backwards:b"]
    assert counts["backwards:a"] < 4 * 4 and counts["backwards:b"] < 7 * 4


def test_no_more_parts_at_a_time_than_fill_a_pass(monkeypatch, passes) -> None:
    monkeypatch.setattr(lanes, "MOST_ROWS", 8)
    result = attacked(Together("abd"))
    assert max(passes) == 8  # two of four samples each, the third begins when one ends
    assert result.counts["backwards:d"] == 2 * 5 * 4


def test_a_part_that_raises_costs_the_others_nothing() -> None:
    attack = Together("acb", faults={"c": ValueError("broken")})
    attacked(attack)
    kinds = [type(found) for found in attack.found]
    assert kinds == [Tensor, ValueError, Tensor]


def test_an_interrupt_ends_all_parts() -> None:
    attack = Together("ac", faults={"c": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        attacked(attack)
    assert not attack.found


def test_a_smaller_budget_is_not_shared_out() -> None:
    class Asks(Together):
        def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: RowStreams) -> Tensor:
            self.found.append(oracle.abreast(8))
            return x0

    usual, small = Asks(), Asks()
    attacked(usual)
    attacked(small, budget=Budget(forwards=50, backwards=50))
    assert usual.found == [8] and small.found == [1]


def test_parts_that_run_together_never_spend_more_than_the_budget() -> None:
    attack = Together("ab")
    result = attacked(attack, budget=Budget(forwards=8, backwards=8))
    assert all(isinstance(found, Tensor) for found in attack.found)
    assert 4 < int(result.forwards.max()) <= 8
