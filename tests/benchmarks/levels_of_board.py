"""What every level of `autoattack.snn` leaves, from records of the highest that was run: no attack runs.

Each level contains the lower one, sample by sample, and a record books passes and first hits of each member:
so that what lower levels leave of the same samples, and what they spend on all of them, is in it.

    python tests/benchmarks/levels_of_board.py leaderboard/results robustspike-results [--csv OUT]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import click
import pandas as pd

from robustspike.attacks.ensembles.autoattack import LISTS
from robustspike.attacks.ensembles.members import LEVELS
from robustspike.attacks.ensembles.members import Member
from robustspike.bench.contract.specs import Status
from robustspike.bench.record.bundle import unpacked_all
from robustspike.bench.record.schema import CellRecord
from robustspike.bench.record.schema import read_record
from robustspike.bench.record.store import record_folders


def levels_of(record: CellRecord) -> dict[str, object] | None:
    """Return a line of the table; None for a record of another attack or list, or of a vote."""
    if record.attack != "autoattack.snn" or record.counts["errors"]:
        return None
    highest = LEVELS.index(record.parameters["attack"]["level"])
    measures = {name: int(value) for name, value in record.measures.items() if isinstance(value, int)}
    ran = {name.removeprefix("hits:") for name in measures if name.startswith("hits:")}
    lists = [listed for listed in LISTS[:2] if {m.name for m in listed["quick"]} <= ran]
    if not lists:
        return None
    line: dict[str, object] = {
        "victim": record.victim + ("" if record.defense == "none" else f"+{record.defense}"),
        "data": record.dataset,
        "eps": str(record.threat.eps),
        "seed": record.seed,
        "n": record.counts["n"],
        "clean": record.counts["clean"],
    }
    for level in LEVELS[: highest + 1]:
        listed: Sequence[Member] = lists[0][level]
        line[level] = record.counts["clean"] - sum(measures.get(f"hits:{m.name}", 0) for m in listed)
        spent = ("forwards", "backwards")
        line[f"{level}, row"] = sum(measures.get(f"{what}:{m.name}", 0) for m in listed for what in spent)
    standing = [row.forwards + row.backwards for row in record.rows if row.status is Status.ROBUST]
    line["a standing sample"] = max(standing, default=0)
    line["vertex first"] = sum(n for name, n in measures.items() if name.startswith("hits:vertex-"))
    if line[LEVELS[highest]] != record.counts["robust"]:
        raise click.ClickException(f"{record.key}: hits of members do not add up to what stands")
    return line


@click.command(help=__doc__)
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--csv", "path", type=click.Path(path_type=Path))
def main(results: tuple[Path, ...], path: Path | None) -> None:
    with unpacked_all(results) as folders:
        lines = [levels_of(read_record(place)) for place in record_folders(*folders)]
    table = pd.DataFrame([line for line in lines if line]).sort_values(["data", "eps", "victim", "seed"])
    click.echo(table.to_string(index=False))
    for lower, higher in combinations([level for level in LEVELS if level in table], 2):
        more = (100 * (table[lower] - table[higher]) / table["n"]).dropna()
        text = f"{lower} leaves {more.mean():.2f} points more than {higher} in the mean of {len(more)} rows"
        click.echo(f"{text}, {more.max():.2f} at most")
    if path is not None:
        table.to_csv(path, index=False)


if __name__ == "__main__":
    main()
