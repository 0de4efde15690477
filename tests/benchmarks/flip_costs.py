"""Single flips by patches and by whole passes on five networks, and the cost model's constants from both.

Run: OMP_NUM_THREADS=1 python tests/benchmarks/flip_costs.py [networks ...]
For every network: processor time of a flip by a whole pass and by patches (of random flips, of those with
the largest gradient, and with every flip carried to the end, which is what the model reckons with), the
model's ratio beside the measured one, and which way is chosen for 1, 2, 8 and 64 flips an input. At the end
the time of a multiplication, an element and a flip, fitted to all of them: `_ELEMENT` and `_FLIP` of
`bench.snn.flips` are their ratios, rounded. Weights are drawn and normalisations calibrated: costs hang on
shapes, not on answers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from spikingjelly.activation_based import functional
from torch import Tensor

from robustspike.bench.api import Domain
from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import VictimSpec
from robustspike.bench.api import generator
from robustspike.bench.api import margin
from robustspike.bench.api import registry
from robustspike.bench.snn import flips
from robustspike.bench.snn.flips import FlipEngine
from robustspike.victims.architectures.base import Parts
from robustspike.victims.architectures.resnet import ResNet
from robustspike.victims.architectures.vgg import VggSnn
from robustspike.victims.events.event_cnn import EventFrames
from robustspike.victims.layout import Widths

VGGSNN: Widths = ((64, 128), (256, 256), (512, 512), (512, 512))
NETWORKS: dict[str, tuple[tuple[int, ...], Widths]] = {
    "digits_events": ((4, 2, 16, 16), (16, 32)),
    "nmnist": ((8, 2, 34, 34), (16, 32)),
    "cifar10_events": ((10, 2, 32, 32), (16, 32, 64)),
    "vggsnn 48": ((10, 2, 48, 48), VGGSNN),
    "vgg 16, one pool": ((4, 2, 16, 16), ((16, 16, 16),)),
    "sew 32": ((4, 2, 32, 32), (16, 32)),
}
FLIPS = {"vggsnn 48": 32}


def made(name: str) -> tuple[ModuleVictim, Tensor]:
    """Return a victim of the shapes and layers asked for, with layers that all spike, and two inputs."""
    shape, widths = NETWORKS[name]
    recipe = (
        ResNet(name=name, block="sew", stem=16, widths=(16, 32), depths=(1, 1))
        if name.startswith("sew")
        else VggSnn(name=name, widths=widths)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = recipe.network(Parts("m", recipe.node), shape[1:], 10)
    x = (torch.rand((2, *shape), generator=generator("frames")) < 0.1).float()
    with torch.no_grad():
        body.train()
        for _ in range(15):
            body(x.transpose(0, 1))
            functional.reset_net(body)
    spec = VictimSpec(
        name=name, shape=shape, classes=10, domain=Domain.SPIKES, bounds=(0.0, 1.0), steps=shape[0]
    )
    return ModuleVictim(EventFrames(body), spec), x


def seconds(call: Callable[[], object], *, rounds: int = 3) -> float:
    """Return the least processor time of some calls, after one to warm up."""
    call()
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measured(name: str) -> list[tuple[list[float], float]]:
    """Tell what a network's flips cost; return the work and the seconds of a whole pass and of a flip."""
    victim, x = made(name)
    shape = victim.spec.shape
    engine = FlipEngine.of(victim.module, shape)
    if engine is None:
        tell(f"{name}: left to whole passes")
        return []
    q = FLIPS.get(name, 640)
    few, rounds = (64, 3) if q > 64 else (16, 1)
    owner = torch.arange(2).repeat_interleave(q // 2)
    drawn = torch.randint(x[0].numel(), (q,), generator=generator("cells"))
    rule, labels = registry("estimators").get("pdsg"), victim.logits(x).argmax(dim=1)
    steepness = victim.loss_and_grad(x, labels, margin, rule).grad.flatten(1).abs()
    steep = steepness.topk(q // 2, dim=1).indices.flatten()

    def passed(cells: Tensor) -> float:
        change = 1 - 2 * x.flatten(1)[owner, cells]
        return (seconds(lambda: engine.answer(x, owner, cells, change), rounds=rounds) - base) / q

    with torch.no_grad():
        whole = seconds(lambda: victim.logits(victim.flipped(x, owner[:few], drawn[:few]))) / few
        base = seconds(lambda: flips._Base(engine, x))
        random, likely = passed(drawn), passed(steep)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flips._Patch, "keep", lambda self, chosen: self)
            carried = passed(drawn)
    reckoned = engine.work(shape)
    tell(
        f"{name}: whole {1e3 * whole:.3f} ms, patches: random {1e3 * random:.4f} ms, steep "
        f"{1e3 * likely:.4f} ms, carried {1e3 * carried:.4f} ms; whole over carried {whole / carried:.1f}, "
        f"model {reckoned[0] / reckoned[1]:.1f}"
    )
    for each in (1, 2, 8, 64):
        chosen = "patches" if engine.pays(shape, inputs=2, flips=2 * each) else "passes"
        ratio = 2 * each * whole / (base + 2 * each * likely)
        tell(f"  {each} flips an input: {chosen} are chosen; patches are {ratio:.2f} times as fast")
    counted = engine.counted(shape)
    return [([*counted[0], 0.0], whole), ([*counted[1], 1.0], carried)]


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    found = [pair for name in names or NETWORKS for pair in measured(name)]
    # Least squares of relative errors: a multiplication and an element cost the same in both ways.
    matrix = np.array([[part / spent for part in work] for work, spent in found])
    (multiplication, element, flip), _ = nnls(matrix, np.ones(len(found)))
    tell(
        f"fitted: a multiplication {1e9 * multiplication:.4f} ns, an element {element / multiplication:.0f} "
        f"of them (used: {flips._ELEMENT}), a flip {flip / multiplication:.3g} (used: {flips._FLIP})"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
