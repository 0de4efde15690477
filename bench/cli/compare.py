"""robustspike compare A B."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command("compare")
@click.argument("first", type=_PATH, metavar="A")
@click.argument("second", type=_PATH, metavar="B")
@click.option("--only", multiple=True, metavar="KEY=GLOB", help="Records to keep; one key twice: either.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--wide", is_flag=True, help="Print every column, whatever the terminal's width.")
def command(first: Path, second: Path, only: tuple[str, ...], as_json: bool, wide: bool) -> int:
    """Compare two folders or bundles of records row by row; no model is run.

    For each victim and defense that both have under one threat model: the figure that ranks it in A
    and in B, an exact paired test over the shared samples (Holm-corrected over all rows), and what
    differs: weights, data, samples, attacks, their code or parameters, the suite.
    """
    from robustspike.bench.cli.leaderboard import read_folders
    from robustspike.bench.cli.leaderboard import terminal_width
    from robustspike.bench.cli.options import parse_only
    from robustspike.leaderboard.compare import compare
    from robustspike.leaderboard.compare import table
    from robustspike.leaderboard.filters import chosen
    from robustspike.leaderboard.write.terminal import lines

    filters = parse_only(only)
    sides, refused = [], []
    for folder in (first, second):
        records, _, left_out = read_folders([folder])
        refused += left_out
        sides.append(chosen(records, filters))
    for line in refused:
        click.echo(line, err=True)
    pairs, only_first, only_second = compare(*sides)
    if as_json:
        found = [{**dataclasses.asdict(pair), "verdict": pair.verdict} for pair in pairs]
        value = {"pairs": found, "only_in_first": only_first, "only_in_second": only_second}
        click.echo(json.dumps(value, indent=1))
        return 1 if refused else 0
    if pairs:
        text = lines(table(pairs), None if wide else terminal_width())
        click.secho("\n".join(text.head), bold=True)
        click.echo("\n".join(text.rows))
        if text.dropped:
            click.secho(f"not shown: {', '.join(text.dropped)} (--wide)", dim=True)
    for name, alone in (("A", only_first), ("B", only_second)):
        for line in alone:
            click.echo(f"only in {name}: {line}")
    if not pairs:
        click.echo("no row is in both.", err=True)
    return 1 if refused else 0
