"""A library's attack in batches against one sample at a time: time as a ratio of one run, and what is left.

Run where the libraries are installed: python tests/benchmarks/foreign_batches.py
"""

from __future__ import annotations

import importlib.util
import sys
import time

from robustspike.bench.api import evaluate
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

ATTACKS = {
    "foolbox": "LinfPGD(steps=20, random_start=false)",
    "torchattacks": "PGD(steps=20, random_start=false)",
    "art": "ProjectedGradientDescent(max_iter=20, eps_step=0.01, verbose=false)",
}


def main() -> None:
    """Measure every library that is there on 50 digits."""
    data, victim = registry("datasets").get("digits").load("test"), load_victim("lif_cnn.digits")
    for library, attack in ATTACKS.items():
        if importlib.util.find_spec(library) is None:
            sys.stdout.write(f"{library}: not installed\n")
            continue
        seconds, left = [], []
        for batched in (False, True):
            chosen = registry("attacks").get("foreign", library=library, attack=attack, batched=batched)
            started = time.perf_counter()
            result = evaluate(victim, chosen, data.x[:50], data.y[:50], eps="1/10")
            seconds.append(time.perf_counter() - started)
            left.append(result.robust)
        sys.stdout.write(
            f"{library}: {seconds[0] / seconds[1]:.1f} times faster; robust {left[0]} and {left[1]}\n"
        )


if __name__ == "__main__":
    main()
