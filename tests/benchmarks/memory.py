"""What memory an attack on a network of published size takes: the peak of a process of its own.

    python tests/benchmarks/memory.py [CASE[:ATTACK]...]

CASE is one of CASES below, ATTACK an attack by name; without any, FGSM on every case. Weights are random and
labels the network's own answers: memory and time depend on neither. Prints a line a case: tensors of one
sample's gradient, samples a pass, samples attacked, largest resident memory, and processor seconds. All on
one thread. Minutes a case.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from fractions import Fraction
from typing import Any

import torch

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import generator
from robustspike.bench.api import registry
from robustspike.bench.victim.checks import check_victim

CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "sew_resnet18": ("sew_resnet18.cifar10", {"steps": 8}, 128),
    "vgg11": ("vgg11.cifar10", {"steps": 8}, 128),
    "vggsnn128": ("vggsnn.dvs_gesture", {}, 1),
}
"""Victim, its parameters and samples of the shard; the networks are this package's own recipes."""


def measure(case: str, attack: str) -> dict[str, Any]:
    """Attack one shard in this process; return what it took."""
    torch.set_num_threads(1)
    name, params, n = CASES[case]
    recipe = registry("victims").get(name, **params)
    victim = ModuleVictim(recipe.build(generator("memory")), recipe.spec())
    x = RowStreams.derive(range(n), "memory").uniform(victim.spec.shape)
    start = time.process_time()
    check_victim(victim, x)
    with torch.no_grad():
        y = victim.logits(x).argmax(dim=1)
    rule = registry("attacks").get(attack)
    threat = ThreatModel(domain=victim.spec.domain, eps=Fraction(8, 255), access=rule.spec.access)
    result = evaluate_shard(victim, rule, threat, x, y, torch.arange(n))
    assert not result.errors, result.errors
    return {
        "sample_mb": victim.sample_bytes[True] / 2**20,
        "rows": victim.rows_at_once(gradient=True),
        "n": n,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "seconds": time.process_time() - start,
        "gradients": int(result.backwards.sum()),
    }


def main(asked: list[str]) -> None:
    if len(asked) == 3 and asked[0] == "--one":
        print(json.dumps(measure(asked[1], asked[2])))  # noqa: T201
        return
    for what in asked or list(CASES):
        case, _, attack = what.partition(":")
        attack = attack or "fgsm.linf"
        command = [sys.executable, __file__, "--one", case, attack]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(out.splitlines()[-1])
        print(  # noqa: T201
            f"{case} {attack}: {found['sample_mb']:.0f} MiB a sample, {found['rows']} a pass, "
            f"{found['n']} samples, {found['gradients']} gradients: peak {found['peak_gb']:.2f} GiB, "
            f"{found['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
