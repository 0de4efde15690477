"""Compare the levels of `autoattack.snn` on test samples: what each leaves, and what it costs.

Not a test: run by hand; half a minute of one core a row. A higher level is run on what the lower one leaves:
it contains the lower one, whose members come first and whose random numbers hang on names and samples alone.

    python tests/benchmarks/levels.py --victim lif_cnn.digits+sr --samples 100 --seed 0 --csv levels.csv
"""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import click
import torch

from robustspike.attacks.ensembles.autoattack import AutoAttackSnn
from robustspike.attacks.ensembles.members import LEVELS
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry


@click.command(help=__doc__)
@click.option("--victim", "names", required=True, multiple=True, help="victim+defense")
@click.option("--eps", default="1/10")
@click.option("--samples", default=100, help="First test samples.")
@click.option("--seed", default=0)
@click.option("--csv", "path", required=True, type=click.Path(path_type=Path))
def main(names: tuple[str, ...], eps: str, samples: int, seed: int, path: Path) -> None:
    for name in names:
        base, _, defense = name.partition("+")
        victim = load_victim(base, defense=defense or "none")
        split = registry("datasets").get(base.partition(".")[2]).load("test")[:samples]
        threat = ThreatModel(geometry="linf", eps=Fraction(eps), bounds=victim.spec.bounds)
        rows = (victim.logits(split.x).argmax(dim=1) == split.y).nonzero().squeeze(1)
        line: dict[str, object] = {"victim": name, "eps": eps, "seed": seed, "samples": len(split.x)}
        line["clean"] = len(rows)
        spent = torch.zeros(len(split.x), dtype=torch.int64)
        for level in LEVELS:
            found = evaluate_shard(
                victim, AutoAttackSnn(level=level), threat, split.x[rows], split.y[rows], rows, seed=seed
            )
            if found.errors:
                raise click.ClickException(found.errors[0])
            passes = found.forwards + found.backwards
            spent[rows] = passes  # instead of what the lower level spent on the same samples
            standing = found.status == 0
            line[level] = int(standing.sum())
            line[f"{level}, a standing sample"] = int(passes[standing].max()) if bool(standing.any()) else 0
            line[f"{level}, whole row"] = int(spent.sum())
            rows = rows[standing]
        click.echo("  ".join(f"{key}: {value}" for key, value in line.items()))
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(line))
            if new:
                writer.writeheader()
            writer.writerow(line)


if __name__ == "__main__":
    main()
