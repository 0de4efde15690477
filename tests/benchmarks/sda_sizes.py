"""How many times faster SDA is here than its published loop, verification included: digits, N-MNIST, VGGSNN.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/sda_sizes.py WHAT [samples] [N-MNIST folder]
with WHAT one of digits, nmnist, vggsnn. Processor time on one thread: the loop of test_sda_speed.py, which
takes one sample at a time, stacks all potentials again at every step and answers every flip by a whole pass;
all samples in shards as `evaluate` takes them; and the same samples in shards of one. Both sides must change
as many spikes. The weights of VGGSNN (2x48x48, T = 10) are drawn, so nothing need fall: both stop after two
iterations, and flips that its last layers never see are as cheap as they would be in any such network.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from flip_costs import made
from test_sda_speed import PLENTY
from test_sda_speed import plain

from robustspike.attacks.spikes.sda import Sda
from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

THREAT = ThreatModel(domain=Domain.SPIKES, geometry="l0", eps=None, budget=PLENTY)


def chosen(what: str, n: int, root: Path | None) -> tuple[ModuleVictim, Tensor, Tensor, int]:
    """Return a victim, inputs and labels that it gets right, and how many iterations either side has."""
    if what == "vggsnn":
        victim, _ = made("vggsnn 48")
        x = (RowStreams.derive(range(n), "frames").uniform(victim.spec.shape) < 0.1).float()
        return victim, x, victim.logits(x).argmax(dim=1), 2
    name = {"digits": "digits_events", "nmnist": "nmnist"}[what]
    victim = load_victim(f"lif_cnn.{name}")
    test = registry("datasets").get(name).first("test", n, root=root)
    right = victim.logits(test.x).argmax(dim=1) == test.y
    return victim, test.x[right], test.y[right], 500


def main(what: str = "digits", samples: str = "100", root: str = "") -> None:
    torch.set_num_threads(1)
    victim, x, y, iterations = chosen(what, int(samples), Path(root) if root else None)
    attack, ids = Sda(iterations=iterations), torch.arange(len(x))
    evaluate_shard(victim, attack, THREAT, x[:1], y[:1], ids[:1])

    def batched(shard: int) -> tuple[float, Tensor]:
        began, found = time.process_time(), []
        for rows in ids.split(shard):
            result = evaluate_shard(victim, attack, THREAT, x[rows], y[rows], ids[rows])
            assert result.errors == []
            found.append((result.x_adv != x[rows]).flatten(1).sum(dim=1))
        return time.process_time() - began, torch.cat(found)

    together, changed = batched(128)
    alone, _ = batched(1)
    began, loop = time.process_time(), []
    for i in range(len(x)):
        fill = RowStreams.derive(ids[i : i + 1], 0, "attack", "sda.l0")
        loop.append(plain(victim, x[i : i + 1], int(y[i]), fill, iterations=iterations)[0])
    seconds = time.process_time() - began
    flips = (torch.cat(loop) != x).flatten(1).sum(dim=1)
    sys.stdout.write(
        f"{what}: {len(x)} samples; loop {seconds:.1f} s (median L0 {float(flips.double().median()):g}); "
        f"together {together:.2f} s, {seconds / together:.1f} times faster; one at a time {alone:.2f} s, "
        f"{seconds / alone:.1f} times; more flips than the loop on {int((changed > flips).sum())}, "
        f"fewer (the nearest of all inputs asked counts) on {int((changed < flips).sum())}\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
