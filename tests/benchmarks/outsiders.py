"""Attack what `autoattack.snn` leaves standing by attacks from outside its list: how many fall?

Not a test: run by hand. The outsiders are written from the benchmark's own parts and spend many times the
list's budget on every sample that it calls robust: SA-PGD under ASSG with five bounds from many starts, and
APGD-CE, -DLR and -T under fixed surrogates from several. On test samples; a fresh pass verifies every hit.

    python tests/benchmarks/outsiders.py --victim lif_cnn.digits+sr --samples 100 --seed 0 --csv out.csv
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import click
import torch

from robustspike.attacks.ensembles.autoattack import AutoAttackSnn
from robustspike.attacks.ensembles.members import Level
from robustspike.bench.api import ThreatModel
from robustspike.bench.api import evaluate_shard
from robustspike.bench.api import load_victim
from robustspike.bench.api import registry

BOUNDS = (0.76, 0.82, 0.85, 0.88, 0.94)

SURROGATES = (
    "native",
    "atan(alpha=5)",
    "atan(alpha=10)",
    "triangle(gamma=0.3)",
    "rectangle(a=0.3)",
    "sigmoid(alpha=8)",
    "erf(alpha=2)",
    "pdsg",
)


def outsiders(*, starts: int) -> Iterator[tuple[str, int]]:
    """Yield registry calls and from how many starts each, the strongest first."""
    for loss in ("ce", "margin"):
        for bound in reversed(BOUNDS):
            yield f"sapgd.linf(steps=100, loss={loss}, estimator='assg(bound={bound})')", starts
    for estimator in SURROGATES:
        for attack in ("apgd.ce", "apgd.dlr", "apgd.targeted"):
            few = ", targets=3" if attack == "apgd.targeted" else ""
            yield f"{attack}(steps=50{few}, estimator='{estimator}')", max(1, starts // 4)


@click.command(help=__doc__)
@click.option("--victim", "name", required=True, help="victim+defense")
@click.option("--eps", default="1/10")
@click.option("--samples", default=100, help="First test samples.")
@click.option("--seed", default=0)
@click.option("--level", type=click.Choice(["quick", "standard", "full"]), default="full")
@click.option("--starts", default=30, help="Of SA-PGD; a quarter of them of APGD.")
@click.option("--csv", "path", type=click.Path(path_type=Path))
def main(name: str, eps: str, samples: int, seed: int, level: Level, starts: int, path: Path | None) -> None:
    base, _, defense = name.partition("+")
    victim = load_victim(base, defense=defense or "none")
    split = registry("datasets").get(base.partition(".")[2]).load("test")[:samples]
    threat = ThreatModel(geometry="linf", eps=Fraction(eps), bounds=victim.spec.bounds)
    ids = torch.arange(len(split.x))
    verdict = evaluate_shard(victim, AutoAttackSnn(level=level), threat, split.x, split.y, ids, seed=seed)
    spent = verdict.forwards + verdict.backwards
    standing = verdict.status == 0
    left, fallen, passes = standing.clone(), {}, torch.zeros_like(spent)
    for call, count in outsiders(starts=starts):
        rows = left.nonzero().squeeze(1)
        if not len(rows):
            break
        again = rows.repeat(count)  # all starts in one batch, told apart by their ids
        numbered = again + 100_000 * torch.arange(count).repeat_interleave(len(rows))
        attack = registry("attacks").get(call)
        found = evaluate_shard(
            victim, attack, threat, split.x[again], split.y[again], numbered, seed=seed + 1000
        )
        if found.errors:
            raise click.ClickException(found.errors[0])
        passes[rows] += (found.forwards + found.backwards).view(count, -1).sum(dim=0)
        broken = (found.status == 1).view(count, -1).any(dim=0)
        if bool(broken.any()):
            fallen[call] = int(broken.sum())
        left[rows[broken]] = False
    line = {
        "victim": name,
        "eps": eps,
        "level": level,
        "seed": seed,
        "samples": len(split.x),
        "clean": int(((verdict.status == 0) | (verdict.status == 1)).sum()),
        "standing": int(standing.sum()),
        "fallen": int(standing.sum() - left.sum()),
        "passes of the list": int(spent[standing].max()) if bool(standing.any()) else 0,
        "passes of outsiders": int(passes[left].max()) if bool(left.any()) else 0,
        "by": " ".join(f"{call}:{n}" for call, n in fallen.items()),
    }
    for key, value in line.items():
        click.echo(f"{key}: {value}")
    if path is not None:
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(line))
            if new:
                writer.writeheader()
            writer.writerow(line)


if __name__ == "__main__":
    main()
