"""What the levels of `autoattack.spikes` need and cost, from the recorded flips of their candidates.

Not a test: run by hand, a second. For every net and candidate the table holds the flips and the passes (both
ways) of the first validation samples, which are in no table ("x": wrong when clean, ".": not broken).

    python tests/benchmarks/spike_levels.py tests/benchmarks/data/spike_flips.csv
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd

from robustspike.attacks.ensembles.autospikes import MEMBERS
from robustspike.bench.api import registry


def numbers(words: str) -> np.ndarray:
    """Read flips or passes; not broken: infinity, wrong when clean: NaN."""
    return np.array([{"x": np.nan, ".": np.inf}.get(word) or float(word) for word in words.split()])


@click.command(help=__doc__)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
def main(path: Path) -> None:
    table = pd.read_csv(path, dtype=str)
    attacks = registry("attacks")
    table["made"] = [repr(attacks.get(call)) for call in table["attack"]]
    for victim, rows in table.groupby("victim", sort=False):
        known = rows.drop_duplicates("made").set_index("made")
        lists = {call: [call] for call in rows["attack"]}
        lists |= {level: [member.attack for member in members] for level, members in MEMBERS.items()}
        for name, calls in lists.items():
            made = [repr(attacks.get(call)) for call in calls]
            if not set(made) <= set(known.index):
                continue
            flips = np.min([numbers(known.loc[key, "flips"]) for key in made], axis=0)
            passes = np.sum([numbers(known.loc[key, "passes"]) for key in made], axis=0)
            right = ~np.isnan(flips)
            click.echo(
                f"{victim}  {name}: median {np.median(flips[right]):g}, mean {flips[right].mean():.2f} flips "
                f"at {passes[right].mean():.0f} passes"
            )


if __name__ == "__main__":
    main()
