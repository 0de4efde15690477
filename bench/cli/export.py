"""robustspike export DIR|BUNDLE..."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command("export")
@click.argument("folders", nargs=-1, required=True, type=_PATH, metavar="DIR|BUNDLE...")
@click.option("--out", type=_PATH, required=True, help="Folder of the data set.")
@click.option("--name", default="RobustSpike", show_default=True, help="Name of the data set.")
@click.option("--url", default="", help="Where it will be published; default: its place on the hub.")
@click.option("--hub", default="", metavar="OWNER/NAME", help="Its name on the Hugging Face hub.")
@click.option("--license", "licence", default="MIT", show_default=True, help="Its licence (SPDX).")
@click.option("--date", default="", metavar="YYYY-MM-DD", help="Of publication; default: today.")
@click.option("--only", multiple=True, metavar="KEY=GLOB", help="Records to keep; one key twice: either.")
def command(
    folders: tuple[Path, ...],
    out: Path,
    name: str,
    url: str,
    hub: str,
    licence: str,
    date: str,
    only: tuple[str, ...],
) -> int:
    """Write the tables of records as a data set that others can find and load; nothing is uploaded.

    cells.csv and rows.csv, croissant.json (Croissant 1.0), a card (README.md), and eval.yaml for a
    leaderboard on the Hugging Face hub. With --hub also eval_results/: one file a network, for .eval_results/
    in the network's own repository there.
    """
    import datetime
    import re

    from robustspike.bench.cli.leaderboard import read_folders
    from robustspike.bench.cli.options import parse_only
    from robustspike.bench.errors import ConfigError
    from robustspike.bench.files import write_atomic
    from robustspike.leaderboard.filters import chosen
    from robustspike.leaderboard.sections import build
    from robustspike.leaderboard.write.csv import tidy_csv
    from robustspike.leaderboard.write.dataset import About
    from robustspike.leaderboard.write.dataset import files

    if hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
        raise ConfigError(f"--hub {hub}: expected OWNER/NAME, the data set's name on the hub.")
    try:
        day = datetime.date.fromisoformat(date) if date else datetime.datetime.now(datetime.UTC).date()
    except ValueError as error:
        raise ConfigError(f"--date {date}: expected YYYY-MM-DD, e.g. 2026-11-29.") from error
    place = url or (f"https://huggingface.co/datasets/{hub}" if hub else "")
    if not place:
        raise ConfigError(
            "export: Croissant wants the address of a data set. Give --hub OWNER/NAME or --url URL."
        )
    records, _, refused = read_folders(folders)
    for line in refused:
        click.echo(line, err=True)
    records = chosen(records, parse_only(only))
    sections = build(records)
    about = About(name, place, licence, day.isoformat(), hub)
    for path, text in files(sections, tidy_csv(sections, records), about).items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text.encode())
        click.echo(str(target))
    return 1 if refused else 0
