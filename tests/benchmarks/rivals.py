"""PGD-20 and the verdict beside what a user would else pick: time, passes, and samples left standing.

    pip install torchattacks foolbox adversarial-robustness-toolbox
    python tests/benchmarks/rivals.py [--rounds 5] [--samples 125] [--verdict]

On lif_cnn.digits at eps 1/10, steps of eps/4, one random start, one thread. Each of torchattacks, foolbox,
ART and the loop of ten lines attacks the same network of SpikingJelly nodes, reset at every pass; what cannot
be imported is said and left out. Ours is a whole cell as `robustspike run` makes it: verdict, energy, flags
and the check of the victim afterwards. All attacks take turns; processor seconds are medians over the
rounds. Passes are samples through the network, forward and backward; samples left are counted by fresh
answers. With --verdict, the levels of `autoattack.snn` beside AutoAttack's published list (torchattacks'
port: APGD-CE, APGD-T, FAB-T, Square), once each: minutes.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import Tensor
from torch import nn

from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.attack.result import ROBUST
from robustspike.bench.run.compute import Settings
from robustspike.bench.run.compute import Unit
from robustspike.bench.run.compute import compute
from robustspike.bench.suite.file import read_suite
from robustspike.bench.suite.loading import VICTIMS
from robustspike.bench.suite.plan import make_plan

EPS = 0.1
STEPS = 20
SUITE = """
name = "rivals"
samples = {n}
shard = {n}
[[threats]]
geometry = "linf"
eps = "1/10"
[[victims]]
name = "lif_cnn.digits"
[[attacks]]
name = "pgd.linf"
"""
LEVELS = "\n".join(
    f'[[attacks]]\nname = "autoattack.snn"\nparams = {{ level = "{level}" }}'
    for level in ("quick", "standard", "full")
)


class Plain(nn.Module):
    """A network of SpikingJelly nodes as a user has it: reset before every pass. Counts samples."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        self.forwards += len(x)
        self.backwards += len(x) * (torch.is_grad_enabled() and x.requires_grad)
        out: Tensor = self.net(x)
        return out


Attack = Callable[[Plain, Tensor, Tensor], Tensor]


def loop(net: Plain, x: Tensor, y: Tensor) -> Tensor:
    """PGD as one writes it down."""
    x_adv = (x + (2 * torch.rand_like(x) - 1) * EPS).clamp(0, 1)
    for _ in range(STEPS):
        x_adv.requires_grad_()
        loss = nn.functional.cross_entropy(net(x_adv), y)
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + EPS / 4 * gradient.sign()
        x_adv = x_adv.clamp(x - EPS, x + EPS).clamp(0, 1)
    return x_adv


def torchattacks_(net: Plain, x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = importlib.import_module("torchattacks").PGD(net, eps=EPS, alpha=EPS / 4, steps=STEPS)(
        x, y
    )
    return found


def foolbox(net: Plain, x: Tensor, y: Tensor) -> Tensor:
    module = importlib.import_module("foolbox")
    attack = module.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=STEPS, random_start=True)
    model = module.PyTorchModel(net, bounds=(0, 1), device="cpu")
    found: Tensor = attack(model, x, y, epsilons=EPS)[1]
    return found


def art(net: Plain, x: Tensor, y: Tensor) -> Tensor:
    estimators = importlib.import_module("art.estimators.classification")
    evasion = importlib.import_module("art.attacks.evasion")
    shape = tuple(x.shape[1:])
    model = estimators.PyTorchClassifier(
        net, nn.CrossEntropyLoss(), input_shape=shape, nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    attack = evasion.ProjectedGradientDescent(
        model, norm=np.inf, eps=EPS, eps_step=EPS / 4, max_iter=STEPS, num_random_init=1, batch_size=len(x),
        verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def autoattack(net: Plain, x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = importlib.import_module("torchattacks").AutoAttack(net, eps=EPS, n_classes=10, seed=0)(
        x, y
    )
    return found


class Theirs:
    """An attack of another library on the samples that are right without one."""

    def __init__(self, attack: Attack, n: int) -> None:
        self.attack, self.seconds = attack, list[float]()
        self.victim = load_victim("lif_cnn.digits")
        data = registry("datasets").get("digits").load("test")[:n]
        self.x, self.y = data.x, data.y.long()
        self.net = Plain(load_victim("lif_cnn.digits").module).eval()

    def run(self) -> None:
        torch.manual_seed(len(self.seconds))
        self.net.forwards = self.net.backwards = 0
        start = time.process_time()
        found = self.attack(self.net, self.x, self.y)
        self.seconds.append(time.process_time() - start)
        self.passes = self.net.forwards + self.net.backwards
        right = self.victim.logits(self.x).argmax(dim=1) == self.y
        held = self.victim.logits(found.detach().float()).argmax(dim=1) == self.y
        self.left = int((right & held).sum())


class Ours:
    """A cell as `robustspike run` computes it."""

    def __init__(self, unit: Unit, settings: Settings) -> None:
        self.unit, self.settings, self.seconds = unit, settings, list[float]()

    def run(self) -> None:
        start = time.process_time()
        result = compute(self.unit, self.settings)
        self.seconds.append(time.process_time() - start)
        assert not result.errors, result.errors
        self.passes = int(result.forwards.sum() + result.backwards.sum())
        self.left = int((result.status == ROBUST).sum())


def told(name: str, of: Ours | Theirs, best: float) -> str:
    """Return a line: seconds, their ratio to the best of the others, passes, samples left."""
    seconds = statistics.median(of.seconds)
    spread = f"{min(of.seconds):.2f} to {max(of.seconds):.2f}"
    ratio = f"{seconds / best:5.2f}"
    return f"{name:<28} {seconds:7.2f} s ({spread}), {ratio}; {of.passes:>7} passes, {of.left} left"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=125)
    parser.add_argument(
        "--verdict", action="store_true", help="Also the verdicts beside AutoAttack: minutes."
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    rivals: dict[str, Theirs] = {"loop of ten lines": Theirs(loop, given.samples)}
    for name, attack, module in (
        ("torchattacks", torchattacks_, "torchattacks"),
        ("foolbox", foolbox, "foolbox"),
        ("ART", art, "art"),
    ):
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{name}: left out, it cannot be imported ({error})")  # noqa: T201
            continue
        rivals[name] = Theirs(attack, given.samples)
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite.toml"
        suite.write_text(SUITE.format(n=given.samples) + LEVELS)
        settings = Settings(out=Path(folder) / "out")
        mine, *verdicts = (
            Ours(Unit(cell, "key", 0), settings) for cell in make_plan(read_suite(str(suite))).cells
        )
        VICTIMS.pristine(mine.unit.cell, weights=None, device="cpu").victim.neurons  # noqa: B018  (looked for once)
        for _ in range(1 + given.rounds):
            for one in (mine, *rivals.values()):
                one.run()
        first = mine.seconds[0]
        for one in (mine, *rivals.values()):
            one.seconds = one.seconds[1:]
        best = min(statistics.median(rival.seconds) for rival in rivals.values())
        print(f"PGD-20, {given.samples} samples; the first cell of the victim took {first:.2f} s")  # noqa: T201
        for name, one in {"ours": mine, **rivals}.items():
            print(told(name, one, best), flush=True)  # noqa: T201
        if not given.verdict or "torchattacks" not in rivals:
            return
        published = Theirs(autoattack, given.samples)
        published.run()
        print(told("AutoAttack (torchattacks)", published, published.seconds[0]), flush=True)  # noqa: T201
        for verdict in verdicts:
            verdict.run()
            print(told(verdict.unit.cell.label, verdict, published.seconds[0]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
