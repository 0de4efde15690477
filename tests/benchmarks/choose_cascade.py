"""Redo the choice of the cascade of `autoattack.snn` from recorded hits: greedy cover of hits per pass.

Not a test: run by hand, a second. The hits of every candidate member (an attack with one loss, one
estimator and one length, from one random start) on calibration samples (the first of the split
`validation`, in no table) were recorded with `record_hits.py`; first hits are counted in forwards.

    python tests/benchmarks/choose_cascade.py tests/benchmarks/data/cascade_hits.csv --most 4000
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pandas as pd

from robustspike.attacks.ensembles.autoattack import SPIKING
from robustspike.attacks.ensembles.members import LEVELS
from robustspike.attacks.ensembles.members import Level
from robustspike.bench.api import registry

KEPT_OUT = ("qcfs_cnn.digits+sr", "lif_cnn.digits+hosnn", "ttfs_cnn.digits+none")
"""Victims that would have no say in the choice; none of them is in the table that ships."""

NEVER = np.inf


@dataclass
class Hits:
    """What one candidate does to every calibration sample.

    Args:
        passes: forwards + backwards that it spends on the sample until its first hit, or to its end.
        broken: whether it hits.
        run: whether it was run on the sample.
    """

    passes: np.ndarray
    broken: np.ndarray
    run: np.ndarray


def read_hits(path: Path) -> tuple[dict[str, Hits], pd.DataFrame]:
    """Read recorded hits; return the candidates, and the victim and threat of every sample."""
    table = pd.read_csv(path, names=["victim", "eps", "attack", "start", "price", "hits"], dtype=str)
    blocks = {
        key: len(group["hits"].iloc[0].split()) for key, group in table.groupby(["victim", "eps"], sort=True)
    }
    offsets = dict(zip(blocks, np.cumsum([0, *blocks.values()]), strict=False))
    total = sum(blocks.values())
    wrong = np.zeros(total, dtype=bool)
    price = table["price"].astype(float).groupby([table["attack"]]).max()
    found: dict[str, Hits] = {}
    for row in table.itertuples():
        name = f"{row.attack} #{row.start}"
        if name not in found:
            none = np.zeros(total, dtype=bool)
            found[name] = Hits(np.full(total, price[row.attack]), none, none.copy())
        for place, word in enumerate(row.hits.split(), start=offsets[row.victim, row.eps]):
            found[name].run[place] = word != "-"
            if word == "x":
                wrong[place] = True
            elif word.isdigit():
                found[name].broken[place] = True
                found[name].passes[place] = min(2 * int(word), price[row.attack])  # forwards and backwards
    samples = pd.DataFrame(
        [(*key, place) for key, n in blocks.items() for place in range(n)],
        columns=["victim", "eps", "sample"],
    )
    keep = ~wrong
    for hits in found.values():
        hits.passes, hits.broken, hits.run = hits.passes[keep], hits.broken[keep], hits.run[keep]
    return found, samples[keep].reset_index(drop=True)


def cover(found: dict[str, Hits], voters: np.ndarray, *, most: float) -> list[tuple[str, int, float]]:
    """Choose members by the samples that they newly break for each pass that they spend on standing ones.

    A candidate is judged on the samples that it was run on: long ones were not run on all.

    Args:
        voters: [samples] whose hits count.
        most: passes that all chosen members together may spend on a sample that stands.
    Returns: (name, newly broken voters, passes on a standing sample so far) in the order of the choice.
    """
    standing, spent, chosen = voters.copy(), 0.0, []
    left = dict(found)
    while left:
        gains = {}
        for name, hits in left.items():
            asked = standing & hits.run
            new = int((asked & hits.broken).sum())
            price = float(hits.passes.max())
            if new and spent + price <= most:
                gains[name] = new / float(hits.passes[asked].sum())
        if not gains:
            break
        name = max(gains, key=gains.__getitem__)
        hits = left.pop(name)
        spent += float(hits.passes.max())
        chosen.append((name, int((standing & hits.broken).sum()), spent))
        standing &= ~hits.broken
    return chosen


def left_by(found: dict[str, Hits], names: list[str], samples: pd.DataFrame) -> pd.Series:
    """Return how many samples of every victim the named candidates leave, where they were run."""
    standing = np.ones(len(samples), dtype=bool)
    for name in names:
        standing &= ~found[name].broken
    return pd.Series(standing).groupby([samples["victim"], samples["eps"]]).sum()


def shipped(found: dict[str, Hits], level: Level) -> list[str]:
    """Return the recorded candidates that are members of a level, without starts that were not recorded."""
    attacks = registry("attacks")
    recorded: dict[str, list[str]] = {}
    for name in found:
        recorded.setdefault(repr(attacks.get(name.rpartition(" #")[0])), []).append(name)
    wanted = [repr(attacks.get(m.attack)) for m in SPIKING[level] if not m.is_black_box]
    return [name for key in dict.fromkeys(wanted) for name in recorded.get(key, [])[: wanted.count(key)]]


@click.command(help=__doc__)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--most", default=4000.0, help="Passes on a sample that stands.")
def main(path: Path, most: float) -> None:
    found, samples = read_hits(path)
    voters = ~samples["victim"].isin(KEPT_OUT).to_numpy()
    chosen = cover(found, voters, most=most)
    for name, new, spent in chosen:
        click.echo(f"{spent:6.0f}  +{new:3d}  {name}")
    lists = {level: shipped(found, level) for level in LEVELS}
    full = found[lists["full"][-1]].run  # the longest member, which ran on the fewest samples
    table = {"samples": samples.groupby(["victim", "eps"]).size()}
    table["left by all"] = left_by(found, list(found), samples)
    table["left by quick"] = left_by(found, lists["quick"], samples)
    table["samples of full"] = pd.Series(full).groupby([samples["victim"], samples["eps"]]).sum()
    everywhere = {
        name: Hits(hits.passes[full], hits.broken[full], hits.run[full]) for name, hits in found.items()
    }
    few = samples[full].reset_index(drop=True)
    for level, names in lists.items():
        table[level] = left_by(everywhere, names, few)
        click.echo(f"{level}: {len(names)} recorded members")
    made = pd.DataFrame(table)
    made["kept out"] = made.index.get_level_values(0).isin(KEPT_OUT)
    click.echo(made.to_string())


if __name__ == "__main__":
    main()
