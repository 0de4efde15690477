"""Attack a published architecture on CIFAR-10: samples a second, and where the time goes.

    robustspike train resnet18.cifar10 --data DIR --out W --device cuda --bf16 --epochs 8
    python tests/benchmarks/published_cifar10.py --data DIR --weights W --device cuda

Eight epochs and 500 test images under PGD-20 and the verdict's quick level at 8/255 are meant for ten
minutes of one GPU. Printed: accuracy, samples a second, how often the host waited for the GPU, and in a
second run, which waits itself, the share of the time inside the network's forward. Try it on a CPU with
--victim lif_cnn.digits --samples 20.
"""

from __future__ import annotations

import argparse
import time
import warnings
from fractions import Fraction
from pathlib import Path

import torch

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import Split
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

ATTACKS = (("pgd.linf", {}), ("autoattack.snn", {"level": "quick"}))
EPS = Fraction(8, 255)


def attacked(victim: ModuleVictim, split: Split, name: str, params: dict[str, object]) -> tuple[int, float]:
    """Return how many samples stand, and the seconds that took."""
    attack, begun = registry("attacks").get(name, **params), time.perf_counter()
    found = evaluate_shard(victim, attack, ThreatModel(eps=EPS), split.x, split.y, split.ids)
    _wait()
    return found.count("robust"), time.perf_counter() - begun


def waits(victim: ModuleVictim, split: Split, name: str, params: dict[str, object]) -> tuple[int, float, int]:
    """Do the same and count how often the host waited for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        stand, spent = attacked(victim, split, name, params)
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    return stand, spent, sum("synchroniz" in str(warning.message) for warning in caught)


def share_inside(victim: ModuleVictim, split: Split, name: str, params: dict[str, object]) -> float:
    """Return the share of an attack's time that passes inside the network's forward."""
    inside, begun = 0.0, 0.0

    def start(*_: object) -> None:
        nonlocal begun
        _wait()
        begun = time.perf_counter()

    def stop(*_: object) -> None:
        nonlocal inside
        _wait()
        inside += time.perf_counter() - begun

    hooks = [victim.module.register_forward_pre_hook(start), victim.module.register_forward_hook(stop)]
    _, spent = attacked(victim, split, name, params)
    for hook in hooks:
        hook.remove()
    return inside / spent


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--victim", default="resnet18.cifar10")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=500)
    options = parser.parse_args()
    victim = load_victim(options.victim, weights=options.weights, device=options.device)
    data = registry("victims").get(options.victim).data().load("test", root=options.data)
    whole = data[: options.samples]
    split = Split(whole.x.to(options.device), whole.y.to(options.device), whole.ids)
    for name, params in ATTACKS:
        stand, spent, waited = waits(victim, split, name, params)
        share = share_inside(victim, split, name, params)
        print(  # noqa: T201
            f"{options.victim}, {name} at {EPS}: {stand} of {len(split)} stand, {len(split) / spent:.2f} "
            f"samples/s, {waited} waits of the host, {100 * share:.0f} % inside the network's forward"
        )


if __name__ == "__main__":
    main()
