"""robustspike pictures DIR."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import click

from robustspike.bench.errors import ConfigError


@click.command("pictures")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the PNG files.")
@click.option("--victim", default="*", show_default=True, help="Only victims that match.")
@click.option("--attack", default="*", show_default=True, help="Only attacks (their table names) that match.")
@click.option("--count", type=click.IntRange(min=1), default=6, show_default=True, help="Images per sheet.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of published data sets.")
def command(folder: Path, out: Path, victim: str, attack: str, count: int, data: Path | None) -> None:
    """Draw contact sheets of the quality records in DIR: clean, attacked, difference, scores."""
    from PIL import Image

    from robustspike.bench.cli.leaderboard import read_folders
    from robustspike.bench.contract.specs import Task
    from robustspike.bench.run.pictures import contact_sheet
    from robustspike.bench.run.pictures import panels_of

    records = [
        record
        for record in read_folders([folder])[0]
        if record.task is Task.QUALITY
        and fnmatch.fnmatchcase(record.victim, victim)
        and (record.label == attack or fnmatch.fnmatchcase(record.label, attack))
    ]
    if not records:
        raise ConfigError(
            f"{folder}: holds no quality record that matches. See: robustspike leaderboard {folder}."
        )
    out.mkdir(parents=True, exist_ok=True)
    for record in records:
        panels = panels_of(record, folder / "records" / record.key, count=count, root=data)
        name = f"{record.victim}+{record.defense} {record.label} {record.threat.label}"
        if not panels:
            click.echo(f"{name}: no image was broken, no sheet", err=True)
            continue
        label = "pseudo-MOS" if record.dataset.startswith("photopatch") else "MOS"
        path = out / f"{name.replace(' ', '_').replace('/', '-')}.png"
        Image.fromarray(contact_sheet(panels, title=name, label=label)).save(path)
        click.echo(str(path))
