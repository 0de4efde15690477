"""What --compile buys on one network: PGD-20 through torch.compile against the network as it is.

    python tests/benchmarks/compiled.py [VICTIM] [--data DIR] [--samples N] [--eps E]

VICTIM is lif_cnn.cifar10 unless named; its first N (32) test samples are attacked at E (4/255). The
compiler's cache is empty at first. Prints seconds, wall and processor, to compile every size of batch that
the attack may ask for, then of a gradient of all samples (median of 5) and of the attack both ways, its
passes, samples left, and after how many samples compiling has paid for itself. One thread; minutes.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import cross_entropy
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.contract.specs import Status
from robustspike.bench.victim.compiling import BUCKETS
from robustspike.bench.victim.compiling import bucket
from robustspike.bench.victim.compiling import compiled

REPEATS = 5

Result = TypeVar("Result")


def timed(call: Callable[[], Result]) -> tuple[float, float, Result]:
    """Return wall and processor seconds of a call, with processes that ended, and its result."""

    def taken() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    wall, processor = time.monotonic(), taken()
    result = call()
    return time.monotonic() - wall, taken() - processor, result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("victim", nargs="?", default="lif_cnn.cifar10")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--eps", type=Fraction, default=Fraction(4, 255))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    victim = load_victim(asked.victim)
    recipe = registry("victims").get(asked.victim)
    data = recipe.data().first("test", asked.samples, root=asked.data)
    other = compiled(victim)
    native = registry("estimators").get("native")

    def every_size() -> None:
        sizes = {size for size in BUCKETS if size < asked.samples} | {bucket(asked.samples)}
        for size in sorted(sizes):
            x = data.x[:1].expand(size, *data.x.shape[1:])
            other.loss_and_grad(x, data.y[:1].expand(size), cross_entropy, native)
            with torch.no_grad():
                other.logits(x)

    def attacked(asks: ModuleVictim | None) -> tuple[float, float, int, int]:
        threat = ThreatModel(eps=asked.eps)
        rule = registry("attacks").get("pgd.linf", steps=20)
        wall, processor, result = timed(
            lambda: evaluate_shard(victim, rule, threat, data.x, data.y, data.ids, asked=asks)
        )
        assert not result.errors, result.errors
        left = int((result.status == list(Status).index(Status.ROBUST)).sum())
        return wall, processor, int((result.forwards + result.backwards).sum()), left

    attacked(None)  # finds the layers, fills caches
    wall, once, _ = timed(every_size)
    print(f"compiling: {wall:.0f} s wall, {once:.0f} s processor")  # noqa: T201
    for name, asked_for in (("plain", victim), ("compiled", other)):
        gradient = partial(asked_for.loss_and_grad, data.x, data.y, cross_entropy, native)
        taken = [timed(gradient)[1] for _ in range(REPEATS)]
        print(  # noqa: T201
            f"{name}: {1000 * statistics.median(taken):.0f} ms processor a gradient of all {asked.samples}"
        )
    found = {}
    for name, asks in (("plain", None), ("compiled", other)):
        found[name] = attacked(asks)
        wall, processor, passes, left = found[name]
        print(  # noqa: T201
            f"{name}: PGD-20, {asked.samples} samples of {asked.victim}, {asked.eps}: {wall:.1f} s wall, "
            f"{processor:.1f} s processor, {passes} passes, {left} left"
        )
    plain, quick = found["plain"][1], found["compiled"][1]
    paid = f"{once * asked.samples / (plain - quick):.0f} samples" if quick < plain else "never"
    print(f"plain / compiled: {plain / quick:.2f}; compiling is paid after: {paid}")  # noqa: T201


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        main()
