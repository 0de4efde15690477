"""Record which candidate member breaks which calibration sample, after how many forwards.

Not a test: run by hand; hours on one core for all victims. `choose_cascade.py` redoes the choice of the
cascade from the table. Calibration samples are the first of the split `validation`, which is in no table.
One line a victim, candidate and random start: victim, eps, attack, start, passes on a sample that stands, and
a word a sample: forwards spent at its first hit, "." if it stands, "x" if its clean answer is wrong, "-" if
not run. A line that is there is not measured again.

    python tests/benchmarks/record_hits.py hits.csv --victim lif_cnn.digits+sr --eps 1/10 [--samples 80]
"""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import click
import torch

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.numbers.rng import stable_hash

SHARP = "assg(bound=0.94)"


def pgd(estimator: str) -> str:
    return f"pgd.linf(steps=10, estimator='{estimator}')"


def sapgd(steps: int, *, loss: str = "margin", estimator: str = SHARP) -> str:
    return f"sapgd.linf(steps={steps}, loss={loss}, estimator='{estimator}')"


def apgd(kind: str, steps: int, estimator: str = SHARP) -> str:
    return f"apgd.{kind}(steps={steps}, estimator='{estimator}')"


def targeted(targets: int, steps: int) -> str:
    return f"apgd.targeted(targets={targets}, steps={steps}, estimator='{SHARP}')"


CANDIDATES = {
    **{
        pgd(e): 1
        for e in ("native", "atan(alpha=5)", "triangle(gamma=0.3)", "pdsg", "bptr", "hart(gamma=0.25)")
    },
    pgd("atan(alpha=10)"): 3,
    sapgd(25): 4,
    sapgd(50): 6,
    sapgd(50, loss="ce"): 2,
    sapgd(50, loss="dlr"): 2,
    sapgd(50, estimator="assg(bound=0.85)"): 2,
    apgd("ce", 50): 2,
    apgd("dlr", 50): 2,
    apgd("ce", 50, "atan(alpha=5)"): 2,
    sapgd(100): 6,
    sapgd(100, loss="ce"): 2,
    **{sapgd(100, estimator=e): 1 for e in ("atan(alpha=5)", "triangle(gamma=0.3)", "assg(form=sigmoid)")},
    targeted(3, 50): 1,
    targeted(9, 50): 1,
    sapgd(200): 3,
    sapgd(400): 2,
    sapgd(1000): 1,
    apgd("ce", 100, "native"): 1,
    apgd("ce", 100, "triangle(gamma=0.3)"): 1,
    apgd("dlr", 100): 1,
    apgd("dlr", 100, "atan(alpha=5)"): 1,
}
"""Candidates, and from how many random starts each."""


def words(
    victim: ModuleVictim, call: str, starts: int, *, eps: Fraction, samples: int, root: Path | None
) -> tuple[int, list[list[str]]]:
    """Run one candidate from all its starts in one batch; return its price and a word for every sample."""
    split = registry("datasets").get(victim.spec.name.partition(".")[2]).load("validation", root=root)
    x, y = split.x[:samples], split.y[:samples]
    right = (victim.logits(x).argmax(dim=1) == y).nonzero().squeeze(1)
    again = right.repeat(starts)
    ids = torch.cat([right + 100_000 * start for start in range(starts)])  # random numbers hang on ids
    threat = ThreatModel(geometry="linf", eps=eps, bounds=victim.spec.bounds)
    seed = stable_hash(call) % 2**31  # candidates must not share their starts
    found = evaluate_shard(victim, registry("attacks").get(call), threat, x[again], y[again], ids, seed=seed)
    if found.errors:
        raise click.ClickException(found.errors[0])
    total = found.forwards + found.backwards
    price = int(total.max())
    first = found.first_hit.view(starts, -1).tolist()
    table = []
    for hits in first:
        row = ["x"] * len(x)
        for place, hit in zip(right.tolist(), hits, strict=True):
            row[place] = str(hit) if hit >= 0 else "."
        table.append(row)
    return price, table


@click.command(help=__doc__)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--victim", "name", required=True, help="victim+defense")
@click.option("--eps", required=True)
@click.option("--samples", default=80)
@click.option("--data", type=click.Path(path_type=Path))
def main(path: Path, name: str, eps: str, samples: int, data: Path | None) -> None:
    done = set()
    if path.exists():
        with path.open(newline="") as file:
            done = {tuple(row[:3]) for row in csv.reader(file)}
    base, _, defense = name.partition("+")
    victim = load_victim(base, defense=defense or "none")
    for call, starts in CANDIDATES.items():
        if (name, eps, call) in done:
            continue
        price, table = words(victim, call, starts, eps=Fraction(eps), samples=samples, root=data)
        with path.open("a", newline="") as file:
            for start, row in enumerate(table):
                csv.writer(file).writerow([name, eps, call, start, price, " ".join(row)])


if __name__ == "__main__":
    main()
