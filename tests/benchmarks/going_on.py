"""What breaks samples that quick's gradient members leave: going on from their best, or new starts?

Not a test: run by hand; minutes of one core a victim. Both ways get the same samples (the first of the split
`validation`, in no table) and the same passes: the search over corners with forwards alone, from the best
input that the members found, and SA-PGD-50 under ASSG from new random starts, on the margin and on
cross-entropy by turns. Printed is how many samples fall within 100, 200, 400, 800 and 1,600 passes.

    python tests/benchmarks/going_on.py --victim lif_cnn.digits+sr --victim qcfs_cnn.digits+sr --csv out.csv
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import click
from torch import Tensor

from robustspike.attacks.ensembles.autoattack import SPIKING
from robustspike.attacks.ensembles.autoattack import AutoAttackSnn
from robustspike.attacks.ensembles.members import Member
from robustspike.attacks.ensembles.members import applying
from robustspike.attacks.ensembles.members import attempts
from robustspike.attacks.ensembles.members import gradient
from robustspike.attacks.ensembles.members import onward
from robustspike.bench.api import Oracle
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

CAPS = (100, 200, 400, 800, 1600)

SHARP = "assg(bound=0.94)"

NEW_STARTS = tuple(
    gradient("sapgd.linf", SHARP, start=20 + k, steps=50, loss=("margin", "ce")[k % 2])
    for k in range(CAPS[-1] // 101)
)

WAYS: dict[str, tuple[Member, ...]] = {"from the best": (onward(CAPS[-1]),), "new starts": NEW_STARTS}


@dataclass(frozen=True)
class Then(AutoAttackSnn):
    """Quick's gradient members, then one of the ways, member after member."""

    way: str = ""

    def listed(self, oracle: Oracle, *, own_gradient: bool) -> tuple[Member, ...]:
        return (*(m for m in SPIKING["quick"] if m.is_steep), *(WAYS[self.way] if self.way else ()))

    def _attempts(self, oracle: Oracle, x0: Tensor, y: Tensor, rng: RowStreams) -> Iterator[Tensor]:
        members = applying(oracle, self.listed(oracle, own_gradient=False), self.only)
        return attempts(oracle, members, x0, y, rng=rng)


@click.command(help=__doc__)
@click.option("--victim", "names", required=True, multiple=True, help="victim+defense")
@click.option("--eps", default="1/10")
@click.option("--samples", default=150)
@click.option("--seed", default=0)
@click.option("--csv", "path", type=click.Path(path_type=Path))
def main(names: tuple[str, ...], eps: str, samples: int, seed: int, path: Path | None) -> None:
    for name in names:
        base, _, defense = name.partition("+")
        victim = load_victim(base, defense=defense or "none")
        split = registry("datasets").get(base.partition(".")[2]).load("validation")[:samples]
        threat = ThreatModel(geometry="linf", eps=Fraction(eps), bounds=victim.spec.bounds)
        rows = (victim.logits(split.x).argmax(dim=1) == split.y).nonzero().squeeze(1)
        first = evaluate_shard(victim, Then(), threat, split.x[rows], split.y[rows], rows, seed=seed)
        rows = rows[first.status == 0]
        spent = int((first.forwards + first.backwards).max())
        for way in WAYS:
            found = evaluate_shard(
                victim, Then(way=way), threat, split.x[rows], split.y[rows], rows, seed=seed
            )
            passes = (found.forwards + found.backwards)[found.status == 1] - spent
            fallen = [int((passes <= cap).sum()) for cap in CAPS]
            line = [name, eps, seed, len(first.status), len(rows), way, *fallen]
            click.echo(" ".join(map(str, line)))
            if path is not None:
                with path.open("a", newline="") as file:
                    csv.writer(file).writerow(line)


if __name__ == "__main__":
    main()
