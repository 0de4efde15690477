"""What an estimator costs, as a ratio in one process: pytest tests/benchmarks --benchmark-only."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from robustspike.attacks.pixels.pgd import Pgd
from robustspike.bench.api import Dataset
from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

ROUNDS = 7


@pytest.mark.parametrize(("estimator", "limit"), (("pdsg", 1.5), ("assg", 2.0), ("hart", 1.5), ("rga", 1.5)))
def test_pgd_20_against_the_arctangent(estimator: str, limit: float, benchmark: Any) -> None:
    torch.set_num_threads(1)
    data: Dataset = registry("datasets").get("digits")
    split = data.load("test")
    victim = load_victim("lif_cnn.digits")
    x, y = split.x[:128], split.y[:128]
    best: dict[str, float] = {}

    def both() -> None:
        for name in ("atan", estimator):
            start = time.process_time()
            # So small an eps breaks no sample: every one pays for all 20 steps.
            result = evaluate(victim, Pgd(estimator=name), x, y, eps="1/100000")
            spent = time.process_time() - start
            assert result.robust == result.clean
            best[name] = min(best.get(name, spent), spent)

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    ratio = best[estimator] / best["atan"]
    benchmark.extra_info["ratio"] = round(ratio, 3)
    assert ratio <= limit, f"{estimator}: {ratio:.2f} times the cost of atan"
