"""Record which candidate member breaks which calibration sample, after how many forwards.

Not a test: run by hand; minutes of one core a victim. `choose_cascade.py` redoes the choice of the cascade
from the table. Calibration samples are the first of the split `validation` (of a data set in a folder, which
may be sorted by class: evenly spaced ones), which is in no table. What the first two members break is spared
the others. One line a victim, candidate and random start: victim, eps, attack, start, passes on a sample that
stands, and a word a sample: forwards spent at its first hit, "." if it stands, "x" if its clean answer is
wrong, "-" if not run. A line that is there is not measured again.

Stochastic victims have candidates of their own: 10 draws a gradient, and no sample leaves at a hit, so that a
sample counts as broken, at the full price, where the vote of 20 fresh draws on what came back is wrong.

    python tests/benchmarks/record_hits.py hits.csv --victim lif_cnn.digits+sr:1/10 [--victim ...]
"""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import click
import torch

from robustspike.bench.api import ModuleVictim
from robustspike.bench.api import RowStreams
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry
from robustspike.bench.numbers.rng import stable_hash

SHARP = "assg(bound=0.94)"


def pgd(estimator: str, *, steps: int = 10) -> str:
    return f"pgd.linf(steps={steps}, estimator='{estimator}')"


def sapgd(steps: int, *, loss: str = "margin", estimator: str = SHARP) -> str:
    return f"sapgd.linf(steps={steps}, loss={loss}, estimator='{estimator}')"


def apgd(kind: str, steps: int, estimator: str = SHARP) -> str:
    return f"apgd.{kind}(steps={steps}, estimator='{estimator}')"


def targeted(targets: int, steps: int) -> str:
    return f"apgd.targeted(targets={targets}, steps={steps}, estimator='{SHARP}')"


SIEVE = (pgd("native"), pgd("atan(alpha=5)"))
"""The cascade's first members: what they break in calibration samples is not spent on again."""

CANDIDATES = {
    pgd("native"): 1,
    pgd("atan(alpha=5)"): 1,
    sapgd(50): 10,
    sapgd(100): 10,
    sapgd(50, loss="ce"): 8,
    sapgd(100, loss="ce"): 8,
    sapgd(25): 8,
    sapgd(200): 4,
    sapgd(100, loss="ce", estimator="assg(bound=0.9)"): 4,
    sapgd(100, estimator="assg(bound=0.9)"): 4,
    sapgd(200, loss="ce"): 3,
    apgd("ce", 50): 2,
    sapgd(50, loss="dlr"): 3,
    sapgd(400): 2,
    targeted(3, 50): 1,
    sapgd(400, loss="ce"): 1,
    sapgd(1000): 1,
    sapgd(1000, loss="ce"): 1,
}
"""Candidates, and from how many random starts each.

Those of an earlier round are in the table too: other surrogates, one cheap PGD under each, long members.
"""

NOISY_CANDIDATES = {
    pgd("atan(alpha=5)"): 1,
    pgd("native"): 1,
    pgd(SHARP): 1,
    pgd("native", steps=20): 1,
    pgd("pdsg", steps=20): 1,
    sapgd(10): 2,
    sapgd(25): 2,
    sapgd(25, loss="ce"): 2,
    sapgd(25, estimator="atan(alpha=5)"): 1,
    sapgd(50): 3,
    sapgd(50, loss="ce"): 1,
    sapgd(100): 1,
    apgd("ce", 25, "native"): 1,
    apgd("ce", 50): 1,
    apgd("ce", 50, "native"): 1,
    apgd("dlr", 50, "native"): 1,
}
"""Candidates for stochastic victims."""


def words(
    victim: ModuleVictim,
    call: str,
    numbers: range,
    *,
    eps: Fraction,
    samples: int,
    spared: set[int],
    root: Path | None,
) -> tuple[int, list[list[str]]]:
    """Run one candidate from several starts in one batch; return its price and a word for every sample.

    Args:
        numbers: which starts.
        spared: samples that are not run.
    """
    split = registry("datasets").get(victim.spec.name.partition(".")[2]).load("validation", root=root)
    places = torch.linspace(0, len(split.x) - 1, samples).long() if root else torch.arange(samples)
    x, y = split.x[places], split.y[places]
    noise = RowStreams.derive(places, "clean") if victim.spec.stochastic else None
    right = victim.logits(x, noise=noise).argmax(dim=1) == y
    asked = torch.tensor([bool(r) and place not in spared for place, r in enumerate(right)])
    rows = asked.nonzero().squeeze(1)
    table = [["-" if r else "x" for r in right.tolist()] for _ in numbers]
    if not len(rows):
        return 0, table
    again = rows.repeat(len(numbers))
    ids = torch.cat([rows + 100_000 * start for start in numbers])  # random numbers hang on ids
    threat = ThreatModel(geometry="linf", eps=eps, bounds=victim.spec.bounds)
    seed = stable_hash(call) % 2**31  # candidates must not share their starts
    found = evaluate_shard(victim, registry("attacks").get(call), threat, x[again], y[again], ids, seed=seed)
    if found.errors:
        raise click.ClickException(found.errors[0])
    total = found.forwards + found.backwards
    first = found.first_hit
    if victim.spec.stochastic:
        first = torch.where(found.status == 1, found.forwards, -1)
    first = first.view(len(numbers), -1).tolist()
    for row, hits in zip(table, first, strict=True):
        for place, hit in zip(rows.tolist(), hits, strict=True):
            row[place] = str(hit) if hit >= 0 else "."
    return int(total.max()), table


def recorded(path: Path) -> dict[tuple[str, ...], list[list[str]]]:
    """Return the words that are in the table, by victim, eps and candidate: one list for each start."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.reader(file):
                found.setdefault(tuple(row[:3]), []).append(row[5].split())
    return found


@click.command(help=__doc__)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--victim", "cells", required=True, multiple=True, help="victim+defense:eps")
@click.option("--samples", default=80)
@click.option("--data", type=click.Path(path_type=Path))
def main(path: Path, cells: tuple[str, ...], samples: int, data: Path | None) -> None:
    for name, _, eps in (cell.rpartition(":") for cell in cells):
        base, _, defense = name.partition("+")
        victim = load_victim(base, defense=defense or "none")
        noisy = victim.spec.stochastic
        for call, starts in (NOISY_CANDIDATES if noisy else CANDIDATES).items():
            known = recorded(path)
            missing = range(len(known.get((name, eps, call), [])), starts)
            if not missing:
                continue
            sieves = [] if noisy else [known.get((name, eps, sieve), [[]])[0] for sieve in SIEVE]
            spared = {k for row in sieves for k, word in enumerate(row) if word.isdigit()}
            root = data if registry("datasets").get(base.partition(".")[2]).needs_root else None
            price, table = words(
                victim, call, missing, eps=Fraction(eps), samples=samples, spared=spared, root=root
            )
            with path.open("a", newline="") as file:
                for start, row in zip(missing, table, strict=True):
                    csv.writer(file).writerow([name, eps, call, start, price, " ".join(row)])


if __name__ == "__main__":
    main()
