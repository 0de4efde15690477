"""SDA, SCG and retiming on integer counts at 2x128x128: seconds, passes and peak memory for two samples.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/real_sizes.py [side] [steps] [updates]
The network is a spiking VGG of five convolutions, trained for a few updates on bars that move in four
directions (frames of equally many events, counts kept), so that it is right and attacks can break it. The
numbers are costs of this size, and not robustness of anything.
"""

from __future__ import annotations

import resource
import sys
import time
from fractions import Fraction
from pathlib import Path

import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from robustspike.bench.api import Budget
from robustspike.bench.api import Domain
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import adapt
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import registry
from robustspike.bench.data.events.events import recording
from robustspike.bench.data.events.recordings import event_frames
from tests.support.moving_bars import moving_bar

CLASSES, BATCH = 4, 8
RUNS = [
    ("sda.l0", {}, "count_l1", None),
    ("scg.l0", {"iterations": 30, "scales": (1.0,)}, "count_l0", None),
    ("retime.pil", {"steps": 5}, "retime_linf", 2),
    ("retime.greedy", {"rounds": 8}, "retime_linf", 3),
]


def frames(numbers: range, *, side: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return event counts [n, T, 2, side, side] of some recordings, and their directions."""
    found = []
    for number in numbers:
        c = moving_bar(number % CLASSES, CLASSES, seed=number, side=side, n=12_000)
        events = recording(c["x"], c["y"], c["t"], c["p"], size=(side, side), where="bar")
        found.append(event_frames(events, steps=steps, size=(side, side), split_by="number"))
    return torch.stack([torch.from_numpy(x).float() for x in found]), torch.tensor(
        [number % CLASSES for number in numbers]
    )


def network(side: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, out in ((2, 16), (16, 32), (32, 32), (32, 64), (64, 64)):
        layers += [
            layer.Conv2d(inside, out, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(out, momentum=0.3, step_mode="m"),
            neuron.LIFNode(step_mode="m", detach_reset=True),
            layer.AvgPool2d(2, step_mode="m"),
        ]
    features = 64 * (side // 32) ** 2
    return nn.Sequential(
        *layers, layer.Flatten(step_mode="m"), layer.Linear(features, CLASSES, step_mode="m")
    )


def main(side: int = 128, steps: int = 10, updates: int = 16) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    body = network(side).train()
    optimiser = torch.optim.Adam(body.parameters(), 5e-3)
    for update in range(updates):
        x, y = frames(range(BATCH * update, BATCH * (update + 1)), side=side, steps=steps)
        loss = nn.functional.cross_entropy(body(x.transpose(0, 1)).mean(dim=0), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        functional.reset_net(body)
    x, y = frames(range(10_000, 10_012), side=side, steps=steps)
    bounds = (0.0, float(x.max()))
    victim = adapt(
        body,
        name="vgg",
        shape=tuple(x.shape[1:]),
        classes=CLASSES,
        time="time-first",
        domain=Domain.EVENTS,
        bounds=bounds,
    )
    right = victim.logits(x).argmax(dim=1) == y
    tell(
        f"{updates} updates: right on {int(right.sum())} of {len(x)}; {steps}x2x{side}x{side}, most events "
        f"of a cell {bounds[1]:g}, cells that hold some {int((x[0] > 0).sum())}; peak {peak():.2f} GiB"
    )
    x, y = x[right][:2], y[right][:2]
    for name, params, geometry, eps in RUNS:
        threat = ThreatModel(
            domain=Domain.EVENTS,
            geometry=geometry,
            eps=None if eps is None else Fraction(eps),
            bounds=bounds,
            budget=Budget(forwards=20_000, backwards=500),
        )
        attack = registry("attacks").get(name, **params)
        began, spent = time.perf_counter(), time.process_time()
        result = evaluate_shard(victim, attack, threat, x, y, torch.arange(len(x)))
        assert not result.errors, result.errors
        tell(
            f"{name} {geometry} {'min' if eps is None else eps}: broken {int((result.status == 1).sum())} of "
            f"{len(x)}, distance {result.distance.tolist()}, forwards {result.forwards.tolist()}, "
            f"{time.process_time() - spent:.1f} s of processor, {time.perf_counter() - began:.1f} of clock; "
            f"peak memory of the process {peak():.2f} GiB"
        )


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def peak() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
