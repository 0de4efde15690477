"""How often a step of an attack waits for the device: counted on the CPU, by the operations that would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from robustspike.bench.api import AttackSpec
from robustspike.bench.api import Budget
from robustspike.bench.api import BudgetExceeded
from robustspike.bench.api import ContractError
from robustspike.bench.api import Oracle
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "equal", "is_nonzero", "masked_select", "bincount")
"""Operations whose result, or its shape, the host must know; so must it that of an index by a mask."""


class Waits(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.__name__.split(".")[0]
        at = args[1] if name.startswith(("index", "_index")) and isinstance(args[1], list | tuple) else ()
        by_mask = any(isinstance(t, Tensor) and t.dtype == torch.bool for t in at)
        self.count += name in WAITS or by_mask
        return func(*args, **(kwargs or {}))


def waits(name: str, steps: int) -> int:
    data = registry("datasets").get("digits").load("test")
    attack = registry("attacks").get(name, steps=steps)
    victim = load_victim("lif_cnn.digits")
    with Waits() as seen:
        result = evaluate(victim, attack, data.x[:8], data.y[:8], eps="1/100000")
    assert result.robust == result.clean  # no hits: what is done with one is no part of every step
    return seen.count


@pytest.mark.parametrize("name", ["pgd.linf", "apgd.ce", "sapgd.linf"])
def test_a_step_waits_at_most_twice(name: str) -> None:
    waits(name, 1)  # what is found out once is not counted
    assert waits(name, 9) - waits(name, 5) <= 2 * 4


class Spends:
    """An attack that changes the rows that it was told can pay, and asks for them."""

    def __init__(self, change: Any) -> None:
        self.spec, self.change = AttackSpec(name="spends", geometries=("linf",)), change

    def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: Any) -> Tensor:
        rows = oracle.active(forwards=1)
        self.change(rows)
        oracle.logits(x0[rows], rows)
        return x0


def spent(change: Any) -> None:
    data = registry("datasets").get("digits").load("test")
    threat = ThreatModel(geometry="linf", eps=0, budget=Budget(forwards=1, backwards=0))
    evaluate(load_victim("lif_cnn.digits"), Spends(change), data.x[:6], data.y[:6], threat=threat)


def test_rows_that_were_changed_after_they_were_granted_are_looked_at_again() -> None:
    spent(lambda rows: None)
    with pytest.raises(BudgetExceeded, match="would need 6 forwards"):
        spent(lambda rows: rows.zero_())
    with pytest.raises(ContractError, match="more passes than its budget"):
        spent(lambda rows: rows.data.zero_())


def test_a_grant_is_spent_once() -> None:
    class Twice(Spends):
        def run(self, oracle: Oracle, x0: Tensor, y: Tensor, *, rng: Any) -> Tensor:
            rows = oracle.active(forwards=1)
            oracle.logits(x0[rows], rows)
            oracle.logits(x0[rows], rows)
            return x0

    data = registry("datasets").get("digits").load("test")
    threat = ThreatModel(geometry="linf", eps=0, budget=Budget(forwards=1, backwards=0))
    with pytest.raises(BudgetExceeded, match="would need 2 forwards"):
        evaluate(load_victim("lif_cnn.digits"), Twice(None), data.x[:6], data.y[:6], threat=threat)
