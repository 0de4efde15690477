"""Redo the choice of the cascade of `autoattack.snn` from recorded hits: greedy cover of hits per pass.

Not a test: run by hand, seconds. The hits of every candidate (an attack with one loss, one estimator and one
length, from several random starts) on calibration samples (of the split `validation`, in no table) were
recorded with `record_hits.py`; first hits are counted in forwards. A candidate's starts are draws of one
kind: one more start breaks a sample with the share of its recorded starts that did, so that the choice does
not hang on which start was recorded.

    python tests/benchmarks/choose_cascade.py tests/benchmarks/data/cascade_hits.csv
    python tests/benchmarks/choose_cascade.py tests/benchmarks/data/noisy_hits.csv --noisy
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pandas as pd

from robustspike.attacks.ensembles.autoattack import NOISY
from robustspike.attacks.ensembles.autoattack import SPIKING
from robustspike.attacks.ensembles.members import LEVELS
from robustspike.bench.api import registry

KEPT_OUT = ("qcfs_cnn.digits+sr", "lif_cnn.digits+hosnn")
"""Victims that have no say in the choice: they show whether it carries over."""

FIRST = ("pgd.linf(steps=10, estimator='native')", "pgd.linf(steps=10, estimator='atan(alpha=5)')")
"""What the list begins with: a flag compares the first; later candidates were run on what they leave."""

MOST = {"quick": 800 - 132 - 120, "standard": 4000 - 132 - 500, "full": 9000 - 132 - 1060}
"""Passes that gradient members may spend on a sample that stands: the level's, less those of its controls and
of what goes on from the best input (`going_on.py`: what that breaks hangs on the members before it)."""

NOISY_MOST = {"quick": 760, "standard": 3900, "full": 8900}
"""The same for stochastic victims: less the random points, and the draws that compare what members return."""


@dataclass
class Hits:
    """What one more start of a candidate does to every calibration sample.

    Args:
        chance: [samples] share of the recorded starts that hit; NaN where none was run.
        passes: [samples] mean of the forwards + backwards until the hit, or to the end.
        price: passes on a sample that stands.
        starts: recorded starts.
    """

    chance: np.ndarray
    passes: np.ndarray
    price: float
    starts: int


def read_hits(path: Path) -> tuple[dict[str, Hits], pd.DataFrame]:
    """Read recorded hits; return the candidates, and the victim and threat of every sample."""
    table = pd.read_csv(path, names=["victim", "eps", "attack", "start", "price", "hits"], dtype=str)
    table["hits"] = table["hits"].str.split()
    cells = {key: max(map(len, rows["hits"])) for key, rows in table.groupby(["victim", "eps"], sort=True)}
    offsets = dict(zip(cells, np.cumsum([0, *cells.values()]), strict=False))
    total = sum(cells.values())
    wrong = np.zeros(total, dtype=bool)
    found = {}
    for attack, rows in table.groupby("attack", sort=False):
        price = float(rows["price"].astype(float).max())
        run, broken, passes = np.zeros(total), np.zeros(total), np.zeros(total)
        for row in rows.itertuples():
            for place, word in enumerate(row.hits, start=offsets[row.victim, row.eps]):
                wrong[place] |= word == "x"
                if word == "." or word.isdigit():
                    run[place] += 1
                    broken[place] += word.isdigit()
                    passes[place] += min(2 * int(word), price) if word.isdigit() else price
        with np.errstate(invalid="ignore"):
            found[str(attack)] = Hits(broken / run, passes / run, price, int(run.max()))
    samples = pd.DataFrame(
        [(*key, place) for key, n in cells.items() for place in range(n)], columns=["victim", "eps", "sample"]
    )
    keep = ~wrong
    for hits in found.values():
        hits.chance, hits.passes = hits.chance[keep], hits.passes[keep]
    return found, samples[keep].reset_index(drop=True)


def after(standing: np.ndarray, hits: Hits) -> np.ndarray:
    """Return the chance that each sample still stands after one more start."""
    return standing * (1 - np.nan_to_num(hits.chance))


def cover(
    found: dict[str, Hits], voters: np.ndarray, *, most: dict[str, int], first: tuple[str, ...]
) -> list[tuple[str, str, float, float]]:
    """Choose members by the hits to be expected for each pass that they spend on samples that stand.

    Args:
        voters: [samples] whose hits count.
        most: passes at each level.
        first: what the list begins with.
    Returns: (level, candidate, expected new hits, passes on a standing sample so far) in the order of the
        choice; a candidate comes as often as one more start of it is the best choice.
    """
    standing, spent, chosen = voters.astype(float), 0.0, []
    ahead = list(first)
    for level, allowed in most.items():
        while True:
            worth = {}
            for name, hits in found.items():
                asked = standing * ~np.isnan(hits.chance)
                gain = float((asked * np.nan_to_num(hits.chance)).sum())
                if gain > 0 and spent + hits.price <= allowed:
                    worth[name] = gain / float((asked * np.nan_to_num(hits.passes)).sum())
            if not worth:
                break
            name = ahead.pop(0) if ahead else max(worth, key=worth.__getitem__)
            left = after(standing, found[name])
            spent += found[name].price
            chosen.append((level, name, float((standing - left).sum()), spent))
            standing = left
    return chosen


def shipped(found: dict[str, Hits], wanted: list[str]) -> list[str]:
    """Return the recorded candidate of every member of a list, without members that were not recorded."""
    attacks = registry("attacks")
    known = {repr(attacks.get(name)): name for name in found}
    return [known[key] for key in (repr(attacks.get(call)) for call in wanted) if key in known]


@click.command(help=__doc__)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--noisy", is_flag=True, help="The list of stochastic victims.")
def main(path: Path, *, noisy: bool) -> None:
    found, samples = read_hits(path)
    voters = ~samples["victim"].isin(KEPT_OUT).to_numpy()
    chosen = cover(found, voters, most=NOISY_MOST if noisy else MOST, first=() if noisy else FIRST)
    listed = NOISY if noisy else SPIKING
    for level, name, new, spent in chosen:
        click.echo(f"{level:8} {spent:6.0f}  +{new:5.1f}  {name}")
    cells = [samples["victim"], samples["eps"]]
    table = {"samples": samples.groupby(["victim", "eps"]).size()}
    lists = {
        level: [call for at, call, *_ in chosen if LEVELS.index(at) <= k] for k, level in enumerate(LEVELS)
    }
    own = {level: [m.attack for m in listed[level] if m.is_steep] for level in LEVELS}
    lists |= {f"shipped {level}": shipped(found, calls) for level, calls in own.items()}
    lists["everything"] = [name for name, hits in found.items() for _ in range(hits.starts)]
    for title, names in lists.items():
        standing = np.ones(len(samples))
        for name in names:
            standing = after(standing, found[name])
        table[title] = pd.Series(standing).groupby(cells).sum().round(1)
        if "quick" in title:
            click.echo(f"{title}: " + ", ".join(f"{n} x {call}" for call, n in Counter(names).items()))
    made = pd.DataFrame(table)
    made["kept out"] = made.index.get_level_values(0).isin(KEPT_OUT)
    click.echo(made.to_string())


if __name__ == "__main__":
    main()
