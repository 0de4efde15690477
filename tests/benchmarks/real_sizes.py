"""SDA, SCG and retiming on integer counts at 2x128x128: seconds, passes and peak memory for two samples.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/real_sizes.py [side] [steps]
The network is a spiking VGG of five convolutions with drawn weights: the numbers are costs, not robustness.
"""

from __future__ import annotations

import resource
import sys
import time
from fractions import Fraction

import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron
from torch import nn

from robustspike.bench.api import Budget
from robustspike.bench.api import Domain
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import adapt
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import registry

RUNS = [
    ("sda.l0", {"estimator": "native", "iterations": 6}, "count_l1", 40),
    ("scg.l0", {"iterations": 5, "scales": (0.01,)}, "count_l0", 4000),
    ("retime.pil", {"steps": 5}, "retime_linf", 1),
    ("retime.greedy", {"rounds": 4}, "retime_l0", 1000),
]


def main(side: int = 128, steps: int = 10) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inside, out in ((2, 16), (16, 32), (32, 32), (32, 64), (64, 64)):
        layers += [
            layer.Conv2d(inside, out, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(out, step_mode="m"),
            neuron.LIFNode(step_mode="m", detach_reset=True),
            layer.AvgPool2d(2, step_mode="m"),
        ]
    layers += [layer.Flatten(step_mode="m"), layer.Linear(64 * (side // 32) ** 2, 11, step_mode="m")]
    shape = (steps, 2, side, side)
    counts = (torch.rand((2, *shape), generator=generator("counts")) * 8 - 5).floor().clamp(min=0)
    network = nn.Sequential(*layers).train()
    with torch.no_grad():  # statistics of the normalisations, so that all layers spike
        for _ in range(20):
            network(counts.transpose(0, 1))
            for module in network.modules():
                if hasattr(module, "reset"):
                    module.reset()
    victim = adapt(
        network,
        name="vgg",
        shape=shape,
        classes=11,
        time="time-first",
        domain=Domain.EVENTS,
        bounds=(0.0, 8.0),
    )
    y = victim.logits(counts).argmax(dim=1)
    sys.stdout.write(f"{len(counts)} samples of {steps}x2x{side}x{side}; peak so far {peak():.2f} GiB\n")
    for name, params, geometry, eps in RUNS:
        threat = ThreatModel(
            domain=Domain.EVENTS,
            geometry=geometry,
            eps=Fraction(eps),
            bounds=(0.0, 8.0),
            budget=Budget(forwards=2000, backwards=200),
        )
        attack = registry("attacks").get(name, **params)
        began = time.perf_counter()
        result = evaluate_shard(victim, attack, threat, counts, y, torch.arange(len(counts)))
        assert not result.errors, result.errors
        spent, broken = time.perf_counter() - began, int((result.status == 1).sum())
        sys.stdout.write(
            f"{name} {geometry} {eps}: {spent:.1f} s, broken {broken}, "
            f"distance {result.distance.tolist()}, forwards {result.forwards.tolist()}, "
            f"peak memory of the process {peak():.2f} GiB\n"
        )
        sys.stdout.flush()


def peak() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
