"""What the harness costs: a cell's time over that of the same passes on the bare module.

    python tests/benchmarks/harness_overhead.py

PGD-20 with the native gradient on lif_cnn.digits, 125 samples, at an eps so small that no sample
leaves the batch; the raw loop makes the same 20 forward/backward passes and 4 forward passes (clean
answer, last iterate, two verifications). Runs alternate; the median of the ratios is printed.
"""

from __future__ import annotations

import statistics
import time
from fractions import Fraction

import torch
from spikingjelly.activation_based import functional
from torch.nn.functional import cross_entropy

from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

STEPS, ROUNDS = 20, 9


def main() -> None:
    torch.set_num_threads(1)
    victim = load_victim("lif_cnn.digits")
    split = registry("datasets").get("digits").load("test")[:125]
    attack = registry("attacks").get("pgd.linf", steps=STEPS)
    threat = ThreatModel(eps=Fraction(1, 100_000))

    def harness() -> float:
        start = time.process_time()
        result = evaluate_shard(victim, attack, threat, split.x, split.y, split.ids)
        assert result.count("broken") == 0
        return time.process_time() - start

    def raw() -> float:
        start = time.process_time()
        for _ in range(STEPS):
            functional.reset_net(victim.module)
            x = split.x.clone().requires_grad_(True)
            loss = cross_entropy(victim.module(x), split.y, reduction="sum")
            torch.autograd.grad(loss, x)
        for _ in range(4):
            functional.reset_net(victim.module)
            with torch.no_grad():
                victim.module(split.x)
        return time.process_time() - start

    harness(), raw()
    ratios = [harness() / raw() for _ in range(ROUNDS)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"harness / raw passes: {statistics.median(ratios):.2f} (median of {ROUNDS}, {spread})")  # noqa: T201


if __name__ == "__main__":
    main()
